"""Accuracy, mean accuracy and IoU from one confusion matrix over a whole split, by torchmetrics.

Protocol (thesis, chapter 6): pixels labelled void count nowhere; the counts of all frames are
added up before anything is divided, per-frame scores are never averaged. A class that neither
labels nor predictions hold has no IoU and is left out of the mean; one that is predicted but never
labelled has IoU 0, which counts, but no recall, so the mean accuracy leaves it out.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from camvid_lang.taxonomy import CLASSES, NUM_CLASSES, VOID

__all__ = ["ABSENT_CLASS_RULE", "confusion_matrix", "scores"]

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
