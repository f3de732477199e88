"""Classes in words: prompts from text, files and JSON, and other words for CamVid's classes."""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS
from camvid_lang.errors import InputError

Classes = str | Path | Sequence[str] | Mapping[str, str | Sequence[str]]
_COMMA = re.compile(r'("[^"]*")|[，、،]')  # of other scripts, not in quotes
_QUOTES = "“”„«»‘’`'"  # which csv does not know
_HOW = 'quote a whole class with straight quotes, as in "sign, round", tree, or write JSON'


def class_prompts(text_set: Classes) -> dict[str, list[str]]:
    """`parse_classes` that also takes "names" and "descriptions", of CamVid's 11 classes."""
    if text_set == "names":
        return {name: [name] for name in CLASSES}
    if text_set == "descriptions":
        return {name: [text] for name, text in DESCRIPTIONS.items()}
    try:
        return parse_classes(Path(text_set) if isinstance(text_set, str) else text_set)
    except InputError as error:
        known = "names, descriptions or a file of classes"
        raise InputError(f"text set '{text_set}' is not {known}: {error}") from error


def parse_classes(classes: Classes) -> dict[str, list[str]]:
    """{class: [prompt, ...]} from text: classes separated by commas or one a line, prompts by `|`.

    A class is named after its first prompt. Straight double quotes around a class protect its
    commas, as in a CSV file.

    Args:
        classes: such text, or JSON of a list or mapping; the path of a UTF-8 file of either; a list
            of classes, as in ["car | lorry", "tree"]; or a mapping from class to a prompt or
            several.

    Raises:
        InputError: a file that cannot be read, other quotes, no classes, an empty prompt, two
            classes of one name or of the same prompts (upper and lower case are equal).

    Example:
        >>> parse_classes('car | lorry, "sign, round", tree')
        {'car': ['car', 'lorry'], 'sign, round': ['sign, round'], 'tree': ['tree']}
    """
    if isinstance(classes, str):
        name = classes.strip()
        if os.path.isfile(name) and Path(name).suffix:
            classes = Path(name)
        elif re.fullmatch(r"""(?i)[^",|\n]+\.(json|txt)""", name):
            raise InputError(f"file {name} is missing; write a class of this name in quotes")
    if isinstance(classes, Path):
        try:
            return parse_classes(_read(classes.read_text(encoding="utf-8-sig")))
        except (OSError, ValueError) as error:
            raise InputError(f"{classes} is not a readable UTF-8 file: {error}") from error
        except InputError as error:
            raise InputError(f"{classes}: {error}") from error
    if isinstance(classes, str):
        classes = _read(classes)
    if isinstance(classes, Mapping):
        return _collect(classes.items())
    if not isinstance(classes, Sequence):
        raise InputError(f"classes are a list, a mapping or a text, not {type(classes).__name__}")
    groups = [x.split("|") if isinstance(x, str) else x for x in classes]
    return _collect((x[0] if x and isinstance(x, list) else x, x) for x in groups)


def _read(text: str) -> list | dict:
    """The entries of a text, or the list or mapping in JSON."""
    text = text.removeprefix("\ufeff").strip()
    if text[:1] + text[-1:] in ("[]", "{}"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise InputError(f'classes are not JSON ({error}), such as ["car", "tree"]') from error
    entries = []
    for line in text.splitlines():
        line = _COMMA.sub(lambda found: found[1] or ",", line)
        line = re.sub(r'"\s+(?=,|$)', '"', line)  # space after a quote, which csv rejects
        try:
            found = next(csv.reader([line], skipinitialspace=True, strict=True), [])
            if any('"' in entry or re.search(rf"(^|\|)\s*[{_QUOTES}]", entry) for entry in found):
                raise csv.Error("other quotes")
        except csv.Error as error:
            raise InputError(f"cannot read classes from {line[:60]!r} ({error}); {_HOW}") from error
        entries += filter(None, map(str.strip, found))
    return entries


def _unique(pairs: list[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):  # json would keep the last
        raise InputError("a class is given twice: name each class once")
    return found


def _collect(pairs: Iterable[tuple[object, object]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    seen: dict[object, str] = {}  # names and groups of prompts, by which a class is found again
    for name, group in pairs:
        prompts = group if isinstance(group, Sequence) and not isinstance(group, str) else [group]
        name, *prompts = (_clean(name, text) for text in (name, *(prompts or [""])))
        for key in (name.lower(), frozenset(prompt.lower() for prompt in prompts)):
            if other := seen.get(key):
                fix = f"as {other!r} (case and spaces do not count): remove one"
                raise InputError(f"class {name!r} is given twice, {fix}")
            seen[key] = name
        classes[name] = prompts
    if not classes:
        raise InputError('no classes are given: name at least one, as in "car, tree"')
    return classes


def _clean(name: object, text: object) -> str:
    """A prompt in NFC with single spaces."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"class {name!r}: its prompts must be texts that are not empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that are not UTF-8
        raise InputError(f"class {name!a}: write its prompts in UTF-8")
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class Wording:
    """Other words for CamVid's classes.

    Attributes:
        reason: why these words.
        words: {"tree": ["bush", "hedge"], "road+pavement": ["ground"], ...}: a class, or several
            taken as one, and its phrases, of which the one that fits a pixel best counts. Together
            the keys are the 11 classes, each once, with 255 phrases at most; else `InputError`.
    """

    reason: str
    words: Mapping[str, Sequence[str]]

    def __post_init__(self):
        named = sorted(name for key in self.words for name in key.split("+"))
        if named != sorted(CLASSES):
            fix = f"give each of the classes {', '.join(CLASSES)} once ('road+pavement' is both)"
            raise InputError(f"wording: its keys are {', '.join(self.words)}; {fix}")
        if (count := len(self.phrases)) > 255:
            raise InputError(f"wording: {count} phrases: ids are uint8, give at most 255")

    @property
    def groups(self) -> list[list[int]]:
        """The ids of the classes that each key stands for."""
        return [[CLASSES.index(name) for name in key.split("+")] for key in self.words]

    @property
    def phrases(self) -> list[tuple[str, int]]:
        """All phrases, each with the id of the first class that it stands for."""
        pairs = zip(self.groups, self.words.values(), strict=True)
        return [(phrase, ids[0]) for ids, words in pairs for phrase in words]


@cache
def wordings() -> dict[str, Wording]:
    """The package's wordings by name; near, far and unrelated words are from COCO-Stuff (2018).

    The tiny CLIP knows those of "synonyms", "coarser" and "finer".
    """
    file = Path(__file__).parent.parent / "assets" / "wordings.json"
    found = {name: Wording(**row) for name, row in json.loads(file.read_text("utf-8")).items()}
    described = Wording("two sentences on each class", class_prompts("descriptions"))
    return {**found, "descriptions": described}
