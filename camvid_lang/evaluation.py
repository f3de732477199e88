"""Accuracy, mean accuracy and IoU from one confusion matrix over a whole split.

Protocol (thesis, chapter 6): pixels labelled void count nowhere; the counts of all frames are
summed before anything is divided, per-frame scores are never averaged. `ABSENT_CLASS_RULE` says
how absent classes count.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from camvid_lang.data.camvid import UNKNOWN_NOTE, Frames, image_files, raise_problems
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID, WORDINGS, Wording
from camvid_lang.data.labels import PLAIN, LabelIds, read_label
from camvid_lang.device import autocast, rank, total, world_size
from camvid_lang.errors import InputError
from camvid_lang.models.segmentation import COMPARE, LanguageModel, SegmentationModel, best_class

ABSENT_CLASS_RULE = (
    "A class in neither labels nor predictions has no IoU and is left out of the mean; one that is "
    "predicted but never labelled has IoU 0 and is left out of the mean accuracy only."
)


IDS_OF = ("both", "predictions", "labels")
CLASSES_KEY = "camvid-lang classes"  # of the text in a PNG that `segment` writes, one a line


def confusion_matrix(pairs: Iterable[tuple[Tensor, Tensor]], classes: int = NUM_CLASSES) -> Tensor:
    """Counts over (prediction, label) pairs of id maps 0..11: (12, 12) int64, rows are labels.

    With another number K of `classes`, ids are 0..K and the matrix is (K + 1, K + 1).

    Void is a column too: a prediction of "void" at a labelled pixel is wrong. `scores` drops the
    row of void labels.
    """
    size = classes + 1
    counts = torch.zeros(size, size, dtype=torch.long)
    for prediction, label in pairs:
        pair = prediction.long(), label.long()
        more = multiclass_confusion_matrix(*pair, size, validate_args=False)
        counts = counts.to(more.device) + more
    return counts


def scores(confusion: Tensor, names: Sequence[str] = CLASSES) -> dict:
    """Scores in percent from a (12, 12) confusion matrix, rows labels, columns predictions.

    With other `names` of K classes it is (K + 1, K + 1).

    Returns:
        accuracy: share of labelled pixels that are right (thesis, equation 6.1).
        mean_accuracy: mean over labelled classes of the share of their pixels found (6.2).
        miou: mean of `iou` over the classes that have one (6.4).
        iou: {class: TP / (TP + FP + FN)} (6.3).

        None where there is nothing to divide by.

    Example:
        >>> right = scores(torch.eye(12))
        >>> right["miou"], right["iou"]["car"]
        (100.0, 100.0)
    """
    void = len(names)
    counts = confusion[:void].cpu().double()
    hits = counts.diagonal()
    labelled = counts.sum(dim=1)
    union = labelled + counts[:, :void].sum(dim=0) - hits
    recall = hits / labelled  # nan for a class without labels
    iou = hits / union
    return {
        "accuracy": _percent(hits.sum() / labelled.sum()),
        "mean_accuracy": _percent(recall.nanmean()),
        "miou": _percent(iou.nanmean()),
        "iou": {name: _percent(value) for name, value in zip(names, iou, strict=True)},
    }


def held_out_scores(iou: Mapping[str, float | None], held_out: Sequence[str]) -> dict[str, float]:
    """Means in percent over seen and held-out classes, and their harmonic mean.

    Classes without IoU are left out. As in the literature on generalised zero-shot segmentation
    (Bucher et al., 2019), where all classes are asked for at once.

    Example:
        >>> held_out_scores({"car": 60.0, "tree": 20.0, "road": 90.0}, ["tree"])
        {'seen': 75.0, 'unseen': 20.0, 'harmonic': 31.57894736842105}
    """

    def mean(names: Iterable[str]) -> float:
        values = [iou[name] for name in names if iou[name] is not None]
        return fmean(values) if values else 0.0

    unseen, seen = mean(held_out), mean(name for name in iou if name not in held_out)
    both = seen + unseen
    return {"seen": seen, "unseen": unseen, "harmonic": 2 * seen * unseen / both if both else 0.0}


def _percent(share: Tensor) -> float | None:
    return None if share.isnan() else 100 * share.item()


@torch.inference_mode()
def predict(model: SegmentationModel, images: Tensor, text: Tensor | None = None) -> Tensor:
    """(N, 3, H, W) images -> (N, H, W) uint8 ids of the best class, by a model in `eval` mode.

    Images are moved to the device of the model; `text` (K, C) are other classes than its own.
    """
    device = next(model.parameters(), images).device
    with autocast(device):
        images = images.to(device)
        return model.segment(images) if text is None else model.segment(images, text)


def evaluate(
    model: SegmentationModel,
    frames: Frames,
    batch_size: int = 2,
    desc: str = "evaluate",
    text: Tensor | None = None,
) -> dict:
    """Scores of a model on whole frames, see `scores`, with their `confusion` (12 x 12 lists).

    Frames with classes of their own need the `text` embeddings (K, C) of these on the model's
    device, compared by cosine; `InputError` without.

    Several processes (`device.processes`) share the frames; each of them has to call this.
    """
    if (text is None and frames.classes) or (text is not None and len(text) != frames.void):
        raise InputError(
            f"the frames have {frames.void} classes: give their text embeddings (text), one for "
            "each class"
        )
    if world_size() > 1:
        own = slice(rank(), None, world_size())
        frames = replace(
            frames, images=frames.images[own], labels=frames.labels[own], names=frames.names[own]
        )
    batches = -(-len(frames) // batch_size)
    pairs = _predictions(model, frames, batch_size, text)
    bar = tqdm(pairs, desc=desc, total=batches, unit="batch", disable=rank() > 0)
    device = next(model.parameters(), frames.images).device
    confusion = total(confusion_matrix(bar, frames.void).to(device))
    return {**scores(confusion, frames.classes or CLASSES), "confusion": confusion.tolist()}


def _predictions(
    model: SegmentationModel,
    frames: Frames,
    batch_size: int,
    text: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    for start in range(0, len(frames), batch_size):
        part = slice(start, start + batch_size)
        found = predict(model, frames.images[part], text)
        yield found, frames.labels[part].to(found.device)


def best_and_worst(model: SegmentationModel, frames: Frames, count: int = 2) -> list[int]:
    """Indices of the `count` frames with the highest accuracy, best first, and of the lowest.

    Frames without labelled pixels are left out; the worst comes last.
    """
    shares = [
        ((found == label).sum() / (label != VOID).sum()).item()
        for found, label in _predictions(model, frames, batch_size=1)
    ]
    labelled = (i for i, share in enumerate(shares) if not math.isnan(share))
    ranked = sorted(labelled, key=shares.__getitem__)
    best = ranked[::-1][:count]
    return [*best, *[i for i in ranked[:count] if i not in best][::-1]]


def vocabulary_shift(
    model: LanguageModel,
    embed: Callable[[list[str]], np.ndarray],
    frames: Frames,
    wordings: Mapping[str, Wording] = WORDINGS,
) -> dict[str, dict]:
    """Ask a model for the classes in other words, and score it with the frames' labels.

    Args:
        embed: maps n words to their text embeddings (n, C), as `Segmenter.embed` does.

    Returns:
        {wording: {"reason": ..., "words": ..., "trained": mIoU, "anchored": {"miou": ..., "iou":
        {class: ...}}, "cosine": {...}}} in percent: with the words of training compared by cosine,
        and with the wording compared in each way (see `Match.scores`; "clip" where possible). Where
        a wording takes classes as one, all are over the classes so taken. "own": that of training.
        A wording of the package that the text encoder lacks is left out, with a warning.

    Raises:
        InputError: another wording that cannot be embedded.
    """
    if "own" in wordings:
        raise InputError("wording 'own' is that of training: give the other another name")
    own = {name: [" | ".join(prompts)] for name, prompts in model.prompts.items()}
    own = Wording("the words of training", own)
    asked, rows = {"own": own, **wordings}, {"own": model.text}
    for name, wording in wordings.items():
        try:
            phrases = [phrase for words in wording.words.values() for phrase in words]
            unique = list(dict.fromkeys(phrases))  # one phrase may stand for two classes
            vectors = embed(unique)[[unique.index(phrase) for phrase in phrases]]
            rows[name] = torch.from_numpy(vectors).to(model.text.device)
        except InputError as error:
            if wording is not WORDINGS.get(name):
                raise InputError(f"wording {name!r}: {error}") from error
            warnings.warn(f"wording {name!r} is left out: {error}", stacklevel=2)
    # The class of each phrase: the first of those that its key names.
    first = {
        name: torch.tensor(
            [
                ids[0]
                for ids, words in zip(asked[name].groups, asked[name].words.values(), strict=True)
                for _ in words
            ],
            device=model.text.device,
        )
        for name in rows
    }
    ways = COMPARE if model.has_clip_map else COMPARE[:2]
    confusion = {(name, way): confusion_matrix([]) for name in rows for way in ways}
    text, sizes = torch.cat(list(rows.values())), list(map(len, rows.values()))
    for image, label in zip(tqdm(frames.images, unit="frame"), frames.labels, strict=True):
        with torch.inference_mode(), autocast(text.device):
            match = model.match(image[None].to(text.device), text, "clip" in ways)
            for name, part in zip(rows, match.split(sizes), strict=True):
                for way in ways:
                    best = best_class(part.scores(model.temperature, way))
                    ids = first[name][best[0].long()]
                    confusion[name, way] += confusion_matrix([(ids.cpu(), label.cpu())])
    found = {name: {"reason": asked[name].reason, "words": asked[name].words} for name in rows}
    for name in rows:
        groups = asked[name].groups
        found[name]["trained"] = _grouped_scores(confusion["own", "cosine"], groups)["miou"]
        found[name] |= {way: _grouped_scores(confusion[name, way], groups) for way in ways}
    return found


def _grouped_scores(confusion: Tensor, groups: Sequence[Sequence[int]]) -> dict:
    """mIoU and IoU over groups of classes, of which the first id of each stands for all."""
    merged = confusion.clone()
    for first, *others in groups:
        for other in others:
            for matrix in (merged, merged.T):
                matrix[first] += matrix[other]
                matrix[other] = 0
    found = scores(merged)
    kept = {CLASSES[ids[0]]: "+".join(CLASSES[i] for i in ids) for ids in groups}
    return {
        "miou": found["miou"],
        "iou": {title: found["iou"][name] for name, title in kept.items()},
    }


def chance_scores(frames: Frames, seed: int = 0) -> dict:
    """Like `evaluate`, for guessing each pixel's class uniformly at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = frames.labels.cpu()
    guesses = (torch.randint(NUM_CLASSES, x.shape, generator=generator) for x in labels)
    confusion = confusion_matrix(zip(guesses, labels, strict=True))
    return {**scores(confusion), "confusion": confusion.tolist()}


def score(
    predictions: str | Path,
    labels: str | Path,
    void: int | None = None,
    first_id: int = 0,
    unknown_void: bool = False,
    ids_of: str = "both",
) -> dict:
    """Scores of a folder of predicted id PNGs against a folder of label PNGs, matched by name.

    Warns of unknown values taken as void, and where ids look shifted by one.

    Args:
        void, first_id, unknown_void: how ids are counted, see `data.labels.LabelIds`.
        ids_of: the folder which that holds for: "predictions", "labels" or "both".

    Raises:
        InputError: a folder that is missing or empty, a file without counterpart, a file that is
            not an id map, or two that differ in size.
    """
    if ids_of not in IDS_OF:
        raise InputError(f"ids_of {ids_of!r}: choose {', '.join(IDS_OF)}")
    given = LabelIds(void, first_id, unknown_void).check()
    how_predicted = PLAIN if ids_of == "labels" else given
    how_labelled = PLAIN if ids_of == "predictions" else given
    problems: list[str] = []
    predicted = image_files(Path(predictions), (".png",), problems)
    labelled = image_files(Path(labels), (".png",), problems)
    raise_problems(problems)
    overlays = {f"{name}_overlay" for name in predicted} - labelled.keys()  # by `segment`
    predicted = {name: path for name, path in predicted.items() if name not in overlays}
    if alone := sorted(predicted.keys() ^ labelled.keys()):
        named = ", ".join(f"{name}.png" for name in alone[:5])
        raise InputError(
            f"{len(alone)} file(s) in only one of {predictions} and {labels} (first: {named}): "
            "add their counterparts or remove them"
        )

    unknown = 0

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal unknown
        for name, file in predicted.items():
            # What `segment` wrote names its classes, whatever the options.
            ids, unknown_ids = _named_ids(file) or read_label(file, how_predicted)
            label, unknown_labels = read_label(labelled[name], how_labelled)
            unknown += unknown_ids + unknown_labels
            if ids.shape != label.shape:
                size, expected = ("x".join(map(str, x.shape[::-1])) for x in (ids, label))
                raise InputError(f"{file} is {size} but its label is {expected}: resize it to that")
            yield torch.from_numpy(ids), torch.from_numpy(label)

    confusion = confusion_matrix(pairs())
    found = scores(confusion)
    if unknown:
        warnings.warn(UNKNOWN_NOTE.format(unknown), stacklevel=2)
    if hint := _shift_hint(confusion, found["miou"] or 0):
        warnings.warn(hint, stacklevel=2)
    return found


def _shift_hint(confusion: Tensor, miou: float) -> str:
    """A sentence where ids that are shifted by one would explain a low score."""
    option = "count from 1 and 0 is void (--first-id 1 --void 0 --ids-of"
    shifted = {
        f"those of the predictions {option} predictions)": confusion.roll(-1, 1),
        f"those of the labels {option} labels)": confusion.roll(-1, 0),
        "those of the predictions are one too low": confusion.roll(1, 1),
    }
    better = {reason: scores(rolled)["miou"] or 0 for reason, rolled in shifted.items()}
    reason = max(better, key=better.__getitem__)
    if better[reason] >= max(2 * miou, miou + 20):
        return f"ids look shifted by one: if {reason}, mIoU is {better[reason]:.2f} %"
    never_sky = confusion[0].any() and not confusion[:, 0].any()
    if never_sky and confusion[VOID, VOID]:
        return (
            f"predictions are {VOID} (void), but never 0 (sky), as the labels are: if ids count "
            "from 1 and 0 is void, give --first-id 1 --void 0"
        )
    return ""


def _named_ids(path: Path) -> tuple[np.ndarray, int] | None:
    """As `read_label` for what `segment` wrote, which names its classes; None for other files."""
    try:
        with Image.open(path) as file:
            names = file.info.get(CLASSES_KEY, "").lower().splitlines()
            ids = np.array(file) if names else None
    except Exception:  # Pillow's plugins raise many kinds; `read_label` says what is wrong
        return None
    if ids is None:
        return None
    if wrong := [name for name in names if name not in CLASSES]:
        raise InputError(f"{path} was segmented into {wrong[0]!r}: leave out --classes to score it")
    if ids.ndim != 2 or ids.max() >= len(names):
        raise InputError(f"{path} has other ids than those of the classes it names: segment again")
    return np.array([CLASSES.index(name) for name in names], np.uint8)[ids], 0
