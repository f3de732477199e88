"""The vocabulary of a model: classes, their prompts, and the embeddings of these.

`embed` turns {class: [prompt, ...]}, see `data.words`, into vectors by a text tower of open_clip or
from a file. The vector of a class with several prompts is their mean, normalised.
"""

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.classes import ALIASES
from camvid_lang.errors import InputError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Classes in words."""

    names: tuple[str, ...]  # of the K classes, by id
    prompts: tuple[tuple[str, ...], ...]  # of each class, one or several
    vectors: Tensor  # (K, C) float32 text embeddings, rows of length one

    def to(self, device: torch.device) -> "Vocabulary":
        """The same words with the vectors on `device`."""
        return replace(self, vectors=self.vectors.to(device))

    def state(self) -> dict:
        """Plain data and a tensor on the CPU, of which `Vocabulary(**state)` is made again."""
        return {**vars(self), "vectors": self.vectors.detach().cpu()}

    def same_vectors(self, other: "Vocabulary") -> bool:
        """Whether both are of the same text encoder, for the same prompts."""
        one, two = self.vectors.cpu(), other.vectors.cpu()
        # Not bit for bit: another machine embeds the same words with other rounding errors.
        return one.shape == two.shape and torch.allclose(one, two, atol=1e-3)


class TextEncoder(Protocol):
    """Anything that embeds prompts; `label` names it in results."""

    label: str

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """n prompts -> (n, C) float32, rows of length one."""


def embed(prompts: Mapping[str, Sequence[str]], encoder: TextEncoder) -> Vocabulary:
    """The vocabulary of {class: [prompt, ...]}.

    `InputError`: a prompt that cannot be embedded, or a class whose embeddings cancel.
    """
    vectors = encoder.encode([prompt for group in prompts.values() for prompt in group])
    groups = vectors.split([len(group) for group in prompts.values()])
    means = torch.stack([group.mean(dim=0) for group in groups])
    for name, length in zip(prompts, means.norm(dim=1).tolist(), strict=True):
        if not length > 1e-6:  # also refuses NaN
            raise InputError(f"class {name!r}: the embeddings of its prompts cancel: change them")
    texts = tuple(map(tuple, prompts.values()))
    return Vocabulary(tuple(prompts), texts, F.normalize(means, dim=1))


class CLIPTextEncoder:
    """The text tower of an open_clip model, whose `name` determines the tokenizer."""

    def __init__(self, clip: open_clip.CLIP, name: str):
        self.clip, self.label = clip, f"{name} text tower"
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """See `TextEncoder`; `InputError`: more than 77 tokens, which CLIP would cut."""
        context = self.clip.context_length
        # One token more than fits, so that longer prompts show.
        tokens = self.tokenizer(list(prompts), context_length=context + 1)
        for prompt, row in zip(prompts, tokens, strict=True):
            if row[context]:
                what = f"prompt {prompt[:60]!r} is longer than CLIP's {context} tokens"
                raise InputError(f"{what}: shorten it")
        batches = tokens[:, :context].split(64)
        return torch.cat([self.clip.encode_text(b, normalize=True) for b in batches]).float()


class TextBank:
    """Text embeddings from an .npz file of `phrases`, n texts, and `embeddings`, (n, C) floats.

    A prompt may carry the name of its collection before the last slash (`cityscapes/road`); it is
    found with or without it, and the vectors of one prompt in several collections are averaged.
    A class name of CamVid that is missing is looked up under `data.classes.ALIASES`.

    `model` is the open_clip name of the CLIP that made it, an optional array in the file, or "".

    `InputError`: a missing or damaged file, wrong shapes, or vectors that are not usable.
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
            what = "is not an .npz of 'phrases' (n,) and 'embeddings' (n, C)"
            raise InputError(f"text bank {path} {what}: {reason}") from error
        self._vectors = F.normalize(vectors, dim=1)
        self._rows: dict[str, list[int]] = {}
        for row, phrase in enumerate(phrases.tolist()):
            for key in {_key(phrase), _key(phrase.rsplit("/", 1)[-1])}:
                self._rows.setdefault(key, []).append(row)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """See `TextEncoder`; `InputError`: a prompt that is missing; similar ones are named."""
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
