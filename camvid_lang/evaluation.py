"""Accuracy, mean accuracy and IoU from one confusion matrix over a whole split, by torchmetrics.

Protocol (thesis, chapter 6): pixels labelled void count nowhere; the counts of all frames are
added up before anything is divided, per-frame scores are never averaged. A class that neither
labels nor predictions hold has no IoU and is left out of the mean; one that is predicted but never
labelled has IoU 0, which counts, but no recall, so the mean accuracy leaves it out.

Predictions of models over frames, and scores of folders of predictions."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from camvid_lang.data.camvid import Frames, read_label
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.device import autocast
from camvid_lang.errors import InputError
from camvid_lang.models.segmentation import SegmentationModel

__all__ = [
    "ABSENT_CLASS_RULE",
    "best_and_worst",
    "chance_scores",
    "confusion_matrix",
    "evaluate",
    "frame_accuracies",
    "predict",
    "score_folders",
    "scores",
]

ABSENT_CLASS_RULE = (
    "A class in neither labels nor predictions has no IoU and is left out of the mean; one that is "
    "predicted but never labelled has IoU 0 and is left out of the mean accuracy only."
)


def confusion_matrix(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over (prediction, label) pairs of id maps 0..11 -> (12, 12) int64, rows are labels.

    Void is a column too: a prediction of "void" at a labelled pixel is wrong. `scores` drops the
    row of void labels.
    """
    size = NUM_CLASSES + 1
    total = torch.zeros(size, size, dtype=torch.long)
    for prediction, label in pairs:
        counts = multiclass_confusion_matrix(
            prediction.long(), label.long(), size, validate_args=False
        )
        total = total.to(counts.device) + counts
    return total


def scores(confusion: Tensor) -> dict:
    """Scores in percent from a (12, 12) confusion matrix, rows labels, columns predictions.

    Returns:
        accuracy: share of labelled pixels that are right (thesis, equation 6.1).
        mean_accuracy: mean over labelled classes of the share of their pixels found (6.2).
        miou: mean of `iou` over the classes that have one (6.4).
        iou: {class: TP / (TP + FP + FN)} (6.3).

        None where nothing can be divided.
    """
    counts = confusion[:VOID].cpu().double()
    hits = counts.diagonal()
    labelled = counts.sum(dim=1)
    union = labelled + counts[:, :VOID].sum(dim=0) - hits
    recall = hits / labelled  # nan for a class without labels
    iou = hits / union
    return {
        "accuracy": _percent(hits.sum() / labelled.sum()),
        "mean_accuracy": _percent(recall.nanmean()),
        "miou": _percent(iou.nanmean()),
        "iou": {name: _percent(value) for name, value in zip(CLASSES, iou, strict=True)},
    }


def _percent(share: Tensor) -> float | None:
    return None if share.isnan() else 100 * share.item()


@torch.inference_mode()
def predict(model: SegmentationModel, images: Tensor) -> Tensor:
    """(N, 3, H, W) images -> (N, H, W) uint8 ids of the best class, by a model in `eval` mode."""
    with autocast(images.device):
        return model.segment(images)


def evaluate(
    model: SegmentationModel, frames: Frames, batch_size: int = 2, desc: str = "evaluate"
) -> dict:
    """Scores of a model over whole frames, and its confusion matrix (12, 12)."""
    model.eval()

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        starts = range(0, len(frames), batch_size)
        for start in tqdm(starts, desc=desc, unit="batch"):
            part = slice(start, start + batch_size)
            yield predict(model, frames.images[part]), frames.labels[part]

    matrix = confusion_matrix(pairs()).cpu()
    return {**scores(matrix), "confusion": matrix.tolist()}


def frame_accuracies(
    model: SegmentationModel, frames: Frames, batch_size: int = 2
) -> list[float | None]:
    """Share of labelled pixels that are right, in percent, of each frame; None where none is.

    Good for finding frames worth a look; scores of a split are taken by `evaluate`.
    """
    model.eval()
    found = []
    for start in range(0, len(frames), batch_size):
        images, labels = (x[start : start + batch_size] for x in (frames.images, frames.labels))
        right = (predict(model, images) == labels).flatten(1).sum(dim=1)
        counted = (labels != VOID).flatten(1).sum(dim=1)
        pairs = zip(right.tolist(), counted.tolist(), strict=True)
        found += [100 * hits / pixels if pixels else None for hits, pixels in pairs]
    return found


def best_and_worst(model: SegmentationModel, frames: Frames, count: int = 2) -> list[int]:
    """Indices of the `count` best frames, best first, then of the worst, worst last."""
    shares = frame_accuracies(model, frames)
    ranked = sorted((i for i, s in enumerate(shares) if s is not None), key=shares.__getitem__)
    best = ranked[::-1][:count]
    return [*best, *[i for i in ranked[:count] if i not in best][::-1]]


def chance_scores(frames: Frames, seed: int = 0) -> dict:
    """Scores of guessing each pixel's class uniformly at random, measured like any model's."""
    generator = torch.Generator().manual_seed(seed)

    def guesses() -> Iterator[tuple[Tensor, Tensor]]:
        for label in frames.labels.cpu():
            yield torch.randint(NUM_CLASSES, label.shape, generator=generator), label

    return scores(confusion_matrix(guesses()))


def score_folders(predictions: str | Path, labels: str | Path) -> dict:
    """Scores of a folder of predicted id PNGs against a folder of label PNGs, matched by name.

    Raises:
        InputError: a folder that is missing or empty, a label without prediction or the other way
            round, a file that is no id map, or two that differ in size. All are named.
    """
    folders = Path(predictions), Path(labels)
    found = []
    for folder in folders:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise InputError(f"folder {folder} {what}")
        files = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() != ".png" or path.name.startswith(".") or not path.is_file():
                continue
            if twin := files.get(path.stem):
                raise InputError(f"{path}: {twin.name} has the same name; keep one of them")
            files[path.stem] = path
        if not files:
            raise InputError(f"folder {folder} holds no .png file: id maps are expected")
        found.append(files)
    for have, other, kind in ((0, 1, "label"), (1, 0, "prediction")):
        if alone := sorted(found[have].keys() - found[other].keys()):
            named = ", ".join(found[have][stem].name for stem in alone[:5])
            raise InputError(
                f"{len(alone)} file(s) of {folders[have]} have no {kind} in {folders[other]}: "
                f"{named}{', ...' if len(alone) > 5 else ''}"
            )

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for name in sorted(found[0]):
            prediction, label = (torch.tensor(read_label(files[name])) for files in found)
            if prediction.shape != label.shape:
                raise InputError(
                    f"{found[0][name]} is {_size(prediction)} but its label is {_size(label)}: "
                    "scores are taken at the label's size"
                )
            yield prediction, label

    return scores(confusion_matrix(pairs()))


def _size(label: Tensor) -> str:
    return f"{label.shape[1]}x{label.shape[0]}"


score = score_folders
