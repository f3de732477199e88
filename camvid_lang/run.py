"""One experiment on one data set in one folder, from weights to scores; and loading it again.

A run's folder holds `checkpoints/` and, once it is finished, `results.json` and `figures.npz` (the
few frames, predictions and similarities that a report draws).
"""

import contextlib
import functools
import hashlib
import itertools
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from camvid_lang.data.camvid import Frames, load_camvid, verify
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.device import pick_device, rank, to_device, wait_for_all
from camvid_lang.errors import START_OVER, InputError
from camvid_lang.evaluation import evaluate, predict
from camvid_lang.experiments import Experiment, restore
from camvid_lang.models import encoder as encoders
from camvid_lang.models import segmentation
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import (
    CLIPTextEncoder,
    TextBank,
    TextEncoder,
    class_prompts,
    embed_classes,
)
from camvid_lang.results import (
    VOCABULARY,
    FigureData,
    read_results,
    versions,
    write_figures,
    write_results,
)
from camvid_lang.training.checkpoint import KEYS, KINDS, Checkpoints, changed_settings, delete
from camvid_lang.training.loop import frozen_state, same_text, train
from camvid_lang.training.mirror import CHECKPOINTS, RESULTS, Mirror

SAMPLES = 4  # frames drawn in the report


def trained_prompts(experiment: Experiment) -> dict[str, list[str]] | None:
    """{class: [prompt, ...]} of the 11 classes, by id; None for swiftnet, which has no language.

    Raises:
        InputError: a text set whose classes are not the 11 of the labels.
    """
    if experiment.model == "swiftnet":
        return None
    prompts = class_prompts(experiment.text_set)
    if wrong := sorted(prompts.keys() ^ set(CLASSES)):
        raise InputError(
            f"text set {experiment.text_set}: map each of the 11 classes of the labels, "
            f"{', '.join(CLASSES)}, to one or several prompts (missing, or not one of them: "
            f"{', '.join(wrong[:4])})"
        )
    return {name: prompts[name] for name in CLASSES}


def build_model(
    experiment: Experiment, prompts: Mapping | None = None
) -> tuple[SegmentationModel, TextEncoder | None]:
    """The experiment's model on the CPU, its pretrained parts loaded and its new parts seeded.

    Args:
        prompts: {class: [prompt, ...]} in place of the experiment's text set.

    Returns:
        The model and its text encoder (None for swiftnet); CLIP is loaded once for both.

    Raises:
        InputError: missing weights, a prompt that cannot be embedded, a text bank of another CLIP,
            widths that do not match.
    """
    torch.manual_seed(experiment.seed)  # of weights that are random
    encoder, clip = _encoder(experiment, experiment.weights)
    text_encoder = _text_encoder(experiment, clip)
    prompts = prompts or trained_prompts(experiment)
    text = embed_classes(prompts, text_encoder) if text_encoder else None
    return assemble(experiment, encoder, text, prompts), text_encoder


def _encoder(experiment: Experiment, weights: str) -> tuple[nn.Module, open_clip.CLIP | None]:
    """The image encoder, and the CLIP that it is part of."""
    if experiment.encoder == encoders.RESNET18:
        return encoders.load_resnet18(weights), None
    clip = encoders.load_clip(experiment.encoder, weights)
    return encoders.DenseCLIPEncoder(clip), clip


def _text_encoder(experiment: Experiment, clip: open_clip.CLIP | None) -> TextEncoder | None:
    """The text bank, the text tower of `clip` (loaded if None), or None for swiftnet."""
    if experiment.model == "swiftnet":
        return None
    name, weights = experiment.encoder, experiment.weights
    if name == encoders.RESNET18:  # which has no text tower
        name, weights = encoders.TINY, ""
    if not experiment.text_bank:
        return CLIPTextEncoder(clip or encoders.load_clip(name, weights), name)
    bank = TextBank(experiment.text_bank)
    own, its = (re.sub(r"[\W_]", "", word).lower() for word in (name, bank.model))
    if its not in ("", own) and experiment.encoder != encoders.RESNET18:
        raise InputError(
            f"text bank {bank.path} is of {bank.model}, but the encoder is {name}: give a bank of "
            "the same CLIP, or leave it out"
        )
    return bank


def assemble(
    experiment: Experiment, encoder: nn.Module, text: Tensor | None, prompts: Mapping | None = None
) -> SegmentationModel:
    """The experiment's model around an encoder and a text matrix (K, C); new parts are seeded.

    `prompts` are those of the matrix.

    Raises:
        InputError: widths of image and text that do not match.
    """
    torch.manual_seed(experiment.seed)
    trained, temperature = experiment.train_encoder, experiment.temperature
    widths = (experiment.width, experiment.spp_bottleneck, experiment.spp_width)
    if text is None:
        model = segmentation.SwiftNet(encoder, NUM_CLASSES, trained, *widths)
    elif experiment.model == "adapter":
        model = segmentation.Adapter(encoder, text, trained, temperature)
    elif experiment.model == "clip-upsampler":
        model = segmentation.CLIPUpsampler(encoder, text, trained, temperature, *widths)
    elif encoder.channels[-1] != text.shape[1]:
        raise InputError(
            f"{experiment.name} compares {encoder.channels[-1]}-d image embeddings "
            f"with {text.shape[1]}-d text: leave out text_bank, or give one of the same CLIP"
        )
    else:
        model = segmentation.Bilinear(encoder, text, False, temperature)
    if experiment.train_stages < 4:
        model.freeze_stages(4 - experiment.train_stages)
    model.prompts, model.input_scale = prompts, experiment.input_scale
    model.unseen = [CLASSES.index(name) for name in experiment.held_out_classes]
    return model


def run(
    experiment: Experiment,
    data: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    fresh: bool = False,
    mirror: str | Path | None = None,
    on_epoch: Callable[[list[dict]], object] | None = None,
    command: str = "",
) -> dict:
    """Train (or resume training) and evaluate; returns what `results.json` then holds.

    Args:
        data: a data set in CamVid's layout.
        out: the run's folder. A finished run is read, an unfinished one is resumed.
        device: `auto`, `cpu` or `cuda`.
        fresh: delete what an earlier run left, on the mirror too, and start over.
        mirror: a second folder (on a drive) that gets a copy of all that is saved, and from which
            a run is resumed where `out` is behind it.
        on_epoch: called after each epoch with the history so far, see `training.loop.train`.
        command: kept with the results, to say how they were made.

    Raises:
        InputError: anything wrong with the data, the weights, or the folder's earlier run; a
            folder that another process is using.
        Interrupted: by SIGINT or SIGTERM while training; see `training.loop.train`.
    """
    out, where, name = Path(out), pick_device(device), experiment.name
    prompts = trained_prompts(experiment)
    main = _load_data(data, experiment)
    others = [_load_data(folder, experiment, also=True) for folder in experiment.other_data]
    _check_names([main, *others])
    for frames in (main.training or main.test, *(other.training for other in others)):
        experiment = _fit_crop(experiment, frames)
    if others and not experiment.crop:
        raise InputError("crop=0: whole frames of several data sets are not of one size; set crop")
    # By content: with the settings and the digests of the frames, what identifies a run.
    inputs = {"files": _file_digests(experiment), "prompts": prompts}
    about_data = {**main.about(), "also": [other.about() for other in others]}
    sizes = [f"{len(x.training)} of {x.name}" for x in (main, *others) if x.training]
    trained = f"{' and '.join(sizes)} to train on, " if sizes else ""
    print(f"{name}: profile {experiment.profile} on {where}; {trained}{len(main.test)} to test on")
    first = rank() == 0  # of several processes (`device.processes`), the one that writes
    with _lock(out) if first else contextlib.nullcontext():
        copies = Mirror(out, mirror) if mirror and first else None
        checkpoints = Checkpoints(out / CHECKPOINTS, copies.update if copies else None)
        if fresh and first:
            for path in (out / name for name in RESULTS):
                delete(path)
            checkpoints.clear()
        if copies:
            copies.clear() if fresh else copies.restore(name)
        wait_for_all()
        try:
            if (out / "results.json").exists():
                return _read_finished(experiment, out, inputs, about_data)
            model, text_encoder = build_model(experiment, prompts)
            model, history = to_device(model, where), []
            words = [_embed(x.training, text_encoder, model.text).to(where) for x in others]
            if experiment.epochs:
                with_words = zip(others, words, strict=True)
                history = train(
                    model,
                    _make_void(main.training, experiment.held_out_classes).to(where),
                    experiment,
                    checkpoints,
                    where,
                    on_epoch=on_epoch,
                    about=inputs,
                    others=[(other.training.to(where), text) for other, text in with_words],
                    val=_load_split(data, "val", experiment) if experiment.score_val else None,
                )
            elif first:  # what a run needs to be loaded without the files that it was made from
                state = {key: {} for key in KEYS} | {"epoch": 0, "model": model.trained_state()}
                state["identity"] = {**frozen_state(model), **inputs}
                state["settings"] = experiment.settings()
                checkpoints.save(state, 0, best=True)
            started = time.perf_counter()
            scored = _score(model, experiment, main, others, words)
            seconds = sum(entry["seconds"] for entry in history) + time.perf_counter() - started
            results = {
                "experiment": name,
                **scored,
                "settings": experiment.settings(),
                "prompts": prompts,
                "data": about_data,
                "encoder": _describe_encoder(experiment, model, text_encoder, inputs["files"]),
                "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
                "versions": versions(),
                "seconds": round(seconds, 1),
                "command": command,
                "history": history,
            }
            if first:
                delete(out / VOCABULARY)  # of an earlier run
                write_figures(out / "figures.npz", _figure_data(model, main.test, text_encoder))
                write_results(out / "results.json", results)
            return results
        except InputError:
            if copies and not copies.active:
                copies = None  # refused before anything was saved: the mirror stays as it was
            raise
        finally:  # after an interruption too
            if copies:
                copies.finish()


def _score(
    model: SegmentationModel,
    experiment: Experiment,
    main: "_Data",
    others: Sequence["_Data"],
    words: Sequence[Tensor],
) -> dict:
    """What `evaluate` gives for the test frames, and mIoU elsewhere: miou_train, also."""
    name, miou_train = experiment.name, None
    scored = evaluate(model, main.test, desc=f"{name}: {experiment.test_split}")
    if experiment.score_train and experiment.epochs:
        desc = f"{name}: {experiment.train_split}"
        miou_train = evaluate(model, main.training, desc=desc)["miou"]
    also = {
        other.name: evaluate(model, other.test, desc=f"{name}: {other.name}", text=text)
        for other, text in zip(others, words, strict=True)
    }
    return {**scored, "miou_train": miou_train, "also": also}


@dataclass(frozen=True)
class _Data:
    """A data set of a run; `training` is None where nothing is trained."""

    name: str
    complete: bool
    test: Frames
    training: Frames | None

    def about(self) -> dict:
        """What identifies it, and what a report says of it."""
        return {
            "name": self.name,
            "train_frames": len(self.training) if self.training else 0,
            "test_frames": len(self.test),
            "size": list(self.test.images.shape[-2:]),
            "digest": self.test.digest,
            "train_digest": self.training.digest if self.training else "",
            "complete": self.complete,
        }


def _load_data(folder: str | Path, experiment: Experiment, also: bool = False) -> _Data:
    if also and not Path(folder).is_dir():
        raise InputError(f"also={experiment.also}: {folder} is not a folder; correct the setting")
    report = verify(folder)
    for note in report.notes:
        print(f"note: {folder}: {note}")
    test = _load_split(folder, experiment.test_split, experiment, also)
    training = None
    if experiment.epochs:
        training = _load_split(folder, experiment.train_split, experiment, also)
    return _Data(report.name, report.complete and not experiment.limit, test, training)


def _load_split(
    folder: str | Path, split: str, experiment: Experiment, any_classes: bool = False
) -> Frames:
    """The frames of a split; what it warns of is in the notes of `verify`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_camvid(folder, split, experiment.limit or None, any_classes)


def _check_names(sets: Sequence[_Data]) -> None:
    names = [data.name for data in sets]
    if len({*names}) < len(names):
        raise InputError(
            f"also: two data sets are called {max(names, key=names.count)!r}: give each another "
            "name in its dataset.json"
        )


def _embed(frames: Frames, text_encoder: TextEncoder, camvid: Tensor) -> Tensor:
    """(K, C) text embeddings of the classes of a data set; `camvid` are those of CamVid's."""
    if not frames.classes:
        return camvid.cpu()
    return embed_classes(class_prompts(frames.classes), text_encoder)


def _make_void(frames: Frames, classes: Sequence[str]) -> Frames:
    """The frames with the labels of these classes void."""
    if not classes:
        return frames
    ids = torch.arange(VOID + 1, dtype=torch.uint8)
    ids[[CLASSES.index(name) for name in classes]] = VOID
    return replace(frames, labels=ids[frames.labels.long()])


def _fit_crop(experiment: Experiment, frames: Frames) -> Experiment:
    """The experiment with its crop reduced to frames that are smaller, with a note."""
    high, wide = frames.images.shape[-2:]
    if min(high, wide) < 32:
        raise InputError(f"frames of {wide}x{high}: the encoders need 32 pixels a side")
    if experiment.crop <= min(high, wide) or not experiment.epochs:
        return experiment
    crop = min(high, wide) // 32 * 32
    print(f"note: crop {experiment.crop} exceeds the frames of {wide}x{high}: {crop} is used")
    return replace(experiment, crop=crop)


def _lock(out: Path) -> contextlib.AbstractContextManager:
    """Hold the folder, made if missing, for this process; the system releases it on a crash."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(out / ".lock", timeout=0).acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"folder {out} is in use by another run: wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"folder {out} cannot be written to ({error.strerror}): choose another folder"
        ) from error


def _read_finished(experiment: Experiment, out: Path, about: dict, data: dict) -> dict:
    """The results of a finished run; `InputError` where it is of other settings, words or data."""
    results = read_results(out / "results.json")
    changed = changed_settings(results["settings"], experiment.settings())
    for key, digest in about["files"].items():
        if results["encoder"].get(f"{key}_digest") != digest:
            changed.append(f"{key} has other content")
    if results["prompts"] != about["prompts"]:
        changed.append("the prompts differ")
    for key, split in (("digest", "test"), ("train_digest", "training")):
        if results["data"].get(key) != data[key]:
            changed.append(f"the {split} frames differ from those of {results['data']['name']}")
    if results["data"].get("also", []) != data["also"]:
        changed.append("the data sets of also differ")
    if changed:
        raise InputError(
            f"{out} holds another run ({'; '.join(changed)}): undo the change, choose another "
            f"folder, or {START_OVER}"
        )
    print(f"{experiment.name}: finished before, read from {out / 'results.json'}")
    return results


def _describe_encoder(
    experiment: Experiment,
    model: SegmentationModel,
    text_encoder: TextEncoder | None,
    files: Mapping[str, str],
) -> dict:
    """Names and channels of encoder and text encoder for a report, and digests of their files."""
    labels = {"": "ImageNet-1k (timm)", "random": "random initialisation"}
    weights = _weights(experiment)
    return {
        "name": experiment.encoder,
        "weights": labels.get(weights, Path(weights).name),
        "text": text_encoder.label if text_encoder else "none",
        "channels": {
            "stages": list(model.encoder.stages),
            "head": model.encoder.channels[-1],
            "text": model.text.shape[1] if text_encoder else 0,
        },
        **{f"{key}_digest": digest for key, digest in files.items()},
    }


def _weights(experiment: Experiment) -> str:
    """The file or tag that the encoder's weights are read from."""
    return encoders.resolve_weights(experiment.encoder, experiment.weights)


def _file_digests(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of the files `weights` and `text_bank`; the name itself for what is not a file."""
    weights, bank = _weights(experiment), experiment.text_bank
    files = encoders.weight_files(experiment.encoder, weights)
    return {
        "weights": _files_digest(files) or weights,
        "text_bank": _files_digest([Path(bank)] if Path(bank).is_file() else []) or bank,
    }


def _files_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the files' bytes, or "" without files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""


def _figure_data(
    model: SegmentationModel, test: Frames, text_encoder: TextEncoder | None
) -> FigureData:
    """A few frames with predictions, and the similarities of the classes' texts."""
    chosen = _clear_frames(test)
    predictions = torch.cat([predict(model, image[None]) for image in test.images[chosen]])
    return FigureData(
        images=test.images[chosen].cpu().numpy(),
        labels=test.labels[chosen].cpu().numpy(),
        predictions=predictions.cpu().numpy(),
        names=tuple(test.names[i] for i in chosen),
        similarities=_similarities(text_encoder) if text_encoder else {},
    )


def _clear_frames(frames: Frames) -> list[int]:
    """One frame of each quarter of a split: with the most classes, then the highest contrast.

    The choice rests on images and labels only. The one of the highest contrast comes first.
    """
    counts = [
        torch.bincount(x.flatten(), minlength=NUM_CLASSES)[:NUM_CLASSES] for x in frames.labels
    ]
    shown = [(count > 0.002 * frames.labels[0].numel()).sum().item() for count in counts]
    contrast = [image.float().std().item() for image in frames.images]
    bounds = [i * len(frames) // SAMPLES for i in range(SAMPLES + 1)]
    quarters = [range(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    chosen = [max(quarter, key=lambda i: (shown[i], contrast[i])) for quarter in quarters]
    return sorted(chosen, key=contrast.__getitem__, reverse=True)


def _similarities(text_encoder: TextEncoder) -> dict[str, np.ndarray]:
    """Cosines (11, 11) of the classes' embeddings with each other (thesis, figure 7.1)."""
    found = {}
    for title in ("names", "descriptions"):
        try:
            text = embed_classes(class_prompts(title), text_encoder)
        except InputError:  # a text bank may lack the descriptions
            if not isinstance(text_encoder, TextBank):
                raise
        else:
            found[title.capitalize()] = (text @ text.T).numpy()
    return found


def load_run(
    folder: str | Path,
    checkpoint: str = "last",
    text_bank: str | Path | None = None,
    weights: str | Path | None = None,
) -> tuple[SegmentationModel, Experiment, Callable[[], TextEncoder] | None]:
    """A run's model in evaluation mode on the CPU, its experiment, and how to get its text encoder.

    A checkpoint holds what was trained and the vectors of the run's own words. A frozen encoder is
    read from its weights; other words need the text bank or text tower, which the function that is
    returned reads (None for SwiftNet). Both must have the content that the run was made with. With
    `ema` the weights are the averaged ones.

    Args:
        checkpoint: `last`, the end of training, which results are measured with; or `best`, by mIoU
            over the training crops.
        text_bank: where the run's text bank is now, if it has moved.
        weights: where the weights of the run's encoder are now, if they have moved; of an encoder
            `local-dir:DIR`, where DIR is.

    Raises:
        InputError: no run there, or no such checkpoint; weights or a text bank that are missing or
            of other content.
    """
    if checkpoint not in KINDS:
        raise InputError(f"checkpoint {checkpoint!r}: choose {' or '.join(KINDS)}")
    if not (saved := Checkpoints(Path(folder) / CHECKPOINTS).newest(checkpoint)):
        raise InputError(f"{folder} holds no run with a {checkpoint} checkpoint: {START_OVER}")
    state = saved[1]
    identity = state["identity"]
    given = {"text_bank": text_bank, "weights": weights}
    given = {key: str(path) for key, path in given.items() if path is not None}
    experiment = replace(restore(state["settings"]), **given)
    if weights and experiment.encoder.startswith(encoders.FOLDER):  # which the weights lie in
        experiment = replace(experiment, encoder=f"{encoders.FOLDER}{weights}", weights="")
    trained = experiment.train_encoder
    prompts = identity.get("prompts") or trained_prompts(experiment)
    with _hint_at("weights"):
        encoder, clip = _encoder(experiment, "random" if trained else experiment.weights)

    bank, known = experiment.text_bank, identity.get("files", {}).get("text_bank")
    source = "text_bank" if bank else "weights"

    @functools.cache
    def make_text_encoder() -> TextEncoder:
        with _hint_at(source):
            made = _text_encoder(experiment, None if trained else clip)
            same = same_text(embed_classes(prompts, made), identity["text"])
            # A bank with the same vectors of the run's own words may have others of other words.
            if not same or (bank and known not in (None, _files_digest([Path(bank)]))):
                raise InputError(f"{folder} was made with another text encoder than {made.label}")
            return made

    swiftnet = experiment.model == "swiftnet"
    model = assemble(experiment, encoder, None if swiftnet else identity["text"], prompts)
    if not trained and frozen_state(model)["encoder"] != identity["encoder"]:
        with _hint_at("weights"):
            read = _weights(experiment)
            raise InputError(f"{folder} was made with another encoder than {read}")
    if source in given and not swiftnet:
        make_text_encoder()
    averaged = state.get("average", {}).get("weights", {})
    model.load_trained_state({**state["model"], **averaged})
    return model.eval(), experiment, None if swiftnet else make_text_encoder


@contextlib.contextmanager
def _hint_at(key: str) -> Iterator[None]:
    """Add to an `InputError` how to give the file of the setting `key`."""
    try:
        yield
    except InputError as error:
        option = f"--{key.replace('_', '-')} PATH; in Python {key}=PATH"
        raise InputError(f"{error}; restore the file, or give its path ({option})") from error
