"""From an experiment's settings to its model: encoder, text embeddings and what is trained.

A run: one experiment on one data set in one folder, from weights to scores; resumable.

Files of a run's folder: `checkpoints/` while and after training, `results.json` once it is done,
`figures.npz` with the few frames, predictions and similarities that its report draws."""

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from camvid_lang.data.camvid import DataReport, Frames, load_camvid, verify
from camvid_lang.data.classes import CLASSES, NUM_CLASSES
from camvid_lang.device import pick_device, reuse_freed_memory, to_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import evaluate, predict
from camvid_lang.experiments import Experiment, restore
from camvid_lang.models.encoder import (
    RESNET18,
    TINY,
    DenseCLIPEncoder,
    load_clip,
    load_resnet18,
    resolve_weights,
)
from camvid_lang.models.segmentation import (
    Adapter,
    Bilinear,
    CLIPUpsampler,
    SegmentationModel,
    SwiftNet,
)
from camvid_lang.models.text import CLIPText, PhraseFile, TextSource, class_phrases, embed_classes
from camvid_lang.results import FigureData, read_results, versions, write_figures, write_json
from camvid_lang.training.checkpoint import (
    Checkpoints,
    folder_lock,
    load_checkpoint,
    refuse_changed_settings,
)
from camvid_lang.training.loop import train
from camvid_lang.training.mirror import CHECKPOINTS, RESULTS, Mirror

__all__ = [
    "assemble",
    "build_model",
    "describe_encoder",
    "load_run",
    "run",
    "text_source",
    "trained_phrases",
]


def text_source(experiment: Experiment) -> TextSource:
    """Where this experiment's text embeddings come from: its bank, or a text tower.

    ResNet-18 has no text tower; without a bank it learns the tiny CLIP's embeddings.
    """
    if experiment.text_bank:
        return PhraseFile(experiment.text_bank)
    if experiment.encoder == RESNET18:
        return CLIPText(TINY)
    return CLIPText(experiment.encoder, experiment.weights)


def trained_phrases(experiment: Experiment) -> dict[str, list[str]] | None:
    """{class: [phrase, ...]} of the 11 classes, by id, that the experiment learns with.

    None for swiftnet, which learns without language.

    Raises:
        InputError: a text set that does not name each of the 11 classes, and no others.
    """
    if experiment.model == "swiftnet":
        return None
    phrases = class_phrases(experiment.text_set)
    wrong = [f"lacks {name!r}" for name in CLASSES if name not in phrases]
    wrong += [f"{name!r} is none of them" for name in phrases if name not in CLASSES]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise InputError(
            f"text set {experiment.text_set}: labels have the 11 classes {', '.join(CLASSES)} "
            f"({'; '.join(wrong[:4])}{more}): map each of them to a phrase or several"
        )
    return {name: phrases[name] for name in CLASSES}


def build_model(
    experiment: Experiment, classes: Mapping | None = None, pretrained: bool = True
) -> SegmentationModel:
    """The experiment's model on the CPU, pretrained parts loaded, new parts seeded.

    Args:
        classes: {class: [phrase, ...]} in place of the experiment's text set.
        pretrained: False spares ResNet-18 its file where a checkpoint will replace it all.

    Raises:
        InputError: missing weights, a phrase that cannot be embedded, widths that do not meet.
    """
    if experiment.model == "swiftnet":
        text = None
    else:
        text = embed_classes(classes or trained_phrases(experiment), text_source(experiment))
    if experiment.encoder == RESNET18:
        encoder = load_resnet18(experiment.weights if pretrained else "random")
    else:
        encoder = DenseCLIPEncoder(load_clip(experiment.encoder, experiment.weights))
    return assemble(experiment, encoder, text)


def assemble(experiment: Experiment, encoder: nn.Module, text: Tensor | None) -> SegmentationModel:
    """The experiment's model around an encoder and a text matrix (K, C); new parts are seeded.

    Raises:
        InputError: widths of image and text that do not meet.
    """
    torch.manual_seed(experiment.seed)
    trained, temperature = experiment.train_encoder, experiment.temperature
    ladder = (experiment.width, experiment.spp_bottleneck, experiment.spp_width)
    if text is None:
        return SwiftNet(encoder, NUM_CLASSES, trained, *ladder)
    if experiment.model == "adapter":
        return Adapter(encoder, text, trained, temperature)
    if experiment.model == "ladder":
        return CLIPUpsampler(encoder, text, trained, temperature, *ladder)
    if encoder.channels[-1] != text.shape[1]:
        raise InputError(
            f"{experiment.name} compares {encoder.channels[-1]}-d image embeddings "
            f"with {text.shape[1]}-d text: leave out text_bank, or give one of the same CLIP"
        )
    return Bilinear(encoder, text, False, temperature)


def describe_encoder(experiment: Experiment) -> dict:
    """Which encoder, weights and text a result was measured with, in words for a report."""
    if experiment.encoder == RESNET18:
        weights = {"": "ImageNet-1k (timm)", "random": "random initialisation"}.get(
            experiment.weights, Path(experiment.weights).name
        )
    else:
        weights = Path(resolve_weights(experiment.encoder, experiment.weights)).name
    text = "none" if experiment.model == "swiftnet" else text_source(experiment).label
    return {"name": experiment.encoder, "weights": weights, "text": text}


SAMPLES = 4  # frames drawn in the report


def run(
    experiment: Experiment,
    data: str | Path,
    out: str | Path,
    device: str = "auto",
    fresh: bool = False,
    command: str = "",
    mirror: str | Path | None = None,
    on_epoch: Callable[[list[dict]], object] | None = None,
    keep_finished: bool = False,
) -> dict:
    """Train (or go on training) and evaluate; returns what `results.json` then holds.

    Args:
        data: a data set in CamVid's layout.
        out: the run's folder. A finished run is read back, an unfinished one goes on.
        fresh: delete what an earlier run left there, and start from the beginning.
        command: kept with the results, to tell how they were made.
        mirror: a second folder (on a drive) that gets a verified copy of all that is saved, and
            from which a run goes on where `out` is behind it.
        on_epoch: called after each epoch with the history so far, see `training.train`.
        keep_finished: read a finished run back with a note where it was made with other settings,
            instead of refusing it.

    Raises:
        InputError: anything wrong with the data, the weights, or the folder's earlier run; a
            folder that another run is using.
        Interrupted: SIGINT or SIGTERM came while training; the state was saved.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out names the folder of the run")
    where = pick_device(device)
    if where.type == "cpu":
        reuse_freed_memory()
    report = verify(data, decode=False)
    experiment = fit_crop(experiment, report.size)
    with folder_lock(out):
        copy = Mirror(out, Path(mirror)) if mirror else None
        checkpoints = Checkpoints(out / CHECKPOINTS, copy.update if copy else None)
        if fresh:
            checkpoints.clear()
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        if copy:
            copy.clear() if fresh else copy.restore()
        try:
            results = _finished(experiment, out, report, keep_finished)
            if results is None:
                results = _train_and_score(
                    experiment, data, out, report, where, checkpoints, command, on_epoch
                )
        finally:  # also when interrupted: what was just saved is what the drive must have
            if copy:
                copy.finish()
    return results


def _finished(
    experiment: Experiment, out: Path, report: DataReport, keep_finished: bool
) -> dict | None:
    """The results that the folder holds; None where the run is not finished.

    A folder of another run is refused before anything is computed.
    """
    file = out / "results.json"
    if file.exists():
        results = read_results(file)
        measured = results.get("data") or {}
        if measured.get("digest", report.digest) != report.digest:
            raise InputError(
                f"{file} was measured on other data ({measured.get('name')}) than {report.root} "
                "holds: give the same --data, choose another --out, or start afresh with --fresh"
            )
        try:
            refuse_changed_settings(file, results["settings"], experiment.settings())
        except InputError as error:
            if not keep_finished or results["experiment"] != experiment.name:
                raise
            print(f"note: {str(error).rpartition(': ')[0]}; it is read back as it is")
        now = None
        with contextlib.suppress(InputError):  # a file of phrases that is gone is needed no more
            now = trained_phrases(experiment)
        if now and results.get("phrases", now) != now:
            raise InputError(
                f"{file} was made with other phrases than {experiment.text_set} holds now: "
                "choose another --out, or start afresh with --fresh"
            )
        print(f"{experiment.name}: finished before, read from {file}")
        return results
    for path in Checkpoints(out / CHECKPOINTS).files()[-1:]:
        try:
            stored = load_checkpoint(path)["settings"]
        except InputError:
            continue  # told when training goes on
        refuse_changed_settings(path, stored, experiment.settings())
    return None


def _train_and_score(
    experiment: Experiment,
    data: str | Path,
    out: Path,
    report: DataReport,
    where: torch.device,
    checkpoints: Checkpoints,
    command: str,
    on_epoch: Callable[[list[dict]], object] | None,
) -> dict:
    model = to_device(build_model(experiment), where)
    limit = experiment.limit or None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        test = load_camvid(data, experiment.test_split, limit)
        trained = experiment.epochs > 0
        learning = load_camvid(data, experiment.train_split, limit) if trained else None
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {message}")
    history = []
    if learning is not None:
        learning = learning.to(where)
        history = train(model, learning, experiment, checkpoints, where, on_epoch)

    started = time.perf_counter()
    test = test.to(where)
    scored = evaluate(model, test, desc=f"{experiment.name}: {experiment.test_split}")
    scored_train = None
    if experiment.score_train and learning is not None:
        desc = f"{experiment.name}: {experiment.train_split}"
        scored_train = evaluate(model, learning, desc=desc)["miou"]
    seconds = sum(entry["seconds"] for entry in history) + time.perf_counter() - started
    results = {
        "experiment": experiment.name,
        **{key: scored[key] for key in ("accuracy", "mean_accuracy", "miou")},
        "miou_train": scored_train,
        "iou": scored["iou"],
        "settings": experiment.settings(),
        "phrases": trained_phrases(experiment),
        "data": {
            "name": report.name,
            "train_frames": len(learning) if learning is not None else 0,
            "test_frames": len(test),
            "size": list(test.images.shape[-2:]),
            "digest": report.digest,
            "complete": report.complete and not experiment.limit,
        },
        "encoder": describe_encoder(experiment),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "versions": versions(),
        "seconds": round(seconds, 1),
        "command": command,
        "history": history,
        "confusion": scored["confusion"],
    }
    write_figures(out / "figures.npz", figure_data(model, test, experiment))
    write_json(out / "results.json", results)
    return results


def fit_crop(experiment: Experiment, size: tuple[int, int] | None) -> Experiment:
    """The experiment with its crop cut down, and said so, where frames are smaller than it.

    Raises:
        InputError: frames that the encoders' coarsest map has no cell for.
    """
    if size is not None and min(size) < 32:
        raise InputError(f"frames of {size[1]}x{size[0]}: the encoders need 32 pixels a side")
    if size is None or experiment.crop <= min(size) or not experiment.epochs:
        return experiment
    crop = max(32, min(size) // 32 * 32)
    print(f"note: crop {experiment.crop} exceeds the frames of {size[1]}x{size[0]}: {crop} is used")
    return replace(experiment, crop=crop)


def figure_data(model: SegmentationModel, test: Frames, experiment: Experiment) -> FigureData:
    """A few frames, evenly spaced over the test split, with predictions and similarities."""
    chosen = sorted({i * len(test) // SAMPLES for i in range(SAMPLES)})
    predictions = torch.cat([predict(model, image[None]) for image in test.images[chosen]])
    return FigureData(
        images=test.images[chosen].cpu().numpy(),
        labels=test.labels[chosen].cpu().numpy(),
        predictions=predictions.cpu().numpy(),
        names=tuple(test.names[i] for i in chosen),
        similarities={title: m.numpy() for title, m in similarities(experiment).items()},
    )


def similarities(experiment: Experiment) -> dict[str, Tensor]:
    """Cosine similarity of the classes' embeddings with each other (thesis, figure 7.1), (11, 11).

    A text bank that lacks the descriptions gives the matrix of the names only.

    Raises:
        InputError: the text tower's weights are missing.
    """
    if experiment.model == "swiftnet":
        return {}
    found, source = {}, text_source(experiment)
    for title in ("names", "descriptions"):
        try:
            text = embed_classes(class_phrases(title), source)
        except InputError:
            if not experiment.text_bank:
                raise
            continue
        found[title.capitalize()] = text @ text.T
    return found


def load_run(
    folder: str | Path, kind: str = "last"
) -> tuple[SegmentationModel, Experiment, TextSource | None]:
    """The model of a run, in evaluation mode, with its own classes or any others.

    Args:
        classes: {class: [phrase, ...]}, see `text.parse_classes`.
        kind: `last`, the end of training, which results are measured with; or `best`, by mIoU
            over the training crops.

    Raises:
        InputError: no run there, or one without language (swiftnet) when classes are given.
    """
    folder = Path(folder)
    if (folder / "results.json").exists():
        settings = read_results(folder / "results.json")["settings"]
    elif saved := Checkpoints(folder / CHECKPOINTS).newest():
        settings = saved[1]["settings"]
    else:
        raise InputError(f"{folder} holds no run (no results.json and no checkpoints)")
    try:
        experiment = restore(settings)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    model = build_model(experiment, None, pretrained=not experiment.train_encoder)
    if experiment.epochs:
        saved = Checkpoints(folder / CHECKPOINTS).newest(kind)
        if saved is None:
            raise InputError(f"{folder} holds no {kind} checkpoint: run {experiment.name} again")
        path, state = saved
        try:
            model.load_learned_state(state["model"])
        except (AttributeError, RuntimeError, TypeError) as error:
            raise InputError(
                f"checkpoint {path} does not fit {experiment.name}: run it again with --fresh"
            ) from error
    text = None if experiment.model == "swiftnet" else text_source(experiment)
    return model.eval(), experiment, text
