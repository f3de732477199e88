"""Text embeddings of classes: from an open_clip text tower, or from a file of phrases and vectors.

Both sources turn phrases into rows of length one in float32. A class may have several phrases;
its embedding is their average, brought back to length one.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.classes import ALIASES, CLASSES, DESCRIPTIONS
from camvid_lang.errors import InputError
from camvid_lang.models.encoder import fingerprint, load_clip

__all__ = [
    "CLIPText",
    "PhraseFile",
    "TextSource",
    "cache_folder",
    "class_phrases",
    "embed_classes",
    "parse_classes",
]

MAX_PHRASE_CHARACTERS = 2000  # no phrase within 77 tokens is longer; keeps the tokenizer fast


class TextSource(Protocol):
    """Anything that embeds phrases."""

    label: str

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """n phrases -> (n, C) float32, rows of length one."""


def class_phrases(classes: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> dict:
    """The phrases of each class: {class name: [phrase, ...]}, in order.

    Args:
        classes: `names` or `descriptions` for the 11 classes of CamVid, the path of a JSON file
            holding a list or a mapping, or such a list (each phrase its own class) or mapping
            (class name to a phrase or several).

    Raises:
        InputError: nothing in it, an empty or repeated phrase, or something that is no text.
    """
    if isinstance(classes, str):
        if classes == "names":
            return {name: [name] for name in CLASSES}
        if classes == "descriptions":
            return {name: [text] for name, text in DESCRIPTIONS.items()}
        try:
            return class_phrases(_read_json(Path(classes)))
        except InputError as error:
            told = str(error)
            named = told if classes in told else f"text set {classes}: {told}"
            raise InputError(named) from None
    if isinstance(classes, Mapping):
        pairs = [(k, [v] if isinstance(v, str) else v) for k, v in classes.items()]
    elif isinstance(classes, Sequence):
        pairs = [(phrase, [phrase]) for phrase in classes]
    else:
        raise InputError(f"classes are a list or a mapping, not {type(classes).__name__}")
    if not pairs:
        raise InputError('the class list is empty: give at least one phrase, as in "car, tree"')
    result = {}
    for name, phrases in pairs:
        if not isinstance(phrases, Sequence) or not phrases:
            raise InputError(f"class {name!r} has no phrase: give one or a list of them")
        for phrase in (name, *phrases):
            if not isinstance(phrase, str) or not phrase.strip():
                raise InputError(f"class {name!r} has a phrase that is empty or no text")
            if phrase.encode(errors="ignore").decode() != phrase:
                raise InputError(f"phrase {phrase!a} holds what is no UTF-8 character")
        name = name.strip()
        if name in result:
            raise InputError(f"class {name!r} is given twice: name each class once")
        result[name] = [" ".join(phrase.split()) for phrase in phrases]
    return result


class_prompts = class_phrases


def parse_classes(text: str) -> dict:
    """`class_phrases` of a comma-separated line; `car|lorry` gives one class two phrases."""
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",")]
    if entries and not entries[-1]:
        entries.pop()
    classes = {}
    for entry in entries:
        phrases = [phrase.strip() for phrase in entry.split("|")]
        if phrases[0] in classes:
            raise InputError(f"class {phrases[0]!r} is given twice: name each class once")
        classes[phrases[0]] = phrases
    return class_phrases(classes)


def embed_classes(classes: Mapping[str, Sequence[str]], source: TextSource) -> Tensor:
    """Text matrix (K, C), float32, rows of length one, in the order of `classes`.

    Raises:
        InputError: a class whose phrases point in opposite directions, so that nothing is left.
    """
    phrases = [phrase for group in classes.values() for phrase in group]
    vectors = source.encode(phrases).split([len(group) for group in classes.values()])
    means = torch.stack([group.mean(dim=0) for group in vectors])
    for name, length in zip(classes, means.norm(dim=1).tolist(), strict=True):
        if not length > 1e-6:  # also refuses NaN
            raise InputError(
                f"class {name!r}: its phrases' vectors cancel or are not finite: change its phrases"
            )
    return F.normalize(means, dim=1)


def cache_folder() -> Path:
    """Where computed text embeddings are kept: CAMVID_LANG_CACHE, or the user's cache folder."""
    if folder := os.environ.get("CAMVID_LANG_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "camvid_lang"


class CLIPText:
    """Text tower of an open_clip model, with a cache on disk by model, weights and phrase.

    The tower is loaded only for a phrase that the cache lacks.
    """

    def __init__(self, name: str, weights: str = "", cache: Path | None = None):
        self.name, self.weights = name, weights
        self.label = f"{name} text tower"
        self.cache = (cache or cache_folder()) / "text"
        self._identity: str | None = None
        self._clip: open_clip.CLIP | None = None

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """n phrases -> (n, C) float32, rows of length one.

        Raises:
            InputError: a phrase over the context (77 tokens), or weights that are missing.
        """
        found = {phrase: self._cached(phrase) for phrase in phrases}
        missing = [phrase for phrase, vector in found.items() if vector is None]
        if missing:
            for phrase, vector in zip(missing, self._compute(missing), strict=True):
                found[phrase] = vector
                self._store(phrase, vector)
        return torch.from_numpy(np.stack([found[phrase] for phrase in phrases]))

    def _compute(self, phrases: list[str]) -> np.ndarray:
        # Kept: whoever asks for one new phrase soon asks for another.
        clip = self._clip = self._clip or load_clip(self.name, self.weights)
        tokens = tokenise(phrases, open_clip.get_tokenizer(self.name), clip.context_length)
        with torch.no_grad():
            batches = [clip.encode_text(batch, normalize=True) for batch in tokens.split(64)]
        return torch.cat(batches).float().numpy()

    def _file(self, phrase: str) -> Path:
        if self._identity is None:
            self._identity = f"{self.name}|{fingerprint(self.name, self.weights)}"
        key = hashlib.sha256(f"{self._identity}|{phrase}".encode()).hexdigest()
        return self.cache / f"{key[:40]}.npy"

    def _cached(self, phrase: str) -> np.ndarray | None:
        try:
            vector = np.load(self._file(phrase), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent or damaged: computed again
            return None
        usable = vector.ndim == 1 and vector.dtype == np.float32 and np.isfinite(vector).all()
        return vector if usable else None

    def _store(self, phrase: str, vector: np.ndarray) -> None:
        file = self._file(phrase)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}.part")
            with open(temporary, "wb") as target:
                np.save(target, vector)
            temporary.replace(file)
        except OSError:
            pass  # a cache that cannot be written only costs time


def tokenise(phrases: Sequence[str], tokenizer, context: int) -> Tensor:
    """(n, context) token ids; a phrase that does not fit is refused instead of cut in silence.

    Raises:
        InputError: a phrase has more tokens than the context.
    """
    for phrase in phrases:
        # Cut long after the context ends, so that what lies past it is seen.
        tokens = tokenizer([phrase[:MAX_PHRASE_CHARACTERS]], context_length=MAX_PHRASE_CHARACTERS)
        if len(phrase) > MAX_PHRASE_CHARACTERS or tokens[0, context:].any():
            shown = phrase if len(phrase) <= 60 else f"{phrase[:57]}..."
            raise InputError(
                f"phrase {shown!r} is longer than CLIP's {context} tokens: shorten it "
                "(about 50 words fit)"
            )
    return tokenizer(list(phrases), context_length=context)


class PhraseFile:
    """Text embeddings from an .npz with `phrases` (n,) and `embeddings` (n, C).

    A phrase may carry the name of its collection before the last slash (`cityscapes/road`); it is
    found with or without it, and the vectors of one phrase in several collections are averaged.
    A class name of CamVid that the file lacks is looked for under `taxonomy.ALIASES`.

    Raises:
        InputError: no such file, no such arrays, shapes that do not match, values not finite.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.label = f"phrase file {self.path.name}"
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                phrases, vectors = archive["phrases"], archive["embeddings"]
        except FileNotFoundError as error:
            raise InputError(f"text bank {path} does not exist") from error
        except KeyError as error:
            raise InputError(
                f"text bank {path} lacks an array: it needs 'phrases' and 'embeddings'"
            ) from error
        except Exception as error:  # numpy answers a damaged archive with almost any
            raise InputError(
                f"text bank {path} is no .npz of plain arrays: {_short(error)}"
            ) from error
        fits = vectors.ndim == 2 and phrases.shape == vectors.shape[:1] and len(phrases)
        if not fits or phrases.dtype.kind != "U" or vectors.dtype.kind != "f":
            raise InputError(
                f"text bank {path}: 'phrases' must be n texts and 'embeddings' n x C numbers, "
                f"not {phrases.shape} {phrases.dtype} and {vectors.shape} {vectors.dtype}"
            )
        with np.errstate(over="ignore"):  # infinite then, which the next line refuses
            vectors = torch.from_numpy(vectors.astype(np.float32))
        lengths = vectors.norm(dim=1)
        if not vectors.isfinite().all() or not lengths.isfinite().all() or lengths.min() < 1e-12:
            raise InputError(f"text bank {path} holds a vector that is zero or not finite")
        self._vectors = F.normalize(vectors, dim=1)
        self._rows: dict[str, list[int]] = {}
        for row, phrase in enumerate(phrases.tolist()):
            for key in {_key(phrase), _key(phrase.rsplit("/", 1)[-1])}:
                self._rows.setdefault(key, []).append(row)

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """n phrases -> (n, C) float32, rows of length one.

        Raises:
            InputError: a phrase that the file does not hold; near ones are named.
        """
        return torch.stack([self._vector(phrase) for phrase in phrases])

    def _vector(self, phrase: str) -> Tensor:
        for word in (phrase, *ALIASES.get(phrase, ())):
            if rows := self._rows.get(_key(word)):
                return F.normalize(self._vectors[rows].mean(dim=0), dim=0)
        near = difflib.get_close_matches(_key(phrase), self._rows, n=3, cutoff=0.5)
        hint = f"near ones: {', '.join(near)}" if near else "and nothing near it"
        raise InputError(f"text bank {self.path} does not hold the phrase {phrase!r} ({hint})")


def _key(phrase: str) -> str:
    return " ".join(phrase.lower().replace("_", " ").replace("-", " ").split())


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"text set '{path}' is neither 'names', 'descriptions' nor a JSON file"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"text set {path} is no JSON list or mapping: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


TextEncoder = TextSource
TextBank = PhraseFile
