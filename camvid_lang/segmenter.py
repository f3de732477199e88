"""Any words on any image, by a finished run: inference of the API, command line and notebook."""

import colorsys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.classes import CLASSES, PALETTE
from camvid_lang.device import autocast, pick_device, to_device
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import TextEncoder, class_prompts, embed_classes, parse_classes
from camvid_lang.run import load_run

__all__ = ["Segmentation", "Segmenter", "class_colours", "load", "read_rgb"]

MAX_SIDE = 1024  # pixels; models are trained on frames of 480x360, and memory grows with the area
DEMO = Path(__file__).parent / "assets" / "demo" / "full-narrow-descriptions"
MIN_SIDE = 32  # pixels; the stride of the encoders' coarsest map

ImageLike = str | Path | Image.Image | np.ndarray
Classes = str | Path | Sequence[str] | Mapping[str, str | Sequence[str]]


def load(
    folder: str | Path,
    checkpoint: str = "last",
    device: str = "auto",
    text_bank: str | Path | None = None,
    weights: str | Path | None = None,
) -> "Segmenter":
    """Load the model of a run.

    Args:
        folder: the run's folder; or `demo`, a small model that the package carries, trained on
            drawn scenes.
        checkpoint: `last`, the end of training, or `best`, by mIoU over the training crops.
        device: `cpu`, `cuda`, or `auto` (CUDA where there is a GPU).
        text_bank: where the run's text bank is now, if it has moved.
        weights: where the weights of the run's encoder are now, if they have moved.

    Raises:
        InputError: no run in the folder, no such checkpoint; weights of a frozen encoder that are
            missing or others than the run was made with.
    """
    target = pick_device(device)
    if str(folder) == "demo" and not Path(folder).exists():
        folder = DEMO
    model, experiment, text_encoder = load_run(folder, checkpoint, text_bank, weights)
    return Segmenter(to_device(model, target), experiment, text_encoder)


@dataclass(frozen=True)
class Segmentation:
    """`ids` (H, W) uint8 are indices into `classes`; `image` (H, W, 3) uint8 is what was read."""

    image: np.ndarray
    ids: np.ndarray
    classes: list[str]

    @property
    def colours(self) -> list[tuple[int, int, int]]:
        """The colour of each class in `overlay`, RGB in 0..255."""
        return class_colours(self.classes)

    def overlay(self, alpha: float = 0.6) -> Image.Image:
        """The image blended with its classes' colours, of which `alpha` is the share."""
        colours = np.array(self.colours, np.uint8)[self.ids]
        return Image.blend(Image.fromarray(self.image), Image.fromarray(colours), alpha)


class Segmenter:
    """A run's model, loaded once by `load`, that segments any image into any classes.

    In its methods `image` is what `read_rgb` accepts; `classes` are a list of words, a mapping
    {class: [prompt, ...]}, a text or file for `models.text.parse_classes` ("road, car | lorry"),
    or None for the run's own 11 classes. An image with a side over `max_side` pixels is brought to
    that size for the model, and the result back to the image's own.

    Attributes:
        model: in evaluation mode; its `forward` takes (N, 3, H, W) images.
        experiment: the settings of the run.
        classes: names of the run's own 11 classes.
        temperature: divides the cosines in the softmax of the loss.
    """

    def __init__(
        self, model: SegmentationModel, experiment: Experiment, text_encoder: TextEncoder | None
    ):
        self.model, self.experiment = model, experiment
        self.temperature: float = model.temperature
        self.classes = list(CLASSES)
        self._text_encoder = text_encoder
        self._embedded: dict[tuple, Tensor] = {}  # by prompts: many images, the same classes
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def segment(
        self, image: ImageLike, classes: Classes | None = None, max_side: int = MAX_SIDE
    ) -> Segmentation:
        """The best class of each pixel; ids are upsampled nearest.

        Raises:
            InputError: an image or classes that cannot be read, a prompt that cannot be embedded,
                a text bank or weights, needed for other words than the run's own, that are missing
                or of other content; words for SwiftNet, which has its own classes only.
        """
        names, text = self._text(classes)
        if len(names) == 1:
            warnings.warn(one_class_note(names[0]), stacklevel=3)
        rgb = read_rgb(image)
        with autocast(self._device):
            ids = self.model.segment(self._input(rgb, max_side), *text)[0].cpu().numpy()
        resized = Image.fromarray(ids).resize(rgb.shape[1::-1], Image.Resampling.NEAREST)
        return Segmentation(rgb, np.array(resized), names)

    @torch.inference_mode()
    def cosines(
        self, image: ImageLike, classes: Classes | None = None, max_side: int = MAX_SIDE
    ) -> np.ndarray:
        """(K, H, W) float32 cosine similarities in [-1, 1], upsampled bilinearly.

        Raises:
            InputError: as `segment`, and any use of SwiftNet.
        """
        self._need_language()
        _, text = self._text(classes)
        rgb = read_rgb(image)
        with autocast(self._device):
            cosines = self.model(self._input(rgb, max_side), *text).float()
        return F.interpolate(cosines, rgb.shape[:2], mode="bilinear")[0].cpu().numpy()

    def similarity(self, prompts: str | Sequence[str]) -> np.ndarray:
        """(n, 11) float32 cosine similarities of n prompts' embeddings with the run's classes'."""
        self._need_language()
        prompts = class_prompts([prompts] if isinstance(prompts, str) else list(prompts))
        return (self._embed(prompts) @ self.model.text.T).cpu().numpy()

    def embed(self, classes: Classes | None = None) -> np.ndarray:
        """(K, C) float32 text embeddings of classes, rows of length one.

        Raises:
            InputError: as `cosines`.
        """
        self._need_language()
        _, text = self._text(classes)
        return (text[0] if text else self.model.text).cpu().numpy()

    def _text(self, classes: Classes | None) -> tuple[list[str], tuple[Tensor, ...]]:
        """Names, and the model's argument after the images: a text matrix, or none for its own."""
        if classes is None:
            return self.classes, ()
        prompts = parse_classes(classes)
        if len(prompts) > 255:
            raise InputError(f"{len(prompts)} classes: ids are uint8, give at most 255")
        names = list(prompts)
        if self._text_encoder is None and names == self.classes:
            return names, ()
        self._need_language()
        key = tuple(map(tuple, prompts.values()))
        if key not in self._embedded:
            self._embedded[key] = self._embed(prompts)
        return names, (self._embedded[key],)

    def _embed(self, prompts: Mapping[str, Sequence[str]]) -> Tensor:
        """(K, C) on the device; the run's own classes need no text encoder."""

        def key(group: Sequence[str]) -> tuple[str, ...]:
            return tuple(map(str.lower, group))

        rows = dict(zip(map(key, self.model.prompts.values()), self.model.text, strict=True))
        if other := {name: group for name, group in prompts.items() if key(group) not in rows}:
            vectors = embed_classes(other, self._text_encoder).to(self._device)
            rows |= zip(map(key, other.values()), vectors, strict=True)
        return torch.stack([rows[key(group)] for group in prompts.values()])

    def _need_language(self) -> None:
        if self._text_encoder is None:
            raise InputError(
                f"{self.experiment.name} segments its own 11 classes only: choose a run of "
                "bilinear-*, adapter-*, frozen-* or full-* for other words"
            )

    def _input(self, rgb: np.ndarray, max_side: int) -> Tensor:
        """(1, 3, h, w) uint8 on the device; each side at least 32 pixels."""
        if max_side < MIN_SIDE:
            raise InputError(f"max_side={max_side}: it must be at least {MIN_SIDE}")
        scale = min(1.0, max_side / max(rgb.shape))
        size = [max(MIN_SIDE, round(side * scale)) for side in rgb.shape[1::-1]]
        resized = np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(resized).permute(2, 0, 1)[None].to(self._device)


def read_rgb(image: ImageLike) -> np.ndarray:
    """Any image as (H, W, 3) uint8, RGB: EXIF orientation applied, transparency put on white.

    Args:
        image: a path, a PIL image of any mode, or an array (H, W) or (H, W, 1, 3 or 4), integers in
            0..255 or floats in 0..1.

    Raises:
        InputError: a file that cannot be read, another shape, values out of range.
    """
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as file:
                return read_rgb(file)
        except InputError as error:
            raise InputError(f"{image}: {error}") from error
        except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{image}: not a readable image ({reason})") from error
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    # Pillow would clip 16 and 32-bit integers and floats (modes I, I;16, F).
    if not isinstance(image, Image.Image) or image.mode[0] in "IF":
        image = _from_array(image)
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_array(image: ImageLike) -> Image.Image:
    try:
        array = np.asarray(image)
    except (ValueError, TypeError, RuntimeError) as error:  # nested lists, tensors on a GPU, ...
        raise InputError(f"{type(image).__name__}: not an image ({error})") from error
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if channels not in (1, 3, 4) or not array.size:
        raise InputError(f"array of shape {array.shape}: an image is (H, W) or (H, W, 1, 3 or 4)")
    top = {"u": 255, "i": 255, "f": 1}.get(array.dtype.kind)
    if top is None:
        raise InputError(f"array of {array.dtype}: give integers in 0..255 or floats in 0..1")
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= top:  # also refuses NaN
        raise InputError(f"{array.dtype} values {low:g} to {high:g}: scale the image to 0..{top}")
    pixels = ((array * 255).round() if top == 1 else array).astype(np.uint8)
    return Image.fromarray(pixels.reshape(array.shape[:2]) if channels == 1 else pixels)


def class_colours(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """A colour (RGB, 0..255) for each class: CamVid's for its classes, distinct ones for others.

    Example:
        >>> class_colours(["sky", "lorry"])
        [(128, 128, 128), (230, 69, 69)]
    """
    camvid = dict(zip((*CLASSES, "void"), PALETTE, strict=True))
    # Steps of the golden ratio spread any number of hues; three brightnesses take turns.
    hues = (colorsys.hsv_to_rgb(k * 0.618 % 1, 0.7, 0.9 - k % 3 * 0.15) for k in count())
    others = (tuple(round(255 * part) for part in hue) for hue in hues)
    return [camvid[name] if name in camvid else next(others) for name in names]


def one_class_note(name: str) -> str:
    """What to say where a single class is given."""
    return f"every pixel is {name!r}: give more than one class, separated by commas or lines"
