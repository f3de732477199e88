"""One experiment on one data set in one folder, from weights to scores; and loading it again.

A run's folder holds `checkpoints/` and, once it is finished, `results.json` and `figures.npz` (the
few frames, predictions and similarities that a report draws).
"""

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor, nn

from camvid_lang.data.camvid import Frames, load_camvid, verify
from camvid_lang.data.classes import CLASSES, NUM_CLASSES
from camvid_lang.device import pick_device, to_device
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
from camvid_lang.results import FigureData, read_results, versions, write_figures, write_results
from camvid_lang.training.checkpoint import KINDS, Checkpoints, changed_settings, delete
from camvid_lang.training.loop import changed_content, train
from camvid_lang.training.mirror import CHECKPOINTS, RESULTS, Mirror

__all__ = ["assemble", "build_model", "load_run", "run", "trained_prompts"]

SAMPLES = 4  # frames drawn in the report


def trained_prompts(experiment: Experiment) -> dict[str, list[str]] | None:
    """{class: [prompt, ...]} of the 11 classes, by id; None for swiftnet, which has no language.

    Raises:
        InputError: a text set whose classes are not the 11 of the labels.
    """
    if experiment.model == "swiftnet":
        return None
    prompts = class_prompts(experiment.text_set)
    wrong = [f"{name!r} is missing" for name in CLASSES if name not in prompts]
    wrong += [f"{name!r} is not one of them" for name in prompts if name not in CLASSES]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise InputError(
            f"text set {experiment.text_set}: labels have the 11 classes {', '.join(CLASSES)} "
            f"({'; '.join(wrong[:4])}{more}): map each of them to one or several prompts"
        )
    return {name: prompts[name] for name in CLASSES}


def build_model(
    experiment: Experiment, prompts: Mapping | None = None, pretrained: bool = True
) -> tuple[SegmentationModel, TextEncoder | None]:
    """The experiment's model on the CPU, its pretrained parts loaded and its new parts seeded.

    Args:
        prompts: {class: [prompt, ...]} in place of the experiment's text set.
        pretrained: False leaves ResNet-18 random where a checkpoint follows.

    Returns:
        The model and its text encoder (None for swiftnet); CLIP is loaded once for both.

    Raises:
        InputError: missing weights, a prompt that cannot be embedded, widths that do not match.
    """
    torch.manual_seed(experiment.seed)  # of weights that are random
    clip, text, text_encoder = None, None, None
    if experiment.encoder == encoders.RESNET18:
        encoder = encoders.load_resnet18(experiment.weights if pretrained else "random")
    else:
        clip = encoders.load_clip(experiment.encoder, experiment.weights)
        encoder = encoders.DenseCLIPEncoder(clip)
    if experiment.model != "swiftnet":
        if experiment.text_bank:
            text_encoder = TextBank(experiment.text_bank)
        elif clip:
            text_encoder = CLIPTextEncoder(clip, experiment.encoder)
        else:  # ResNet-18 has no text tower
            text_encoder = CLIPTextEncoder(encoders.load_clip(encoders.TINY), encoders.TINY)
        text = embed_classes(prompts or trained_prompts(experiment), text_encoder)
    model = assemble(experiment, encoder, text)
    model.input_scale = experiment.input_scale
    return model, text_encoder


def assemble(experiment: Experiment, encoder: nn.Module, text: Tensor | None) -> SegmentationModel:
    """The experiment's model around an encoder and a text matrix (K, C); new parts are seeded.

    Raises:
        InputError: widths of image and text that do not match.
    """
    torch.manual_seed(experiment.seed)
    trained, temperature = experiment.train_encoder, experiment.temperature
    widths = (experiment.width, experiment.spp_bottleneck, experiment.spp_width)
    if text is None:
        return segmentation.SwiftNet(encoder, NUM_CLASSES, trained, *widths)
    if experiment.model == "adapter":
        return segmentation.Adapter(encoder, text, trained, temperature)
    if experiment.model == "clip-upsampler":
        return segmentation.CLIPUpsampler(encoder, text, trained, temperature, *widths)
    if encoder.channels[-1] != text.shape[1]:
        raise InputError(
            f"{experiment.name} compares {encoder.channels[-1]}-d image embeddings "
            f"with {text.shape[1]}-d text: leave out text_bank, or give one of the same CLIP"
        )
    return segmentation.Bilinear(encoder, text, False, temperature)


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
    keep_finished: bool = False,
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
        keep_finished: read a finished run of other settings with a note instead of refusing it.

    Raises:
        InputError: anything wrong with the data, the weights, or the folder's earlier run; a
            folder that another process is using.
        Interrupted: by SIGINT or SIGTERM while training; see `training.loop.train`.
    """
    out, where, name = Path(out), pick_device(device), experiment.name
    prompts, report = trained_prompts(experiment), verify(data)
    for note in report.notes:
        print(f"note: {data}: {note}")
    test = _load(data, experiment.test_split, experiment.limit)
    training = _load(data, experiment.train_split, experiment.limit) if experiment.epochs else None
    experiment = _fit_crop(experiment, training or test)
    about_data = {
        "name": report.name,
        "train_frames": len(training) if training else 0,
        "test_frames": len(test),
        "size": list(test.images.shape[-2:]),
        "digest": test.digest,
        "train_digest": training.digest if training else "",
        "complete": report.complete and not experiment.limit,
    }
    trained = f"{len(training)} frames to train on, " if training else ""
    print(f"{name}: profile {experiment.profile} on {where}; {trained}{len(test)} to test on")
    with _lock(out):
        copies = Mirror(out, mirror) if mirror else None
        checkpoints = Checkpoints(out / CHECKPOINTS, copies.update if copies else None)
        if fresh:
            for path in (out / name for name in RESULTS):
                delete(path)
            checkpoints.clear()
        if copies:
            copies.clear() if fresh else copies.restore(name)
        try:
            if (out / "results.json").exists():
                return _read_finished(experiment, out, prompts, about_data, keep_finished)
            model, text_encoder = build_model(experiment, prompts)
            model, history, train_miou = to_device(model, where), [], None
            if training:
                training = training.to(where)
                history = train(model, training, experiment, checkpoints, where, on_epoch)
            started = time.perf_counter()
            scored = evaluate(model, test, desc=f"{name}: {experiment.test_split}")
            if experiment.score_train and training:
                desc = f"{name}: {experiment.train_split}"
                train_miou = evaluate(model, training, desc=desc)["miou"]
            seconds = sum(entry["seconds"] for entry in history) + time.perf_counter() - started
            results = {
                "experiment": name,
                **scored,
                "miou_train": train_miou,
                "settings": experiment.settings(),
                "prompts": prompts,
                "data": about_data,
                "encoder": _describe_encoder(experiment, model, text_encoder),
                "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
                "versions": versions(),
                "seconds": round(seconds, 1),
                "command": command,
                "history": history,
            }
            write_figures(out / "figures.npz", _figure_data(model, test, text_encoder))
            write_results(out / "results.json", results)
            return results
        except InputError:
            if copies and not copies.active:
                copies = None  # refused before anything was saved: the mirror stays as it was
            raise
        finally:  # after an interruption too
            if copies:
                copies.finish()


def _load(data: str | Path, split: str, limit: int) -> Frames:
    """The frames of a split; what it warns of is in the notes of `verify`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_camvid(data, split, limit or None)


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


def _lock(out: Path) -> AbstractContextManager:
    """Hold the folder, made if missing, for this process; the system releases it on a crash."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(out / ".lock", timeout=0).acquire()
    except filelock.Timeout as error:
        advice = "wait for it, or choose another folder"
        raise InputError(f"folder {out} is in use by another run: {advice}") from error
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        raise InputError(f"folder {out} {reason}: choose another folder") from error


def _read_finished(
    experiment: Experiment, out: Path, prompts: dict | None, data: dict, keep_finished: bool
) -> dict:
    """The results of a finished run; `InputError` where it is of other settings, words or data."""
    results = read_results(out / "results.json")
    changed = changed_settings(results["settings"], experiment.settings())
    changed += [
        f"{key} has other content"
        for key, digest in _file_digests(experiment).items()
        if results["encoder"].get(f"{key}_digest") != digest
    ]
    if results["prompts"] != prompts:
        changed.append("the prompts differ")
    kept = keep_finished and results["experiment"] == experiment.name
    if changed and kept:
        print(f"note: {out} holds a run of other settings ({'; '.join(changed)}); it is kept")
        changed = []
    for key, split in (("digest", "test"), ("train_digest", "training")):
        if results["data"].get(key) != data[key]:
            changed.append(f"the {split} frames differ from those of {results['data']['name']}")
    if changed:
        raise InputError(
            f"{out} holds another run ({'; '.join(changed)}): undo the change, choose another "
            f"folder, or {START_OVER}"
        )
    print(f"{experiment.name}: finished before, read from {out / 'results.json'}")
    return results


def _describe_encoder(
    experiment: Experiment, model: SegmentationModel, text_encoder: TextEncoder | None
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
        **{f"{key}_digest": digest for key, digest in _file_digests(experiment).items()},
    }


def _weights(experiment: Experiment) -> str:
    """The file, or the name of the weights, that the encoder is loaded from."""
    if experiment.encoder == encoders.RESNET18 or experiment.weights == "random":
        return experiment.weights
    return encoders.resolve_weights(experiment.encoder, experiment.weights)


def _file_digests(experiment: Experiment) -> dict[str, str]:
    """SHA-256 of the files `weights` and `text_bank`; the name itself for what is not a file."""
    weights, bank = _weights(experiment), Path(experiment.text_bank)
    files = encoders.weight_files(experiment.encoder, weights)
    read = {"weights": files, "text_bank": [bank] if bank.is_file() else []}
    return {
        key: hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        if paths
        else {"weights": weights, "text_bank": experiment.text_bank}[key]
        for key, paths in read.items()
    }


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
        except InputError:
            if not isinstance(text_encoder, TextBank):
                raise
        else:  # a text bank may lack the descriptions
            found[title.capitalize()] = (text @ text.T).numpy()
    return found


def load_run(
    folder: str | Path, checkpoint: str = "last"
) -> tuple[SegmentationModel, Experiment, TextEncoder | None]:
    """A run's model in evaluation mode, on the CPU with its own classes; and what made it.

    With the setting `ema` its weights are the averaged ones.

    Args:
        checkpoint: `last`, the end of training, which results are measured with; or `best`, by mIoU
            over the training crops.

    Raises:
        InputError: no run there, or no such checkpoint.
    """
    if checkpoint not in KINDS:
        raise InputError(f"checkpoint {checkpoint!r}: choose {' or '.join(KINDS)}")
    folder, prompts = Path(folder), None
    saved = Checkpoints(folder / CHECKPOINTS).newest(checkpoint)
    if (folder / "results.json").exists():
        results = read_results(folder / "results.json")
        settings, prompts = results["settings"], results["prompts"]
    elif saved:
        settings = saved[1]["settings"]
    else:
        raise InputError(f"{folder} holds no run (no results.json and no checkpoints)")
    experiment = restore(settings)
    if experiment.epochs and not saved:
        raise InputError(f"{folder} holds no {checkpoint} checkpoint: run {experiment.name} again")
    model, text_encoder = build_model(experiment, prompts, pretrained=not experiment.train_encoder)
    if saved:
        path, state = saved
        if changed := changed_content(state["identity"], model):
            raise InputError(f"checkpoint {path} is of another run ({'; '.join(changed)})")
        averaged = state.get("average", {}).get("weights", {})
        model.load_trained_state({**state["model"], **averaged})
    return model.eval(), experiment, text_encoder
