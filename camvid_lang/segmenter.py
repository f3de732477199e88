"""Any words on any picture: a trained run asked about phrases it was never taught.

Segment any pictures with any words, by a trained run."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camvid_lang.data.camvid import read_image
from camvid_lang.device import autocast, pick_device, to_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.models.segmentation import LanguageModel
from camvid_lang.models.text import class_prompts, embed_classes
from camvid_lang.report.figures import overlay, palette, to_png
from camvid_lang.run import load_run, trained_prompts

__all__ = [
    "Segmenter",
    "read_phrases",
    "segment_files",
]

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


class Segmenter:
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
        model, self.experiment, self.source = load_run(run)
        if not isinstance(model, LanguageModel):
            raise InputError(
                f"{run} is a run of {self.experiment.name}, which knows its 11 classes only: "
                "choose one of frozen-*, full-* or adapter-*"
            )
        self.model = to_device(model, self.device)
        self.temperature = model.temperature
        self.classes = trained_prompts(self.experiment)

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
        text = embed_classes(class_prompts(dict(phrases)), self.source).to(self.device)
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


# Larger pictures are segmented at this size and the result is brought back: the networks learned
# from frames of about 480x360, and memory grows with the area.
SEGMENT_MAX_SIDE = 1024


def segment_files(
    images: Sequence[str | Path],
    classes: Mapping[str, Sequence[str]],
    run: str | Path,
    out: str | Path,
    device: str = "auto",
    checkpoint: str = "last",
) -> list[Path]:
    """Write, for each picture NAME, `NAME.png` (ids) and `NAME_overlay.png` (with a legend).

    Args:
        images: picture files; ids are given at the picture's own size.
        classes: {class: [phrase, ...]}; id k is the k-th class.
        run: folder of a finished run of a language model.
        out: folder for the results, made if missing.
        checkpoint: which of the run's, `last` or `best`, see `runs.load_run`.

    Returns:
        The files written.

    Raises:
        InputError: a picture that cannot be read or would be overwritten, two of one name, more
            than 255 classes, or whatever `load_run` refuses. Pictures are all checked before the
            first is segmented.
    """
    if len(classes) > 255:
        raise InputError(f"{len(classes)} classes: an id map holds at most 255")
    stems: dict[str, Path] = {}
    for path in map(Path, images):
        if path.stem in stems:
            raise InputError(f"{path} and {stems[path.stem]} would both be written as {path.stem}")
        stems[path.stem] = path
        read_image(path, upright=True)
    out = Path(out)
    names = [(f"{stem}.png", f"{stem}_overlay.png") for stem in stems]
    targets = [(out / name).resolve() for pair in names for name in pair]
    for path in stems.values():
        if path.resolve() in targets:
            raise InputError(f"{path} would be overwritten by a result: choose another --out")
    if len(set(targets)) < len(targets):
        raise InputError("a result and an overlay would have one name: rename one of the pictures")
    where = pick_device(device)
    model, experiment, text_encoder = load_run(run, checkpoint)
    if text_encoder is None:
        raise InputError(f"{run} is a run of swiftnet, which knows its 11 classes only")
    model.text = embed_classes(classes, text_encoder)
    model = to_device(model, where)
    out.mkdir(parents=True, exist_ok=True)
    colours = palette(len(classes))
    written = []
    for path, (plain, coloured) in zip(stems.values(), names, strict=True):
        image = read_image(path, upright=True)
        ids = segment_image(model, image)
        figure = overlay(image, ids, list(classes), colours)
        for picture, name in ((_png(ids), plain), (to_png(figure), coloured)):
            temporary = out / f"{name}.part"
            temporary.write_bytes(picture)
            temporary.replace(out / name)
            written.append(out / name)
    return written


def segment_image(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture -> (H, W) uint8 ids, by a model in evaluation mode."""
    height, width = image.shape[:2]
    scale = min(1.0, SEGMENT_MAX_SIDE / max(height, width))
    # The encoders need 32 pixels a side for their coarsest map to have a cell.
    size = max(32, round(width * scale)), max(32, round(height * scale))
    resized = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    tensor = torch.from_numpy(resized).permute(2, 0, 1)[None]
    ids = predict(model, tensor.to(next(model.parameters()).device))[0].cpu().numpy()
    return np.array(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def _png(ids: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()
