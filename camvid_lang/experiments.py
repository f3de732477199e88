"""The thesis's experiments, one flat frozen entry per row of its result tables, and profiles.

An entry's settings are the thesis's; a profile replaces some of them for another purpose:

* `thesis`: as published (a GPU; hours).
* `cpu`: no accelerator. ResNet-18 where its weights are given, else the tiny encoder that the
  package carries; a narrower ladder; tens of epochs; real CamVid in about a quarter of an hour.
* `smoke`: `cpu` on a handful of frames for one epoch; seconds, for tests.
"""

import contextlib
import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from camvid_lang.errors import InputError, is_printable
from camvid_lang.models.encoder import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS, TINY

__all__ = [
    "EXPERIMENTS",
    "PROFILES",
    "Experiment",
    "configure",
    "learning_rate_factor",
    "restore",
]

PROFILES = ("thesis", "cpu", "smoke")


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result, flat; `--set key=value` replaces any of it."""

    name: str
    model: str  # bilinear, adapter, ladder or swiftnet
    text_set: str = ""  # names, descriptions, or a JSON file of phrases; empty for swiftnet
    profile: str = "thesis"
    encoder: str = THESIS_ENCODER  # an open_clip convnext_*, camvid-tiny, or resnet18
    weights: str = THESIS_WEIGHTS  # a tag of open_clip or a local file
    text_bank: str = ""  # .npz of phrases and embeddings, in place of a text tower
    train_encoder: bool = False
    width: int = 640  # channels of the ladder
    spp_bottleneck: int = 512
    spp_width: int = 640  # channels of each pyramid level
    temperature: float = 0.01
    epochs: int = 240
    batch_size: int = 6
    crop: int = 224  # pixels, square; 0 for whole frames
    lr: float = 4e-4
    weight_decay: float = 1e-4
    encoder_lr: float = 1e-4  # used when the encoder trains
    encoder_weight_decay: float = 2.5e-5
    final_lr_fraction: float = 1 / 400  # both groups end at this share of their start
    train_split: str = "trainval"
    test_split: str = "test"
    limit: int = 0  # frames per split, evenly spaced; 0 for all
    score_train: bool = False  # also score the training split
    seed: int = 0

    def settings(self) -> dict:
        """The fields as a flat dictionary that JSON can hold."""
        return asdict(self)


def learning_rate_factor(epoch: int, epochs: int, final: float) -> float:
    """Cosine annealing per epoch: 1 at epoch 0, `final` at epoch `epochs`.

    Loshchilov and Hutter, "SGDR" (2017), equation 5, without restarts, as a share of the start.
    """
    return final + (1 - final) * (1 + math.cos(math.pi * min(epoch, epochs) / epochs)) / 2


_FROZEN = {"model": "ladder", "score_train": True}
_FULL = {"model": "ladder", "train_encoder": True, "epochs": 400, "score_train": True}

EXPERIMENTS = {
    entry.name: entry
    for entry in (
        Experiment("bilinear-names", "bilinear", "names", epochs=0),
        Experiment("bilinear-descriptions", "bilinear", "descriptions", epochs=0),
        Experiment("adapter-names", "adapter", "names"),
        Experiment("adapter-descriptions", "adapter", "descriptions"),
        Experiment("frozen-names", text_set="names", **_FROZEN),
        Experiment("frozen-descriptions", text_set="descriptions", **_FROZEN),
        Experiment("full-descriptions", text_set="descriptions", **_FULL),
        Experiment(
            "full-narrow-descriptions",
            text_set="descriptions",
            spp_width=160,
            batch_size=10,
            **_FULL,
        ),
        # The thesis gives no training settings for SwiftNet: those of the whole network are taken,
        # and the widths of the SwiftNet paper.
        Experiment(
            "swiftnet",
            "swiftnet",
            encoder=RESNET18,
            weights="",
            train_encoder=True,
            width=128,
            spp_bottleneck=128,
            spp_width=42,
            epochs=400,
            batch_size=12,
        ),
        # Not in the thesis, which trained the whole network on descriptions only.
        Experiment("full-names", text_set="names", **{**_FULL, "score_train": False}),
    )
}


# Few epochs: small batches for more steps, and an encoder that moves faster than in the thesis.
_CPU = {"epochs": 16, "batch_size": 6, "encoder_lr": 2e-4}
# The thesis's widths are divided by this: 128 channels as in SwiftNet, or the 64 of the tiny CLIP.
_NARROWER = {RESNET18: 5, TINY: 10}
_SMOKE = {"epochs": 1, "batch_size": 4, "crop": 64, "limit": 8, "score_train": False}


def configure(
    name: str,
    profile: str = "thesis",
    overrides: Mapping[str, object] | None = None,
    **settings: object,
) -> Experiment:
    """The experiment of this name under a profile, with single settings replaced.

    Args:
        name: a key of `EXPERIMENTS`.
        profile: one of `PROFILES`.
        overrides: field name to value, or to the text of one (`{"epochs": "10"}`).

    Raises:
        InputError: unknown experiment, profile or key, or a value that does not fit.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown experiment '{name}'{_near(name, EXPERIMENTS)}")
    if profile not in PROFILES:
        raise InputError(f"unknown profile '{profile}': choose {', '.join(PROFILES)}")
    entry = EXPERIMENTS[name]
    given = dict(overrides or {}) | settings
    kinds = {field.name: field.type for field in fields(Experiment)}
    for key in given:
        if key not in kinds or key in ("name", "model", "profile"):
            settable = [k for k in kinds if k not in ("name", "model", "profile")]
            raise InputError(f"unknown setting '{key}'{_near(key, settable)}")
    changes: dict = {"profile": profile}
    if profile != "thesis":
        changes |= _small(entry, bool(given.get("weights")), profile)
    changes |= {key: _convert(key, value, kinds[key]) for key, value in given.items()}
    if "encoder" in given and "weights" not in given:
        changes["weights"] = ""  # the other encoder's weights would not fit
    return _checked(replace(entry, **changes))


def restore(settings: Mapping[str, object]) -> Experiment:
    """Inverse of `Experiment.settings`, for settings that were read from a file.

    Raises:
        InputError: keys of another version, or a value that does not fit.
    """
    kinds = {field.name: field.type for field in fields(Experiment)}
    if odd := sorted(map(str, kinds.keys() ^ settings.keys())):
        raise InputError(f"settings of another version ({', '.join(odd)}): run it again")
    values = {key: _convert(key, value, kinds[key]) for key, value in settings.items()}
    if values["name"] not in EXPERIMENTS or values["model"] != EXPERIMENTS[values["name"]].model:
        raise InputError(f"setting name={values['name']!r}: no such experiment")
    return _checked(Experiment(**values))


def _small(entry: Experiment, has_weights: bool, profile: str) -> dict:
    """What the `cpu` and `smoke` profiles change."""
    resnet = entry.model == "swiftnet" or (has_weights and entry.model != "bilinear")
    changes = dict(_CPU)
    changes["encoder"] = RESNET18 if resnet else TINY
    changes["weights"] = "random" if entry.model == "swiftnet" and not has_weights else ""
    if entry.model == "ladder":
        divisor = _NARROWER[changes["encoder"]]
        changes["width"] = changes["spp_bottleneck"] = entry.width // divisor
        changes["spp_width"] = entry.spp_width // divisor
    if profile == "smoke":
        changes |= _SMOKE
    if entry.model == "bilinear":
        changes["epochs"] = 0
    return changes


def _convert(key: str, value: object, kind: type):
    """`value`, or the value that a text stands for, as `kind`."""
    if isinstance(value, str) and kind is not str:
        readers = {bool: {"true": True, "1": True, "false": False, "0": False}.__getitem__}
        with contextlib.suppress(KeyError, ValueError):  # told below
            value = readers.get(kind, kind)(value.strip().lower())
    allowed = (int, float) if kind is float else kind
    # True is an int to Python, but not to whoever wrote epochs=True.
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        meant = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(f"setting {key}={value!r}: {meant[kind]} is expected")
    return kind(value)


_LIMITS = {
    "width": (1, 8192),
    "spp_bottleneck": (1, 8192),
    "spp_width": (1, 8192),
    "temperature": (1e-6, 1e3),
    "epochs": (0, 1_000_000),
    "batch_size": (1, 100_000),
    "crop": (32, 100_000),
    "lr": (0.0, 1e3),
    "weight_decay": (0.0, 1e3),
    "encoder_lr": (0.0, 1e3),
    "encoder_weight_decay": (0.0, 1e3),
    "final_lr_fraction": (0.0, 1.0),
    "limit": (0, 1_000_000),
    "seed": (0, 2**32 - 1),
}


def _checked(entry: Experiment) -> Experiment:
    for key, (low, high) in _LIMITS.items():
        value = getattr(entry, key)
        if key == "crop" and value == 0:
            continue
        if not low <= value <= high:  # also refuses NaN
            raise InputError(f"setting {key}={value}: it must lie between {low:g} and {high:g}")
    for key, value in entry.settings().items():
        if isinstance(value, str) and not is_printable(value):
            raise InputError(f"setting {key}={value!a} cannot be printed: rename the file")
    for key in ("train_split", "test_split"):
        if getattr(entry, key) not in ("train", "val", "trainval", "test"):
            raise InputError(
                f"setting {key}={getattr(entry, key)!r}: choose train, val, trainval or test"
            )
    if entry.model == "bilinear" and entry.epochs:
        raise InputError(f"setting epochs={entry.epochs}: {entry.name} has nothing to learn")
    if entry.model in ("ladder", "swiftnet") and entry.batch_size < 2:
        raise InputError(
            f"setting batch_size={entry.batch_size}: {entry.name} needs 2, as BatchNorm over the "
            "1x1 level of the pyramid pooling averages over the batch"
        )
    if entry.model == "bilinear" and entry.encoder == RESNET18:
        raise InputError(
            f"{entry.name} compares CLIP's own image embeddings with text and resnet18 has none: "
            f"leave out encoder={RESNET18}, or run an adapter-* or frozen-* experiment"
        )
    if entry.model == "swiftnet" and entry.encoder != RESNET18:
        raise InputError(f"swiftnet is built on {RESNET18}: leave out encoder={entry.encoder}")
    return entry


def _near(word: str, known: Mapping | list) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else f"; there are: {', '.join(known)}"
