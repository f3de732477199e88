"""The rows of the thesis's result tables as settings, and profiles that scale them.

The settings of an entry are the thesis's; a profile replaces some of them:

* `thesis`: as published, for a GPU.
* `quick`: the same with 30 epochs at most (`benchmarks/bench.py --t4`: time on a T4, estimated).
* `cpu`: no accelerator. ResNet-18 where its weights are given, otherwise the tiny CLIP that the
  package ships, with higher rates; a narrower upsampler; a quarter of an hour of a core on real
  CamVid, an hour with ResNet-18.
* `smoke`: the models of `cpu` on a few frames for one epoch; seconds, for tests.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS, TINY

# What each replaces; `cpu` and `smoke` also choose encoder and widths, see `_scaled`.
_CPU = {"epochs": 16, "batch_size": 6, "encoder_lr": 2e-4}  # more steps, a higher rate
# `cpu` on the tiny CLIP: with so few steps a temperature above the thesis's 0.01 trains faster, and
# so do far higher rates, after a linear rise; the boundary-aware loss helps thin classes.
_ON_TINY = {"temperature": 0.07, "boundary_weight": 8.0, "lr": 2e-3, "encoder_lr": 1e-3}
_FASTER = {"lr": 1.6e-2, "encoder_lr": 8e-3, "warmup_epochs": 3, "epochs": 24}
_SMOKE = {"epochs": 1, "batch_size": 4, "crop": 64, "limit": 8, "score_train": False}
PROFILES = {"thesis": {}, "quick": {"epochs": 30}, "cpu": _CPU, "smoke": {**_CPU, **_SMOKE}}
SPLITS = ("train", "val", "trainval", "test")


def _setting(default, help: str, low: float | None = None, high: float | None = None, choices=()):
    return field(
        default=default, metadata={"help": help, "low": low, "high": high, "choices": choices}
    )


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run's result; each field's metadata has a `help` text.

    Raises:
        InputError: a value out of its range, or settings that exclude each other.
    """

    name: str
    model: str  # bilinear, adapter, clip-upsampler or swiftnet
    text_set: str = _setting("", "names, descriptions, or a file of classes")
    profile: str = "thesis"
    encoder: str = _setting(THESIS_ENCODER, f"a convnext_* of open_clip, {TINY} or {RESNET18}")
    weights: str = _setting(THESIS_WEIGHTS, "a tag of open_clip, or a file")
    text_bank: str = _setting("", ".npz of prompts and embeddings, instead of a text tower")
    train_encoder: bool = _setting(False, "train the image encoder too")
    width: int = _setting(640, "channels of the upsampler", 1, 8192)
    spp_bottleneck: int = _setting(512, "channels of the pyramid pooling's input", 1, 8192)
    spp_width: int = _setting(640, "channels of each pyramid level", 1, 8192)
    temperature: float = _setting(0.01, "divides the cosines in the loss", 1e-6, 1e3)
    epochs: int = _setting(240, "epochs; 0 for the bilinear models, which have no training", 0, 1e6)
    batch_size: int = _setting(6, "crops per step", 1, 1e5)
    crop: int = _setting(224, "side of the square crops in pixels, at least 32; 0: frames", 0, 1e5)
    lr: float = _setting(4e-4, "learning rate at the start", 0, 1e3)
    weight_decay: float = _setting(1e-4, "weight decay of Adam (an L2 term)", 0, 1e3)
    encoder_lr: float = _setting(1e-4, "learning rate of the encoder, if trained", 0, 1e3)
    encoder_weight_decay: float = _setting(2.5e-5, "weight decay of the encoder", 0, 1e3)
    final_lr_fraction: float = _setting(1 / 400, "learning rate at the end, as a share", 0, 1)
    train_split: str = _setting("trainval", "trained on", choices=SPLITS)
    test_split: str = _setting("test", "evaluated on", choices=SPLITS)
    limit: int = _setting(0, "frames per split, evenly spaced; 0: all", 0, 1e6)
    score_train: bool = _setting(False, "also evaluate on the training split")
    score_val: bool = _setting(False, "also score val after each epoch; with train_split=train")
    seed: int = _setting(0, "random seed for initialisation, order and crops", 0, 2**32 - 1)
    # Beyond the thesis; the defaults change nothing.
    input_scale: float = _setting(1.0, "images are upsampled by this in the model", 1, 4)
    scale_min: float = _setting(1.0, "crops are taken at a random scale, at least this", 0.1, 10)
    scale_max: float = _setting(1.0, "and at most this", 0.1, 10)
    colour_jitter: float = _setting(0.0, "of brightness, contrast and saturation, at most", 0, 1)
    ema: float = _setting(0.0, "decay of the averaged weights, used if not 0", 0, 0.999999)
    warmup_epochs: int = _setting(0, "epochs in which learning rates rise linearly", 0, 1e6)
    boundary_weight: float = _setting(1.0, "of pixels at class boundaries in the loss", 1, 100)

    def settings(self) -> dict:
        """The fields as a flat dictionary that JSON can hold."""
        return asdict(self)

    def __post_init__(self):
        for key, entry in SETTINGS.items():
            value, low, high = getattr(self, key), entry.metadata["low"], entry.metadata["high"]
            if low is not None and not low <= value <= high:  # or NaN
                raise InputError(f"{key}={value}: choose a value between {low:g} and {high:g}")
            if (choices := entry.metadata["choices"]) and value not in choices:
                raise InputError(f"{key}={value!r}: choose one of {', '.join(choices)}")
        for key, is_wrong, message in self._conflicts():
            if is_wrong:
                raise InputError(f"{key}={getattr(self, key)}: {message}")

    def _conflicts(self) -> list[tuple[str, bool, str]]:
        """Rows of: setting, whether it conflicts with others, and why."""
        name, resnet = self.name, self.encoder == RESNET18
        bilinear, swiftnet = self.model == "bilinear", self.model == "swiftnet"
        needs_batch = self.batch_size < 2 and self.model in ("clip-upsampler", "swiftnet")
        return [
            ("crop", 0 < self.crop < 32, "choose at least 32, or 0 for whole frames"),
            ("scale_min", self.scale_min > self.scale_max, f"exceeds scale_max={self.scale_max}"),
            ("epochs", bilinear and self.epochs, f"{name} has nothing to train; leave it 0"),
            ("batch_size", needs_batch, f"{name} needs at least 2, as BatchNorm averages over it"),
            ("score_val", self.score_val and not self.epochs, f"{name} is not trained; unset it"),
            ("score_val", self.score_val and self.train_split != "train", "set train_split=train"),
            ("encoder", bilinear and resnet, f"{name} needs CLIP's embeddings; choose a CLIP"),
            ("encoder", swiftnet and not resnet, f"swiftnet is built on {RESNET18}"),
        ]


# What `configure` takes: {key: field}; `field.default` and `field.metadata["help"]` describe it.
SETTINGS = {entry.name: entry for entry in fields(Experiment) if "help" in entry.metadata}

_FROZEN = {"model": "clip-upsampler"}
_FULL = {"model": "clip-upsampler", "train_encoder": True, "epochs": 400}
_DESCRIBED = {**_FULL, "text_set": "descriptions", "score_train": True}
# The thesis gives no training settings for SwiftNet: taken are those for the whole network, and the
# widths of the SwiftNet paper.
_SWIFTNET = {"encoder": RESNET18, "weights": "", "train_encoder": True, "epochs": 400}
_SWIFTNET |= {"width": 128, "spp_bottleneck": 128, "spp_width": 42, "batch_size": 12}
# Not in the thesis. mIoU on CamVid test (benchmarks/gpu-h200.json): swiftnet-best 69.4 %, best 68.5
# after 171 of 220 epochs; swiftnet 61.4 and 62.5 (two seeds) after 396 of 400.
_BEST = {"encoder": RESNET18, "weights": "", "train_encoder": True, "epochs": 220}
_BEST |= {"width": 128, "spp_bottleneck": 128, "batch_size": 12, "crop": 256, "input_scale": 2.0}
_BEST |= {"scale_min": 0.5, "scale_max": 2.0, "colour_jitter": 0.3, "ema": 0.999}
_BEST |= {"warmup_epochs": 5}

EXPERIMENTS = {
    entry.name: entry
    for entry in (
        Experiment("bilinear-names", "bilinear", "names", epochs=0),
        Experiment("bilinear-descriptions", "bilinear", "descriptions", epochs=0),
        Experiment("adapter-names", "adapter", "names"),
        Experiment("adapter-descriptions", "adapter", "descriptions"),
        Experiment("frozen-names", text_set="names", score_train=True, **_FROZEN),
        Experiment("frozen-descriptions", text_set="descriptions", score_train=True, **_FROZEN),
        Experiment("full-descriptions", **_DESCRIBED),
        Experiment("full-narrow-descriptions", spp_width=160, batch_size=10, **_DESCRIBED),
        Experiment("swiftnet", "swiftnet", **_SWIFTNET),
        # Not in the thesis, which trained the whole network on descriptions only.
        Experiment("full-names", text_set="names", **_FULL),
        Experiment("swiftnet-best", "swiftnet", spp_width=42, **_BEST),
        Experiment("best", "clip-upsampler", "names", spp_width=128, **_BEST),
    )
}


def configure(name: str, /, profile: str = "thesis", **settings: object) -> Experiment:
    """The experiment of this name under a profile, with single settings replaced.

    Args:
        name: a key of `EXPERIMENTS`.
        profile: a key of `PROFILES`.
        settings: keys of `SETTINGS`, with values or texts of values (`epochs="10"`).

    Raises:
        InputError: unknown experiment, profile or key, or a value that does not fit.
    """
    for what, word, known in (
        ("experiment", name, EXPERIMENTS),
        ("profile", profile, PROFILES),
        *(("setting", key, SETTINGS) for key in settings),
    ):
        if word not in known:
            close = difflib.get_close_matches(word, known, n=1)
            advice = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}"
            raise InputError(f"unknown {what} '{word}': {advice}")
    base = EXPERIMENTS[name]
    given = {key: _convert(key, value, SETTINGS[key].type) for key, value in settings.items()}
    changes = _scaled(base, profile, given)
    encoder = changes.get("encoder", base.encoder)
    if given.get("encoder", encoder) != encoder:
        changes["weights"] = ""  # which would not fit another encoder
    return replace(base, profile=profile, **{**changes, **given})


def restore(settings: Mapping[str, object]) -> Experiment:
    """Inverse of `Experiment.settings`; `InputError` for keys of another version or odd values."""
    types = {entry.name: entry.type for entry in fields(Experiment)}
    if odd := sorted(map(str, types.keys() ^ settings.keys())):
        raise InputError(f"settings of another version ({', '.join(odd)}): run it again")
    values = {key: _convert(key, value, types[key]) for key, value in settings.items()}
    if values["name"] not in EXPERIMENTS or values["model"] != EXPERIMENTS[values["name"]].model:
        raise InputError(f"name={values['name']!r}: no such experiment; run it again")
    return Experiment(**values)


def learning_rate_factor(epoch: int, epochs: int, final: float, warmup: int = 0) -> float:
    """Cosine annealing per epoch: 1 at epoch 0, `final` at epoch `epochs`.

    Loshchilov and Hutter, "SGDR" (2017), equation 5, without restarts, as a share of the start.
    It begins after `warmup` epochs (at most all but one) of a linear rise.
    """
    warmup = min(warmup, epochs - 1)
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    epoch, epochs = epoch - warmup, epochs - warmup
    return final + (1 - final) * (1 + math.cos(math.pi * min(epoch, epochs) / epochs)) / 2


def _scaled(base: Experiment, profile: str, given: dict) -> dict:
    """What a profile changes, before the `given` settings do."""
    changes = dict(PROFILES[profile])
    changes["epochs"] = min(changes.get("epochs", base.epochs), base.epochs)
    if profile in ("thesis", "quick"):
        return changes
    has_weights, native = bool(given.get("weights")), base.encoder == RESNET18
    resnet = native or (has_weights and base.model != "bilinear")
    resnet = given["encoder"] == RESNET18 if "encoder" in given else resnet
    changes["encoder"] = RESNET18 if resnet else TINY
    changes["weights"] = "random" if native and not has_weights else ""
    if profile == "cpu" and base.epochs and not resnet:
        changes |= _ON_TINY | (_FASTER if base.model == "clip-upsampler" else {})
    if base.model == "clip-upsampler" and not native:
        divisor = 5 if resnet else 10  # 128 channels as in SwiftNet, or the tiny CLIP's 64
        changes["width"] = changes["spp_bottleneck"] = base.width // divisor
        changes["spp_width"] = base.spp_width // divisor
    return changes


def _convert(key: str, value: object, kind: type):
    """`value`, or the value that a text stands for, as `kind`."""
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}[value.strip().lower()]
        # True is an int in Python, but not to whoever wrote epochs=True.
        fits = isinstance(value, (int, float) if kind is float else kind)
        if isinstance(value, str) or (fits and isinstance(value, bool) == (kind is bool)):
            return kind(value)
    except (KeyError, ValueError, OverflowError):
        pass
    meant = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    raise InputError(f"{key}={value!r}: {meant[kind]} is expected")
