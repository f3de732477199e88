"""How a model does when it is asked with other words than it was trained with.

Two measurements. *Vocabulary shift*: the classes are the same, their words are others (synonyms,
descriptions, finer or coarser words). *Held-out classes*: some classes were void in training and
are asked for by name, as in generalised zero-shot segmentation (Bucher et al., 2019).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, DESCRIPTIONS
from camvid_lang.device import autocast
from camvid_lang.errors import InputError
from camvid_lang.evaluation import confusion_matrix, held_out_scores, scores
from camvid_lang.models.segmentation import COMPARE, best_class
from camvid_lang.models.text import parse_classes
from camvid_lang.segmenter import Segmenter

__all__ = [
    "WORDINGS",
    "Wording",
    "measure",
    "read_wording",
    "vocabulary_shift",
]


@dataclass(frozen=True)
class Wording:
    """Other words for CamVid's classes.

    Attributes:
        reason: why these words.
        words: {"tree": ["bush", "hedge"], "road+pavement": ["ground"], ...}: a class, or several
            that are taken as one, and its phrases. A pixel goes to the class with the phrase that
            fits best. Together the keys are the 11 classes, each once.

    Raises:
        InputError: other keys.
    """

    reason: str
    words: Mapping[str, Sequence[str]]

    def __post_init__(self):
        named = sorted(name for key in self.words for name in key.split("+"))
        if named != sorted(CLASSES):
            raise InputError(
                f"wording: its keys are {', '.join(self.words)}; give each of the classes "
                f"{', '.join(CLASSES)} once ('road+pavement' takes two as one)"
            )

    @property
    def groups(self) -> list[list[int]]:
        """The ids of the classes that each key stands for."""
        return [[CLASSES.index(name) for name in key.split("+")] for key in self.words]


def _wording(reason: str, words: str, keys: Sequence[str] = CLASSES) -> Wording:
    phrases = [entry.strip().split(" | ") for entry in words.split(",")]
    return Wording(reason, dict(zip(keys, phrases, strict=True)))


# Near and far words, and unrelated ones, are from COCO-Stuff (Caesar et al., 2018), so that text
# banks of its classes have them. The tiny CLIP knows those of "synonyms", "coarser" and "finer".
WORDINGS = {
    "names": _wording("the class names", ", ".join(CLASSES)),
    "descriptions": Wording(
        "two sentences on each class", {name: [text] for name, text in DESCRIPTIONS.items()}
    ),
    "reversed": _wording(
        "the class names in reverse order, which must not matter",
        ", ".join(reversed(CLASSES)),
        CLASSES[::-1],
    ),
    "synonyms": _wording(
        "another common word for each class",
        "cloudy sky, house, lamp post, street, sidewalk, vegetation, traffic sign, railing, "
        "vehicle, person, cyclist",
    ),
    "near": _wording(
        "words of another data set for the same things",
        "clouds, house, pole, road, pavement, tree, stop sign, railing, car, person, bicycle",
    ),
    "far": _wording(
        "words for things that are only related",
        "fog, skyscraper, pole, road, pavement, bush, stop sign, railing, bus, person, bicycle",
    ),
    "finer": _wording(
        "several kinds of a class; the kind that fits best counts for the class",
        "sky | clouds, house | shop | tower, lamp post | mast | bollard, lane | asphalt, kerb | "
        "footpath, tree | bush | hedge, traffic sign | traffic light, railing | picket fence, "
        "car | lorry | bus | van, man on foot | woman walking | child, cyclist | bicycle",
    ),
    "coarser": _wording(
        "one word for several classes, which are then taken as one",
        "sky, facade | barrier, column, street, vegetation, vehicle, human",
        ("sky", "building+fence", "pole+sign", "road+pavement", "tree", "car",
         "pedestrian+bicyclist"),
    ),
    "unrelated": _wording(
        "words for things that no frame shows: what is left is chance",
        "banana, pizza, elephant, laptop, sheep, cake, giraffe, spoon, teddy bear, toilet, kite",
    ),
}  # fmt: skip


def read_wording(path: str | Path) -> Wording:
    """A wording from a file of classes (see `models.text.parse_classes`): {class: [phrase, ...]}.

    Raises:
        InputError: an unreadable file, or other classes than CamVid's.
    """
    return Wording(f"from {Path(path).name}", parse_classes(Path(path)))


def measure(segmenter: Segmenter, frames: Frames, wordings: Mapping[str, Wording]) -> dict:
    """What vocabulary.json holds: `vocabulary_shift`, and with held-out classes their scores."""
    found = vocabulary_shift(segmenter, frames, wordings)
    held_out = segmenter.experiment.held_out_classes
    return {
        "experiment": segmenter.experiment.name,
        "test_frames": len(frames),
        "digest": frames.digest,
        "wordings": found,
        "held_out": held_out,
        "held_out_scores": {
            way: held_out_scores(found["own"][way]["iou"], held_out)
            for way in COMPARE
            if held_out and way in found["own"]
        },
    }


def vocabulary_shift(
    segmenter: Segmenter, frames: Frames, wordings: Mapping[str, Wording] = WORDINGS
) -> dict[str, dict]:
    """Ask a model for the classes in other words, and score it with the frames' labels.

    Args:
        segmenter: of a run with language.

    Returns:
        {wording: {"reason": ..., "words": ..., "trained": mIoU, "anchored": {"miou": ..., "iou":
        {class: ...}}, "cosine": {...}}} in percent: with the words of training compared by cosine,
        and with the wording compared in each way (see `Match.scores`; "clip" where possible). Where
        a wording takes classes as one, all are over the classes so taken. "own": that of training.
        A wording of the package that the text encoder lacks is left out, with a warning.

    Raises:
        InputError: SwiftNet; another wording that cannot be embedded.
    """
    segmenter.need_language()
    if "own" in wordings:
        raise InputError("wording 'own' is that of training: give the other another name")
    model = segmenter.model
    own = {name: [" | ".join(prompts)] for name, prompts in model.prompts.items()}
    own = Wording("the words of training", own)
    asked, rows = {"own": own, **wordings}, {"own": model.text}
    for name, wording in wordings.items():
        try:
            phrases = [phrase for words in wording.words.values() for phrase in words]
            unique = list(dict.fromkeys(phrases))  # one phrase may stand for two classes
            vectors = segmenter.embed(unique)[[unique.index(phrase) for phrase in phrases]]
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
        found[name]["trained"] = _scores(confusion["own", "cosine"], groups)["miou"]
        found[name] |= {way: _scores(confusion[name, way], groups) for way in ways}
    return found


def _scores(confusion: Tensor, groups: Sequence[Sequence[int]]) -> dict:
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
