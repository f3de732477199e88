"""Text embeddings of classes: by a text tower of open_clip, or from a file of prompts and vectors.

Both turn prompts into float32 vectors of length one. A class may have several prompts; its
embedding is their mean, normalised.
"""

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.classes import ALIASES, CLASSES, DESCRIPTIONS
from camvid_lang.errors import InputError


def class_prompts(
    classes: str | Sequence[str] | Mapping[str, str | Sequence[str]],
) -> dict[str, list[str]]:
    """The prompts of each class, {class: [prompt, ...]}, in the order given.

    Args:
        classes: `names` or `descriptions` of CamVid's 11 classes; the path of a file, see
            `parse_classes`; a list of classes, as in ["car | lorry", "tree"] with two prompts for
            the first; or a mapping from class to a prompt or several.

    Raises:
        InputError: an unreadable file, no classes, an empty prompt, two classes of one name or of
            the same prompts. Upper and lower case are one, as they are to CLIP.

    Example:
        >>> class_prompts({"vehicle": ["car", "lorry"], "tree": "tree"})
        {'vehicle': ['car', 'lorry'], 'tree': ['tree']}
    """
    if isinstance(classes, str):
        if classes == "names":
            return {name: [name] for name in CLASSES}
        if classes == "descriptions":
            return {name: [text] for name, text in DESCRIPTIONS.items()}
        try:
            return _read_classes(classes)
        except InputError as error:
            raise InputError(
                f"text set '{classes}' is not names, descriptions or a file: {error}"
            ) from error
    if isinstance(classes, Mapping):
        return _collect(classes.items())
    if not isinstance(classes, Sequence):
        raise InputError(f"classes are a list, a mapping or a text, not {type(classes).__name__}")
    return _collect((x, x.split("|") if isinstance(x, str) else x) for x in classes)


_COMMAS = ",，、،"
# A class or prompt in quotes, straight or typographic, between two separators.
_QUOTED = re.compile(
    rf"""(?:^|(?<=[|{_COMMAS}]))\s*
    (?: "([^"]*)" | [“”„«]([^“”»]*)[“”»] | ['‘]([^'’]*)['’] )
    \s*(?=[|{_COMMAS}]|$)""",
    re.VERBOSE,
)
_HIDDEN = "\ue000\ue001\ue002\ue003"  # in place of commas in quotes; Unicode has no letters there


def parse_classes(
    text: str | Path | Sequence[str] | Mapping[str, str | Sequence[str]],
) -> dict[str, list[str]]:
    """Classes from text: separated by commas or one a line; `|` separates a class's prompts.

    A class is named after its first prompt. Quotes around a class or prompt protect its commas.

    Args:
        text: also the path of a UTF-8 file, of JSON (a list or mapping) if it ends in `.json`, or
            else of such text; JSON itself; or a list or mapping for `class_prompts`.

    Raises:
        InputError: a file that cannot be read, an unclosed quote, and as `class_prompts`.

    Example:
        >>> parse_classes('car | lorry, "sign, round", tree')
        {'car': ['car', 'lorry'], 'sign, round': ['sign, round'], 'tree': ['tree']}
    """
    if not isinstance(text, str | Path):
        return class_prompts(text)
    name = str(text).strip()
    if isinstance(text, Path) or (os.path.isfile(name) and Path(name).suffix):
        return _read_classes(name)
    if re.fullmatch(rf"""(?i)[^"“”„«'‘|{_COMMAS}]+\.(json|txt)""", name):
        raise InputError(f"file {name} is missing; write a class of this name in quotes")
    return _parse(str(text))


def _read_classes(path: str) -> dict[str, list[str]]:
    json_file = path.lower().endswith(".json")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return _parse_json(text) if json_file else _parse(text)
    except (OSError, ValueError, InputError) as error:
        kind = "JSON" if json_file else "text"
        raise InputError(
            f"{path} is not a readable UTF-8 {kind} file of classes ({error})"
        ) from error


def _parse_json(text: str) -> dict[str, list[str]]:
    def refuse_twice(pairs: list[tuple[str, object]]) -> dict:  # json would keep the last
        if len(found := dict(pairs)) < len(pairs):
            raise InputError("a class is given twice: name each class once")
        return found

    try:
        read = json.loads(text, object_pairs_hook=refuse_twice)
    except (ValueError, RecursionError) as error:
        raise InputError(f'classes are not JSON ({error}), such as ["car", "tree"]') from error
    if not isinstance(read, list | dict):
        raise InputError("a JSON list or mapping of prompts is needed")
    return class_prompts(read)


def _parse(text: str) -> dict[str, list[str]]:
    text = text.removeprefix("\ufeff").strip()
    if text[:1] + text[-1:] in ("[]", "{}"):
        return _parse_json(text)
    hide, show = str.maketrans(_COMMAS, _HIDDEN), str.maketrans(_HIDDEN, _COMMAS)
    classes = []
    for line in text.splitlines():
        line = _QUOTED.sub(lambda found: found[found.lastindex].translate(hide), line)
        for entry in re.split(f"[{_COMMAS}]", line):
            prompts = [prompt.strip().translate(show) for prompt in entry.split("|")]
            if broken := [prompt for prompt in prompts if prompt[:1] in {*'"“”„«'}]:
                raise InputError(
                    f"classes cannot be read from {broken[0][:60]!r}: quote a whole class, as in "
                    '"sign, round", tree'
                )
            if prompts != [""]:
                classes.append((prompts[0], prompts))
    return _collect(classes)


def _collect(pairs: Iterable[tuple[str, str | Sequence[str]]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    seen: dict[object, str] = {}  # names and groups of prompts, by which a class is found again
    for name, prompts in pairs:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        for prompt in (name, *prompts) if isinstance(prompts, Sequence) and prompts else (None,):
            if not isinstance(prompt, str) or not prompt.strip():
                raise InputError(f"class {name!r}: its prompts must be texts that are not empty")
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # bytes that are not UTF-8
                raise InputError(f"class {name!a}: write its prompts in UTF-8")
        name = unicodedata.normalize("NFC", name.strip())
        prompts = [" ".join(unicodedata.normalize("NFC", prompt).split()) for prompt in prompts]
        for key in (name.lower(), frozenset(prompt.lower() for prompt in prompts)):
            if other := seen.get(key):
                raise InputError(
                    f"class {name!r} is given twice, as {other!r} (case and spaces do not count): "
                    "name each class once"
                )
            seen[key] = name
        classes[name] = prompts
    if not classes:
        raise InputError('no classes are given: name at least one, as in "car, tree"')
    return classes


class TextEncoder(Protocol):
    """Anything that embeds prompts; `label` names it in results."""

    label: str

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """n prompts -> (n, C) float32, rows of length one."""


def embed_classes(classes: Mapping[str, Sequence[str]], encoder: TextEncoder) -> Tensor:
    """Text matrix (K, C), float32, rows of length one, of {class: [prompt, ...]}.

    Raises:
        InputError: a prompt that cannot be embedded, or a class whose embeddings cancel.
    """
    vectors = encoder.encode([prompt for prompts in classes.values() for prompt in prompts])
    groups = vectors.split([len(prompts) for prompts in classes.values()])
    means = torch.stack([group.mean(dim=0) for group in groups])
    for name, length in zip(classes, means.norm(dim=1).tolist(), strict=True):
        if not length > 1e-6:  # also refuses NaN
            raise InputError(f"class {name!r}: the embeddings of its prompts cancel: change them")
    return F.normalize(means, dim=1)


class CLIPTextEncoder:
    """The text tower of a loaded open_clip model.

    Args:
        clip: the model; its image tower may be part of a segmentation model.
        name: its open_clip name, which determines the tokenizer.
    """

    def __init__(self, clip: open_clip.CLIP, name: str):
        self.clip = clip
        self.label = f"{name} text tower"
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """n prompts -> (n, C) float32, rows of length one.

        Raises:
            InputError: a prompt longer than the context (77 tokens), which CLIP would cut.
        """
        context = self.clip.context_length
        # One token more than fits, so that longer prompts show.
        tokens = self.tokenizer(list(prompts), context_length=context + 1)
        for prompt, row in zip(prompts, tokens, strict=True):
            if row[context]:
                raise InputError(
                    f"prompt {prompt[:60]!r} is longer than CLIP's {context} tokens: shorten it"
                )
        batches = tokens[:, :context].split(64)
        return torch.cat([self.clip.encode_text(b, normalize=True) for b in batches]).float()


class TextBank:
    """Text embeddings from an .npz file of `phrases`, n texts, and `embeddings`, (n, C) floats.

    A prompt may carry the name of its collection before the last slash (`cityscapes/road`); it is
    found with or without it, and the vectors of one prompt in several collections are averaged.
    A class name of CamVid that is missing is looked up under `data.classes.ALIASES`.

    Attributes:
        model: the open_clip name of the CLIP that made it, an optional array in the file, or "".

    Raises:
        InputError: a missing or damaged file, wrong shapes, or vectors that are not usable.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.label = f"text bank {self.path.name}"
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                phrases = archive["phrases"].astype(str)
                vectors = torch.from_numpy(archive["embeddings"]).float()
                model = archive["model"] if "model" in archive else np.array([], str)
                self.model = " ".join(model.astype(str).flat)
            if vectors.ndim != 2 or phrases.shape != vectors.shape[:1]:
                raise ValueError(f"shapes are {phrases.shape} and {tuple(vectors.shape)}")
            if not (vectors.norm(dim=1) > 1e-12).all() or not vectors.isfinite().all():
                raise ValueError("a vector is zero or not finite")
        except Exception as error:  # numpy and zipfile raise almost anything for damaged files
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"text bank {path} is not an .npz of 'phrases' (n,) and 'embeddings' (n, C): "
                f"{reason}"
            ) from error
        self._vectors = F.normalize(vectors, dim=1)
        self._rows: dict[str, list[int]] = {}
        for row, phrase in enumerate(phrases.tolist()):
            for key in {_key(phrase), _key(phrase.rsplit("/", 1)[-1])}:
                self._rows.setdefault(key, []).append(row)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """n prompts -> (n, C) float32, rows of length one.

        Raises:
            InputError: a prompt that is missing; similar ones are named.
        """
        return torch.stack([self._vector(prompt) for prompt in prompts])

    def _vector(self, prompt: str) -> Tensor:
        for word in (prompt, *ALIASES.get(prompt, ())):
            if rows := self._rows.get(_key(word)):
                return F.normalize(self._vectors[rows].mean(dim=0), dim=0)
        similar = difflib.get_close_matches(_key(prompt), self._rows, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(similar)}?" if similar else "and nothing similar"
        raise InputError(f"text bank {self.path} has no prompt {prompt!r}: {hint}")


def _key(phrase: str) -> str:
    phrase = unicodedata.normalize("NFC", phrase)
    return " ".join(phrase.lower().replace("_", " ").replace("-", " ").split())
