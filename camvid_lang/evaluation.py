"""Accuracy, mean accuracy and IoU from one confusion matrix over a whole split.

Protocol (thesis, chapter 6): pixels labelled void count nowhere; the counts of all frames are
summed before anything is divided, per-frame scores are never averaged. `ABSENT_CLASS_RULE` says
how absent classes count.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from camvid_lang.data.camvid import Frames, image_files, raise_problems
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.data.labels import read_dataset_info, read_label, shift_hint
from camvid_lang.data.words import Wording, wordings
from camvid_lang.device import autocast, torch_defaults
from camvid_lang.distributed import is_main, share, synchronise, total
from camvid_lang.errors import InputError
from camvid_lang.models.segmentation import COMPARE, LanguageModel, SegmentationModel, best_class
from camvid_lang.models.text import Vocabulary

ABSENT_CLASS_RULE = (
    "A class in neither labels nor predictions has no IoU and is left out of the mean; one that is "
    "predicted but never labelled has IoU 0 and is left out of the mean accuracy only."
)


def confusion_matrix(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Counts over (prediction, label) pairs of id maps 0..11: (12, 12) int64, rows are labels.

    Void is a column too: a prediction of "void" at a labelled pixel is wrong.
    """
    size = NUM_CLASSES + 1
    counts = torch.zeros(size, size, dtype=torch.long)
    for prediction, label in pairs:
        pair = prediction.long(), label.long()
        more = multiclass_confusion_matrix(*pair, size, validate_args=False)
        counts = counts.to(more.device) + more
    return counts


def scores(confusion: Tensor) -> dict:
    """Scores in percent from a (12, 12) confusion matrix, rows labels, columns predictions.

    Returns:
        accuracy: share of labelled pixels that are right (thesis, equation 6.1).
        mean_accuracy: mean over labelled classes of the share of their pixels found (6.2).
        miou: mean of `iou` over the classes that have one (6.4).
        iou: {class: TP / (TP + FP + FN)} (6.3).

        None where there is nothing to divide by.
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


def chance_scores(confusion: Sequence[Sequence[int]]) -> dict:
    """`scores` of uniform guesses, on average, for the labels of a (12, 12) confusion matrix."""
    share = torch.full((NUM_CLASSES + 1,), 1 / NUM_CLASSES).double()
    share[VOID] = 0
    return scores(torch.as_tensor(confusion).sum(dim=1, keepdim=True) * share)


def _percent(share: Tensor) -> float | None:
    return None if share.isnan() else 100 * share.item()


# Models


@torch.inference_mode()
def predict(model: SegmentationModel, images: Tensor, text: Tensor | None = None) -> Tensor:
    """(N, 3, H, W) images on any device -> (N, H, W) uint8 ids, by a model in `eval` mode.

    `text` (K, C) are classes to use instead of the model's.
    """
    device = next(model.parameters(), images).device
    with autocast(device):
        images = images.to(device)
        return model.segment(images) if text is None else model.segment(images, text)


@torch_defaults()
def evaluate(
    model: SegmentationModel,
    frames: Frames,
    batch_size: int = 2,
    desc: str = "evaluate",
    vocabulary: Vocabulary | None = None,
) -> dict:
    """Scores of a model on whole frames, see `scores`, with their `confusion` (12 x 12 lists).

    Several processes (`distributed.processes`) share the frames; each of them has to call this.
    `vocabulary` replaces the model's and is compared by cosine; `InputError` if the classes are not
    CamVid's 11, or the model compares with no words (SwiftNet).
    """
    if vocabulary and not isinstance(model, LanguageModel):
        raise InputError("vocabulary: the model does not compare with words, leave it out")
    if (names := (vocabulary or model).names) != CLASSES:
        raise InputError(f"classes are {', '.join(names)}: give a vocabulary of the 11 of CamVid")
    synchronise(model)
    device = next(model.parameters(), frames.images).device
    text = vocabulary and vocabulary.to(device).vectors
    batches = [x.split(batch_size) for x in share(frames.images, frames.labels)]
    batches = tqdm([*zip(*batches, strict=True)], desc, unit="batch", disable=not is_main())
    model.eval()
    pairs = ((predict(model, x, text), labels.to(device)) for x, labels in batches)
    confusion = total(confusion_matrix(pairs).to(device))
    return {**scores(confusion), "confusion": confusion.tolist()}


# Other words


def vocabulary_shift(
    model: LanguageModel,
    embed: Callable[[list[str]], Tensor],
    frames: Frames,
    asked: Mapping[str, Wording] | None = None,
) -> dict[str, dict]:
    """Scores of a model that is asked for the classes in other words.

    Args:
        embed: maps n words to their text embeddings (n, C) on the model's device.
        asked: by default `wordings()`, without any that cannot be embedded, with a warning.

    Returns:
        {wording: {"reason": ..., "words": ..., "trained": mIoU, "anchored": {"miou": ..., "iou":
        {class: ...}}, "cosine": {...}}} in percent: with the words of training compared by cosine,
        and with the wording compared in each way (see `Match.scores`; "clip" where possible), over
        the classes that it has. "own" is the wording of training.

    Raises:
        InputError: a wording in `asked` that cannot be embedded or is called "own"; SwiftNet.
    """
    if "own" in (asked or {}):
        raise InputError("the name 'own' is the wording of training: choose another name")
    prompts = map(" | ".join, model.vocabulary.prompts)
    own = {name: [text] for name, text in zip(model.names, prompts, strict=True)}
    rows = {"own": (Wording("the words of training", own), model.text)}
    for name, wording in (wordings() if asked is None else asked).items():
        try:
            rows[name] = wording, embed([phrase for phrase, _ in wording.phrases])
        except InputError as error:
            if asked is not None:
                raise InputError(f"wording {name!r}: {error}") from error
            warnings.warn(f"wording {name!r} is left out: {error}", stacklevel=2)
    confusion = _word_confusion(model, frames, rows)
    found = {}
    for name, (wording, _) in rows.items():
        trained = _grouped_scores(confusion["own"]["cosine"], wording.groups)["miou"]
        ways = {way: _grouped_scores(c, wording.groups) for way, c in confusion[name].items()}
        found[name] = {"reason": wording.reason, "words": wording.words, "trained": trained, **ways}
    return found


def _word_confusion(
    model: LanguageModel, frames: Frames, rows: Mapping[str, tuple[Wording, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """{wording: {way of comparison: confusion matrix}}; each frame is encoded once for all."""
    ways = COMPARE if model.has_clip_map else COMPARE[:2]
    confusion = {name: {way: confusion_matrix([]) for way in ways} for name in rows}
    text = torch.cat([vectors for _, vectors in rows.values()])
    sizes = [len(vectors) for _, vectors in rows.values()]
    classes = {name: torch.tensor([i for _, i in w.phrases]) for name, (w, _) in rows.items()}
    for image, label in zip(tqdm(frames.images, unit="frame"), frames.labels.cpu(), strict=True):
        with torch.inference_mode(), autocast(text.device):
            match = model.match(image[None].to(text.device), text, "clip" in ways)
            for name, part in zip(rows, match.split(sizes), strict=True):
                for way in ways:
                    best = best_class(part.scores(model.temperature, way))[0].cpu()
                    confusion[name][way] += confusion_matrix([(classes[name][best.long()], label)])
    return confusion


def _grouped_scores(confusion: Tensor, groups: Sequence[Sequence[int]]) -> dict:
    """mIoU and IoU over groups of classes, of which the first id of each stands for all."""
    target = torch.arange(len(confusion))
    for first, *others in groups:
        target[others] = first
    cells, merged = (target[:, None], target), torch.zeros_like(confusion)
    found = scores(merged.index_put(cells, confusion, accumulate=True))
    titles = {"+".join(CLASSES[i] for i in ids): CLASSES[ids[0]] for ids in groups}
    return {"miou": found["miou"], "iou": {t: found["iou"][name] for t, name in titles.items()}}


# Folders of id maps


@torch_defaults()
def score(predictions: str | Path, labels: str | Path) -> dict:
    """Scores of a folder of predicted id PNGs against a folder of label PNGs, matched by name.

    How ids count is read from dataset.json in each folder, or next to a folder called `*annot`; see
    `data.labels`. Warns where ids of a folder look shifted by one.

    Raises:
        InputError: folders or files that are missing, not id maps, or of different sizes.
    """
    folders, problems = (Path(predictions).resolve(), Path(labels).resolve()), []
    predicted, labelled = (image_files(folder, (".png",), problems) for folder in folders)
    raise_problems(problems)
    overlays = {f"{name}_overlay" for name in predicted} - labelled.keys()  # by `segment`
    predicted = {name: path for name, path in predicted.items() if name not in overlays}
    if alone := sorted(predicted.keys() ^ labelled.keys()):
        raise InputError(
            f"{len(alone)} file(s) in only one of {predictions} and {labels} (first: "
            f"{alone[0]}.png): add their counterparts or remove them"
        )
    infos = [read_dataset_info(x.parent if x.name.endswith("annot") else x) for x in folders]

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for name, file in predicted.items():
            ids, label = read_label(file, infos[0].ids), read_label(labelled[name], infos[1].ids)
            if ids.shape != label.shape:
                size, expected = (f"{x.shape[1]}x{x.shape[0]}" for x in (ids, label))
                turned = " (turned?)" if ids.shape == label.shape[::-1] else ""
                raise InputError(f"{file} is {size}, its label {expected}{turned}: make them equal")
            yield torch.from_numpy(ids), torch.from_numpy(label)

    confusion = confusion_matrix(pairs())
    if not confusion[:VOID].any():
        raise InputError(f"{labels}: every pixel is void; correct labels or dataset.json")
    for folder, counts in zip(folders, (confusion.sum(0), confusion.sum(1)), strict=True):
        if hint := shift_hint(counts.numpy()):
            warnings.warn(f"{folder}: {hint}", stacklevel=3)
    return scores(confusion)
