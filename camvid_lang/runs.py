"""One experiment on one data set in one folder, from weights to scores; and loading it again."""

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import nn

from camvid_lang.data.camvid import Frames, load_camvid, verify
from camvid_lang.data.classes import CLASSES
from camvid_lang.data.words import class_prompts
from camvid_lang.device import pick_device, to_device, torch_defaults
from camvid_lang.distributed import barrier, is_main
from camvid_lang.errors import InputError
from camvid_lang.evaluation import evaluate
from camvid_lang.experiments import Experiment, restore
from camvid_lang.models import encoder as encoders
from camvid_lang.models import segmentation
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import CLIPTextEncoder, TextBank, TextEncoder, Vocabulary, embed
from camvid_lang.models.upsampler import Upsampler
from camvid_lang.results import (
    RunFolder,
    figure_data,
    read_results,
    versions,
    write_figures,
    write_json,
)
from camvid_lang.training.checkpoint import (
    Checkpoints,
    changed_settings,
    encoder_digest,
    raise_changed,
)
from camvid_lang.training.loop import epoch_batches, train
from camvid_lang.training.mirror import Mirror, held_settings


@torch_defaults()
def run(  # noqa: PLR0913  the public API
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
        fresh: start over and delete an earlier run of this experiment, on the mirror too.
        mirror: a second folder (on a drive), to which the run is copied, and from which it is
            resumed where `out` is behind it.
        on_epoch: called after each epoch with the history so far, see `training.loop.train`.
        command: kept with the results, to say how they were made.

    Raises:
        InputError: anything wrong with the data, the weights, or the folder's earlier run; a
            folder that another process is using.
        Interrupted: by SIGINT or SIGTERM while training; see `training.loop.train`.
    """
    if isinstance(experiment, str):
        raise InputError(f"experiment {experiment!r}: make it by camvid_lang.experiment(name)")
    target, folder, prompts = pick_device(device), RunFolder(out), trained_prompts(experiment)
    dataset = load_dataset(data, experiment)
    print(f"{experiment.name}: profile {experiment.profile} on {target}; {dataset.sizes}")
    with _opened(folder, experiment, mirror, fresh) as copies:
        if folder.is_finished and not fresh:
            return _read_finished(folder, experiment, prompts, dataset)
        model, text_encoder = build_model(experiment, prompts)
        to_device(model, target)
        if fresh and experiment.epochs:
            next(epoch_batches(dataset.train, experiment, 0))  # settings that fail cost no run
        if fresh and is_main():
            for place in (folder, copies.remote) if copies else (folder,):
                place.clear()
        barrier()
        checkpoints = Checkpoints(folder.checkpoints, copies and copies.update)
        history = train(model, dataset.train, experiment, checkpoints, on_epoch, dataset.val)
        if is_main():
            checkpoints.prune()  # again, should the drive have refused
        results = _score(model, dataset, experiment, history)
        results |= _describe(model, experiment, text_encoder)
        results |= {"prompts": prompts, "command": command}
        if is_main():
            write_figures(folder.figures, figure_data(model, dataset.test, text_encoder))
            write_json(folder.results, results)
        return results


@contextlib.contextmanager
def _opened(
    folder: RunFolder, experiment: Experiment, mirror: str | Path | None, fresh: bool
) -> Iterator[Mirror | None]:
    """Hold folder and mirror, restore the folder unless `fresh`, complete the mirror at the end.

    `InputError`: another process holds one, or it has a run of another experiment.
    """
    if not is_main():
        barrier()  # until the main process has prepared the folder
        yield None
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.lock())
        copies = Mirror(folder, RunFolder(mirror)) if mirror else None
        if copies:
            stack.enter_context(copies.remote.lock())
        for place in [folder, *([copies.remote] if copies else [])] if fresh else []:
            if (held := held_settings(place)) and held["name"] != experiment.name:
                what = f"{place.path} holds a run of {held['name']}"
                raise InputError(f"{what}, which {experiment.name} does not delete: choose another")
        if copies and not fresh:
            copies.restore(experiment.settings())
        barrier()
        try:
            yield copies
        except InputError:
            if copies and not copies.active:
                copies = None  # refused before anything was saved: the mirror stays unchanged
            raise
        finally:  # after an interruption too
            if copies:
                copies.finish()


# Data


@dataclass(frozen=True)
class Dataset:
    """What a run reads of a data set; `train` and `val` are None where they are not needed."""

    name: str
    complete: bool
    test: Frames
    train: Frames | None
    val: Frames | None

    @property
    def sizes(self) -> str:
        trained = f"{len(self.train)} frames to train on, " if self.train else ""
        return f"{trained}{len(self.test)} to test on ({self.name})"

    @property
    def description(self) -> dict:
        """What identifies it, and what a report says of it."""
        return {
            "name": self.name,
            "train_frames": len(self.train) if self.train else 0,
            "test_frames": len(self.test),
            "size": list(self.test.images.shape[-2:]),
            "digest": self.test.digest,
            "train_digest": self.train.digest if self.train else "",
            "complete": self.complete,
        }


def load_dataset(folder: str | Path, experiment: Experiment) -> Dataset:
    """Verify a data set and decode the splits that an experiment needs; prints notes on it."""
    report = verify(folder)
    for note in report.notes:
        print(f"note: {folder}: {note}")
    if report.size and min(report.size) < 32:
        size = "x".join(map(str, report.size[::-1]))
        raise InputError(f"{folder}: frames of {size}, but the encoders need 32 pixels a side")

    test, train = experiment.test_split, experiment.train_split if experiment.epochs else None
    needed = {"test": test, "train": train, "val": "val" if experiment.score_val else None}
    with warnings.catch_warnings():  # of what is in the notes
        warnings.simplefilter("ignore", UserWarning)
        limit = experiment.limit or None
        frames = {key: split and load_camvid(folder, split, limit) for key, split in needed.items()}
    return Dataset(report.name, report.complete and not experiment.limit, **frames)


# The model


def trained_prompts(experiment: Experiment) -> dict[str, list[str]] | None:
    """{class: [prompt, ...]} of the 11 classes, by id; None for swiftnet, which has no language.

    `InputError`: a text set whose classes are not the 11 of the labels.
    """
    if experiment.model == "swiftnet":
        return None
    prompts = class_prompts(experiment.text_set)
    if wrong := sorted(prompts.keys() ^ set(CLASSES)):
        what = f"text set {experiment.text_set}: {', '.join(wrong[:4])} missing or not a class"
        raise InputError(f"{what}; map each of {', '.join(CLASSES)} to one or several prompts")
    return {name: prompts[name] for name in CLASSES}


def build_model(
    experiment: Experiment, prompts: Mapping | None = None
) -> tuple[SegmentationModel, TextEncoder | None]:
    """The experiment's model on the CPU and its text encoder (None for swiftnet).

    Pretrained parts are loaded, new ones seeded; `prompts` replace the text set.

    `InputError`: missing weights, a prompt that cannot be embedded, a text bank of another CLIP,
    widths that do not match.
    """
    encoder, clip = _load_encoder(experiment, experiment.weights)
    text_encoder = _load_text_encoder(experiment, clip)
    prompts = prompts or trained_prompts(experiment)
    vocabulary = embed(prompts, text_encoder) if text_encoder else None
    return _assemble(experiment, encoder, vocabulary), text_encoder


def _load_encoder(experiment: Experiment, weights: str) -> tuple[nn.Module, open_clip.CLIP | None]:
    """The image encoder, and the CLIP that it is part of."""
    torch.manual_seed(experiment.seed)  # of weights that are random
    if experiment.encoder == encoders.RESNET18:
        return encoders.load_resnet18(weights), None
    clip = encoders.load_clip(experiment.encoder, weights)
    return encoders.DenseCLIPEncoder(clip), clip


def _load_text_encoder(experiment: Experiment, clip: open_clip.CLIP | None) -> TextEncoder | None:
    """The text bank, the text tower of `clip` (loaded if None), or None for swiftnet."""
    if experiment.model == "swiftnet":
        return None
    name, weights = experiment.encoder, experiment.weights
    if name == encoders.RESNET18:  # which has no text tower
        name, weights = encoders.TINY, ""
    if not experiment.text_bank:
        if name != experiment.encoder and experiment.profile in ("thesis", "quick"):
            what = f"{experiment.name} has no text tower in profile {experiment.profile}"
            raise InputError(f"{what}: give text_bank (see CONTRIBUTING.md), or choose profile cpu")
        torch.manual_seed(experiment.seed)  # as in `_load_encoder`
        return CLIPTextEncoder(clip or encoders.load_clip(name, weights), name)
    bank = TextBank(experiment.text_bank)
    needed, found = (re.sub(r"[\W_]", "", word).lower() for word in (name, bank.model))
    if found not in ("", needed) and experiment.encoder != encoders.RESNET18:
        what = f"text bank {bank.path} is of {bank.model}, but the encoder is {name}"
        raise InputError(f"{what}: give a bank of the same CLIP, or leave it out")
    return bank


def _assemble(
    experiment: Experiment, encoder: nn.Module, vocabulary: Vocabulary | None
) -> SegmentationModel:
    """The experiment's model around an encoder; new parts are seeded."""
    torch.manual_seed(experiment.seed)
    options = {"train_encoder": experiment.train_encoder, "input_scale": experiment.input_scale}
    if vocabulary:
        options |= {"vocabulary": vocabulary, "temperature": experiment.temperature}
    if experiment.model in ("clip-upsampler", "swiftnet"):
        widths = experiment.width, experiment.spp_bottleneck, experiment.spp_width
        options["upsampler"] = Upsampler(encoder.channels, *widths)
    return segmentation.MODELS[experiment.model](encoder, **options)


# Results


def _score(
    model: SegmentationModel, dataset: Dataset, experiment: Experiment, history: list[dict]
) -> dict:
    """`evaluate` on the test frames, mIoU on the training frames, time, history and data."""
    name, miou_train, started = experiment.name, None, time.perf_counter()
    scored = evaluate(model, dataset.test, desc=f"{name}: {experiment.test_split}")
    if experiment.score_train and dataset.train:
        miou_train = evaluate(model, dataset.train, desc=experiment.train_split)["miou"]
    seconds = sum(entry["seconds"] for entry in history) + time.perf_counter() - started
    scored |= {"experiment": name, "miou_train": miou_train, "seconds": round(seconds, 1)}
    return {**scored, "history": history, "data": dataset.description}


def _describe(
    model: SegmentationModel, experiment: Experiment, text_encoder: TextEncoder | None
) -> dict:
    """What a run was made with, for a report."""
    labels = {"": "ImageNet-1k (timm)", "random": "random initialisation"}
    weights = encoders.resolve_weights(experiment.encoder, experiment.weights)
    device, encoder = next(model.parameters()).device, model.encoder
    width = model.text.shape[1] if text_encoder else 0
    channels = {"stages": list(encoder.stages), "head": encoder.channels[-1], "text": width}
    return {
        "settings": experiment.settings(),
        "encoder": {
            "name": experiment.encoder,
            "weights": labels.get(weights, Path(weights).name),
            "text": text_encoder.label if text_encoder else "none",
            "channels": channels,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": versions(),
    }


def _read_finished(
    folder: RunFolder, experiment: Experiment, prompts: Mapping | None, dataset: Dataset
) -> dict:
    """The results of a finished run; `InputError` where it is of other settings, words or data."""
    results, settings = read_results(folder.results), experiment.settings()
    stored, data = results["settings"], results["data"]
    changed = changed_settings(stored, settings)
    for key in ("weights", "text_bank"):  # the folder of these files may be another
        if Path(str(stored.get(key))).name != Path(settings[key]).name:
            changed.append(f"{key} was {stored.get(key)!r}, now {settings[key]!r}")
    if results["prompts"] != prompts:
        changed.append("the prompts differ")
    for key, split in (("digest", "test"), ("train_digest", "training")):
        if data.get(key) != dataset.description[key]:
            changed.append(f"the {split} frames differ from {data['name']}")
    raise_changed(f"{folder.path} holds another run", changed)
    print(f"{experiment.name}: finished before, read from {folder.results}")
    return results


# A run that was made before


def load_run(
    folder: str | Path, text_bank: str | Path | None = None, weights: str | Path | None = None
) -> tuple[SegmentationModel, Experiment, Callable[[], TextEncoder] | None]:
    """A run's model in evaluation mode on the CPU, its experiment, and how to get its text encoder.

    A checkpoint holds what was trained (with `ema`, averaged) and the vocabulary. A frozen encoder
    is read from its weights; other words need the text bank or text tower, which the function that
    is returned reads (None for SwiftNet). Both must have the content that the run was made with.

    Args:
        text_bank, weights: where the run's text bank and the encoder's weights are now, if moved.

    Raises:
        InputError: no run there; weights or a text bank that are missing or of other content.
    """
    if not (saved := Checkpoints(RunFolder(folder).checkpoints).newest()):
        raise InputError(_no_checkpoint(Path(folder)))
    state = saved[1]
    moved = {"text_bank": text_bank, "weights": weights}.items()
    settings = state["settings"] | {key: str(path) for key, path in moved if path is not None}
    experiment = restore(settings)
    trained = experiment.train_encoder
    vocabulary = state["vocabulary"] and Vocabulary(**state["vocabulary"])
    with _hint_at("weights"):
        encoder, clip = _load_encoder(experiment, "random" if trained else experiment.weights)
        if not trained and encoder_digest(encoder) != state["identity"]["encoder"]:
            read = encoders.resolve_weights(experiment.encoder, experiment.weights)
            raise InputError(f"{folder} was made with another encoder than {read}")

    @functools.cache
    def load_text_encoder() -> TextEncoder:
        with _hint_at("text_bank" if experiment.text_bank else "weights"):
            made = _load_text_encoder(experiment, None if trained else clip)
            prompts = dict(zip(vocabulary.names, vocabulary.prompts, strict=True))
            if not vocabulary.same_vectors(embed(prompts, made)):
                raise InputError(f"{folder} was made with another text encoder than {made.label}")
            return made

    model = _assemble(experiment, encoder, vocabulary)
    model.trained_size = state["identity"].get("size")
    if text_bank and vocabulary:
        load_text_encoder()
    averaged = state.get("average", {}).get("weights", {})
    model.load_trained_state({**state["model"], **averaged})
    return model.eval(), experiment, load_text_encoder if vocabulary else None


def _no_checkpoint(folder: Path) -> str:
    """Why there is nothing to load in a folder, and what to do."""
    if RunFolder(folder).is_finished:
        return f"{folder} holds results, but no weights: run it again, as its results.json says"
    found = sorted({str(path.parents[1]) for path in folder.glob("*/checkpoints/last-*.pt")})
    advice = f"choose one of {', '.join(found)}" if found else "give the folder of a run"
    return f"{folder} holds no run with a checkpoint: {advice}"


@contextlib.contextmanager
def _hint_at(argument: str) -> Iterator[None]:
    """Add to an `InputError` how to give the file of a setting."""
    try:
        yield
    except InputError as error:
        advice = f"restore the file, or give its path ({argument}=PATH)"
        raise InputError(f"{error}; {advice}") from error
