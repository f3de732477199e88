"""A run: one experiment on one data set in one folder, from weights to scores; resumable.

Files of a run's folder: `checkpoint.pt` while and after training, `results.json` once it is done,
`figures.npz` with the few frames, predictions and similarities that its report draws.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from camvid_lang.checkpoint import load_checkpoint, refuse_changed_settings
from camvid_lang.data import Frames, load, verify
from camvid_lang.encoder import (
    RESNET18,
    TINY,
    DenseCLIPEncoder,
    load_clip,
    load_resnet18,
    resolve_weights,
)
from camvid_lang.errors import InputError
from camvid_lang.evaluation import evaluate, predict
from camvid_lang.experiments import THESIS_ROWS, Experiment
from camvid_lang.models import Adapter, Bilinear, Ladder, Segmenter, SwiftNet
from camvid_lang.results import (
    FigureData,
    read_results,
    versions,
    write_figures,
    write_json,
)
from camvid_lang.taxonomy import NUM_CLASSES
from camvid_lang.text import CLIPText, PhraseFile, TextSource, class_phrases, embed_classes
from camvid_lang.training import pick_device, place, reuse_freed_memory, train

__all__ = ["assemble", "build_model", "load_run", "run", "text_source"]

SAMPLES = 4  # frames drawn in the report


def text_source(experiment: Experiment) -> TextSource:
    """Where this experiment's text embeddings come from: its bank, or a text tower.

    ResNet-18 has no text tower; without a bank it learns the tiny CLIP's embeddings.
    """
    if experiment.text_bank:
        return PhraseFile(experiment.text_bank)
    if experiment.encoder == RESNET18:
        return CLIPText(TINY)
    return CLIPText(experiment.encoder, experiment.weights)


def build_model(
    experiment: Experiment, classes: Mapping | None = None, pretrained: bool = True
) -> Segmenter:
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
        classes = classes or class_phrases(experiment.text_set)
        text = embed_classes(classes, text_source(experiment))
    if experiment.encoder == RESNET18:
        encoder = load_resnet18(experiment.weights if pretrained else "random")
    else:
        encoder = DenseCLIPEncoder(load_clip(experiment.encoder, experiment.weights))
    return assemble(experiment, encoder, text)


def assemble(experiment: Experiment, encoder: nn.Module, text: Tensor | None) -> Segmenter:
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
        return Ladder(encoder, text, trained, temperature, *ladder)
    if encoder.channels[-1] != text.shape[1]:
        raise InputError(
            f"{experiment.name} compares {encoder.channels[-1]}-d image embeddings "
            f"with {text.shape[1]}-d text: leave out text_bank, or give one of the same CLIP"
        )
    return Bilinear(encoder, text, False, temperature)


def run(
    experiment: Experiment,
    data: str | Path,
    out: str | Path,
    device: str = "auto",
    fresh: bool = False,
    command: str = "",
) -> dict:
    """Train (or go on training) and evaluate; returns what `results.json` then holds.

    Args:
        data: a data set in CamVid's layout.
        out: the run's folder. A finished run is read back, an unfinished one goes on.
        fresh: delete what an earlier run left there, and start from the beginning.
        command: kept with the results, to tell how they were made.

    Raises:
        InputError: anything wrong with the data, the weights, or the folder's earlier run.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out names the folder of the run")
    checkpoint, results_file = out / "checkpoint.pt", out / "results.json"
    where = pick_device(device)
    if where.type == "cpu":
        reuse_freed_memory()
    report = verify(data, decode=False)
    experiment = fit_crop(experiment, report.size)
    if fresh:
        for file in (checkpoint, results_file, out / "figures.npz"):
            file.unlink(missing_ok=True)
    # A folder of another run is refused before anything is computed.
    if checkpoint.exists():
        stored = load_checkpoint(checkpoint)["settings"]
        refuse_changed_settings(checkpoint, stored, experiment.settings())
    if results_file.exists():
        results = read_results(results_file)
        refuse_changed_settings(results_file, results["settings"], experiment.settings())
        print(f"{experiment.name}: finished before, read from {results_file}")
        return results

    model = place(build_model(experiment), where)
    limit = experiment.limit or None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        test = load(data, experiment.test_split, limit)
        trained = experiment.epochs > 0
        learning = load(data, experiment.train_split, limit) if trained else None
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"note: {message}")
    out.mkdir(parents=True, exist_ok=True)
    history = []
    if learning is not None:
        learning = learning.to(where)
        history = train(model, learning, experiment, checkpoint, where)

    started = time.perf_counter()
    test = test.to(where)
    scored, confusion = evaluate(model, test, desc=f"{experiment.name}: {experiment.test_split}")
    scored_train = None
    if experiment.score_train and learning is not None:
        desc = f"{experiment.name}: {experiment.train_split}"
        scored_train = evaluate(model, learning, desc=desc)[0]["miou"]
    seconds = sum(entry["seconds"] for entry in history) + time.perf_counter() - started
    results = {
        "experiment": experiment.name,
        **{key: scored[key] for key in ("accuracy", "mean_accuracy", "miou")},
        "miou_train": scored_train,
        "iou": scored["iou"],
        "thesis": THESIS_ROWS.get(experiment.name, {}),
        "settings": experiment.settings(),
        "data": {
            "name": report.name,
            "train_frames": len(learning) if learning is not None else 0,
            "test_frames": len(test),
            "size": list(test.images.shape[-2:]),
            "complete": report.complete and not experiment.limit,
        },
        "encoder": describe_encoder(experiment),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
        "versions": versions(),
        "seconds": round(seconds, 1),
        "command": command,
        "history": history,
        "confusion": confusion.tolist(),
    }
    write_figures(out / "figures.npz", figure_data(model, test, experiment))
    write_json(results_file, results)
    return results


def fit_crop(experiment: Experiment, size: tuple[int, int] | None) -> Experiment:
    """The experiment with its crop cut down, and said so, where frames are smaller than it."""
    if size is None or experiment.crop <= min(size) or not experiment.epochs:
        return experiment
    crop = max(32, min(size) // 32 * 32)
    print(f"note: crop {experiment.crop} exceeds the frames of {size[0]}x{size[1]}: {crop} is used")
    return replace(experiment, crop=crop)


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


def figure_data(model: Segmenter, test: Frames, experiment: Experiment) -> FigureData:
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
    """
    if experiment.model == "swiftnet":
        return {}
    found, source = {}, text_source(experiment)
    for title in ("names", "descriptions"):
        try:
            text = embed_classes(class_phrases(title), source)
        except InputError:
            continue
        found[title.capitalize()] = text @ text.T
    return found


def load_run(folder: str | Path, classes: Mapping | None = None) -> tuple[Segmenter, Experiment]:
    """The model of a run, in evaluation mode, with its own classes or any others.

    Raises:
        InputError: no run there, or one without language (swiftnet) when classes are given.
    """
    folder = Path(folder)
    if (folder / "results.json").exists():
        settings = read_results(folder / "results.json")["settings"]
    elif (folder / "checkpoint.pt").exists():
        settings = load_checkpoint(folder / "checkpoint.pt")["settings"]
    else:
        raise InputError(f"{folder} holds no run (no results.json or checkpoint.pt)")
    try:
        experiment = Experiment(**settings)
    except TypeError as error:
        known = {field.name for field in fields(Experiment)}
        odd = ", ".join(sorted(known ^ settings.keys()))
        raise InputError(f"{folder}: settings of another version ({odd}): run it again") from error
    if classes and experiment.model == "swiftnet":
        raise InputError(f"{folder} is a run of swiftnet, which knows its 11 classes only")
    model = build_model(experiment, classes, pretrained=not experiment.train_encoder)
    if experiment.epochs:
        state = load_checkpoint(folder / "checkpoint.pt")
        try:
            model.load_learned_state(state["model"])
        except RuntimeError as error:
            raise InputError(f"{folder}/checkpoint.pt does not fit {experiment.name}") from error
    return model.eval(), experiment
