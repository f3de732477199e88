"""Any words on any picture: a trained run asked about phrases it was never taught."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camvid_lang.assembly import text_source, trained_phrases
from camvid_lang.devices import autocast, pick_device, place
from camvid_lang.errors import InputError
from camvid_lang.models import LanguageModel
from camvid_lang.runs import load_run
from camvid_lang.text import class_phrases, embed_classes

__all__ = ["Words", "read_phrases"]

MAX_SIDE = 512  # pixels; a second or two on two slow cores


def read_phrases(text: str) -> dict[str, list[str]]:
    """One class a line, or separated by commas; `car | lorry` gives one class two phrases.

    Returns:
        {name: [phrase, ...]} in the order given; a repeated name counts once.

    Raises:
        InputError: nothing given.
    """
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",")]
    classes = {}
    for entry in filter(None, entries):
        phrases = [phrase.strip() for phrase in entry.split("|") if phrase.strip()]
        if phrases:
            classes.setdefault(" / ".join(phrases), phrases)
    if not classes:
        raise InputError("no phrase given: write some, as in: road, car | lorry, shop window")
    return classes


class Words:
    """A finished run's model, loaded once, to compare pictures with any phrases.

    Args:
        run: the run's folder.
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        classes: {name: [phrase, ...]} of the run's own 11 classes.
        temperature: what the run's loss divided cosines by.

    Raises:
        InputError: no finished run, or one without language (swiftnet).
    """

    def __init__(self, run: str | Path, device: str = "auto"):
        self.device = pick_device(device)
        model, self.experiment = load_run(run)
        if not isinstance(model, LanguageModel):
            raise InputError(
                f"{run} is a run of {self.experiment.name}, which knows its 11 classes only: "
                "choose one of frozen-*, full-* or adapter-*"
            )
        self.model = place(model, self.device)
        self.temperature = model.temperature
        self.source = text_source(self.experiment)
        self.classes = trained_phrases(self.experiment)

    @torch.inference_mode()
    def cosines(self, image: np.ndarray, phrases: dict[str, Sequence[str]]) -> np.ndarray:
        """Cosine of every pixel with every class.

        Args:
            image: (H, W, 3) uint8; larger ones are brought to a longer side of 512 pixels.
            phrases: {name: [phrase, ...]}, see `read_phrases`.

        Returns:
            (K, h, w) float32 in [-1, 1], h x w being the size the picture was brought to.

        Raises:
            InputError: a phrase that cannot be embedded.
        """
        text = embed_classes(class_phrases(dict(phrases)), self.source).to(self.device)
        tensor = torch.from_numpy(shrink(image)).permute(2, 0, 1)[None].to(self.device)
        with autocast(self.device):
            return self.model(tensor, text)[0].float().cpu().numpy()

    def similarity(self, phrases: Sequence[str]) -> np.ndarray:
        """Cosines (n, 11) of phrases with the run's own classes, by their text embeddings."""
        classes = embed_classes(self.classes, self.source)
        return (self.source.encode(phrases) @ classes.T).numpy()


def shrink(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with a longer side of at most 512 pixels, a shorter of at least 32."""
    height, width = image.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = max(32, round(width * scale)), max(32, round(height * scale))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
