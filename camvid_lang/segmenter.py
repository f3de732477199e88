"""Any words on any image, by a finished run: inference of the API, command line and notebook."""

import colorsys
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, PALETTE, WORDINGS, Wording
from camvid_lang.data.labels import image_errors
from camvid_lang.device import autocast, pick_device, to_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import CLASSES_KEY, held_out_scores, vocabulary_shift
from camvid_lang.experiments import Experiment
from camvid_lang.models import RESNET18, TINY
from camvid_lang.models.segmentation import COMPARE, SegmentationModel, best_class
from camvid_lang.models.text import (
    TextEncoder,
    embed_classes,
    parse_classes,
)
from camvid_lang.results import atomic_write
from camvid_lang.run import load_run

MAX_SIDE = 1024  # pixels; models are trained on frames of 480x360, and memory grows with the area
DEMO = Path(__file__).parent / "assets" / "demo" / "full-narrow-descriptions"
MIN_SIDE = 32  # pixels; the stride of the encoders' coarsest map
OVERLAP = 1 / 4  # of a tile with the next
NONE_OF_THESE = "none of these"

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

    def overlay(self, alpha: float = 0.6, legend: bool = False) -> Image.Image:
        """The image blended with its classes' colours, of which `alpha` is the share.

        With `legend` the classes' names and colours are below it, see `figures.with_legend`.
        """
        colours = np.array(self.colours, np.uint8)[self.ids]
        blended = Image.blend(Image.fromarray(self.image), Image.fromarray(colours), alpha)
        if not legend:
            return blended
        from camvid_lang.report.figures import with_legend  # matplotlib takes a second

        return with_legend(blended, self.classes, self.colours)

    def save(self, stem: str | Path, alpha: float = 0.6, legend: bool = False) -> Path:
        """Write STEM.png, the ids, and STEM_overlay.png, whose path is returned.

        The file of ids also names the classes, for `score`.
        """
        about, blended = PngImagePlugin.PngInfo(), Path(f"{stem}_overlay.png")
        about.add_itxt(CLASSES_KEY, "\n".join(self.classes))
        blended.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.ids).save(f"{stem}.png", pnginfo=about)
        self.overlay(alpha, legend).save(blended)
        return blended


@dataclass(frozen=True)
class Options:
    """How an image is segmented: keyword arguments of the methods of `Segmenter`.

    Attributes:
        max_side: a larger image is reduced to this many pixels for the model, and the result
            upsampled to its size.
        tile: a multiple of 32. The image keeps its size, whatever `max_side`: the model sees
            squares of this many pixels that overlap by a quarter or more, and scores are blended
            linearly over the overlap. An image that fits into one tile is segmented at once. Tiles
            keep small objects of large images, but the model sees no more than a tile at once and
            knows objects at the size they had in training. Memory, next to model, image and result:
            about 9 K N W bytes for two rows of tiles of an image W wide, and 25 K N^2 for the
            model's scores of one tile.
        compare: `anchored` (words stand for classes of training: "house" for "building"), `cosine`
            (the thesis's way), or `clip` (words for things that were not trained; a frozen CLIP
            only), see `Match.scores`. The run's own classes (unless some were held out), and
            words by a model that was not trained, are always compared by cosine.
        none_below: in 0..1. Pixels become the class `none of these` where every agreement with the
            given classes (see `LanguageModel.match`) is below, which is the probability of being of
            the same trained class; 0.5 takes what is more likely another thing. 0: no such class.

    Raises:
        InputError: a value out of its range.
    """

    max_side: int = MAX_SIDE
    tile: int | None = None
    compare: str = "anchored"
    none_below: float = 0.0

    def __post_init__(self):
        if self.max_side < MIN_SIDE:
            raise InputError(f"max_side={self.max_side}: it must be at least {MIN_SIDE}")
        if self.tile is not None and (self.tile < MIN_SIDE or self.tile % MIN_SIDE):
            raise InputError(f"tile={self.tile}: give a multiple of {MIN_SIDE}, such as 1024")
        if self.compare not in COMPARE:
            raise InputError(f"compare={self.compare!r}: choose {', '.join(COMPARE)}")
        if self.none_below and self.compare == "clip":
            raise InputError("none_below needs the agreement: choose compare='anchored'")
        if not 0 <= self.none_below <= 1:
            raise InputError(f"none_below={self.none_below}: choose a value in 0..1, such as 0.5")


class Segmenter:
    """A run's model, loaded once by `load`, that segments any image into any classes.

    In its methods `image` is what `read_rgb` accepts; `classes` are a list of words, a mapping
    {class: [prompt, ...]}, a text or file for `models.text.parse_classes` ("road, car | lorry"),
    or None for the run's own 11 classes; `options` are those of `Options`.

    Attributes:
        model: in evaluation mode; its `forward` takes (N, 3, H, W) images.
        experiment: the settings of the run.
        classes: names of the run's own 11 classes.
        temperature: divides the cosines in the softmax of the loss.
    """

    def __init__(
        self,
        model: SegmentationModel,
        experiment: Experiment,
        text_encoder: Callable[[], TextEncoder] | None,
    ):
        """`text_encoder` is called for words that are not the run's own; None for SwiftNet."""
        self.model, self.experiment = model, experiment
        self.temperature: float = model.temperature
        self.classes = list(CLASSES)
        self._text_encoder = text_encoder
        self._embedded: dict[tuple, Tensor] = {}  # by prompts: many images, the same classes
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def segment(
        self, image: ImageLike, classes: Classes | None = None, **options: object
    ) -> Segmentation:
        """The best class of each pixel; ids are upsampled nearest.

        Raises:
            InputError: an image or classes that cannot be read, a prompt that cannot be embedded,
                a text bank or weights, needed for other words than the run's own, that are missing
                or of other content; words for SwiftNet, which has its own classes only.
        """
        how = Options(**options)
        names, text = self._ask(classes, how)
        if len(names) == 1:
            warnings.warn(one_class_note(names[0]), stacklevel=3)
        rgb = read_rgb(image)
        if how.tile and max(rgb.shape) > how.tile:
            bands = self._bands(rgb, text, how)
            ids = np.concatenate([best_class(band[None])[0].cpu().numpy() for band in bands])
            return Segmentation(rgb, ids, names)
        with autocast(self._device):
            images = self._input(rgb, how)
            if text is None:
                found = self.model.segment(images)
            else:
                found = best_class(self._logits(images, text, how))
        resized = Image.fromarray(found[0].cpu().numpy())
        resized = resized.resize(rgb.shape[1::-1], Image.Resampling.NEAREST)
        return Segmentation(rgb, np.array(resized), names)

    @torch.inference_mode()
    def cosines(
        self, image: ImageLike, classes: Classes | None = None, **options: object
    ) -> np.ndarray:
        """(K, H, W) float32 cosine similarities in [-1, 1], upsampled bilinearly.

        Raises:
            InputError: as `segment`, and any use of SwiftNet.
        """
        self.need_language()
        how = replace(Options(**options), compare="cosine", none_below=0.0)
        return self._array(
            image, classes, how, np.float32, lambda band: (band * self.temperature).clamp(-1, 1)
        )

    @torch.inference_mode()
    def probabilities(
        self, image: ImageLike, classes: Classes | None = None, **options: object
    ) -> np.ndarray:
        """(K, H, W) float16 in 0..1: the softmax over these classes, with `none of these` if any.

        Float16 holds about three digits.

        Raises:
            InputError: as `segment`.
        """
        how = Options(**options)
        return self._array(image, classes, how, np.float16, lambda band: band.softmax(0))

    def similarity(self, prompts: str | Sequence[str]) -> np.ndarray:
        """(n, 11) float32 cosine similarities of n prompts' embeddings with the run's classes'."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return self.embed(list(prompts)) @ self.model.text.cpu().numpy().T

    def embed(self, classes: Classes | None = None) -> np.ndarray:
        """(K, C) float32 text embeddings of classes, rows of length one.

        Raises:
            InputError: as `cosines`.
        """
        self.need_language()
        text = self._ask(classes, Options())[1]
        return (self.model.text if text is None else text).cpu().numpy().copy()

    def vocabulary_shift(
        self, frames: Frames, wordings: Mapping[str, Wording] = WORDINGS
    ) -> dict[str, object]:
        """Scores with other words for the classes than those of training: vocabulary.json.

        Returns:
            wordings: see `evaluation.vocabulary_shift`.
            held_out: names of the classes that were void in training.
            held_out_scores: {way of comparison: `evaluation.held_out_scores`}, if there are any.
            experiment, test_frames, digest: what was measured.

        Raises:
            InputError: SwiftNet; a wording that cannot be embedded.
        """
        self.need_language()
        found = vocabulary_shift(self.model, self.embed, frames, wordings)
        held_out, own = self.experiment.held_out_classes, found["own"]
        ways = [way for way in COMPARE if held_out and way in own]
        return {
            "experiment": self.experiment.name,
            "test_frames": len(frames),
            "digest": frames.digest,
            "wordings": found,
            "held_out": held_out,
            "held_out_scores": {way: held_out_scores(own[way]["iou"], held_out) for way in ways},
        }

    def export(
        self, path: str | Path, classes: Classes | None = None, text_input: bool = False
    ) -> dict[str, str]:
        """Write the model as an ONNX file; returns the metadata in it, which describe its inputs.

        The graph maps `image`, (N, 3, H, W) uint8, to `scores`, (N, K, H, W) float32: cosines by
        `cosine_logits_float32`, other words compared as in `segment` (the scores of `Match` times
        the temperature), or SwiftNet's logits. N, H, W are dynamic, sides at least 32.

        Args:
            classes: their text embeddings become a constant of the graph.
            text_input: text vectors are a second input of the graph: `text`, (K, C) float32, K
                dynamic, rows of any length but zero in the space of the run's text embeddings.

        Raises:
            InputError: a model on a GPU; onnx or onnxscript is missing; classes or `text_input` for
                SwiftNet; both; classes as for `segment`; weights over the 2 GB of an ONNX file.
        """
        if self._device.type != "cpu":
            raise InputError("load the run with device='cpu' to export it")
        if classes is not None and text_input:
            raise InputError("with text as an input, classes are chosen later: leave out one")
        language = classes is not None or text_input or self._text_encoder is not None
        names, compared = self._ask(classes, Options())
        text = torch.from_numpy(self.embed(classes)) if language else None
        words = (text_input or compared is not None) and len(self.model.anchors) > 0
        scores = "cosines in [-1, 1]" if language else "logits"
        if words:
            scores = "comparisons with the words, through the classes of training"
        about = {
            "experiment": self.experiment.name,
            "image": f"(N, 3, H, W) uint8, RGB; H and W are at least {MIN_SIDE}",
            "temperature": str(self.temperature),
            "scores": f"(N, K, H, W) float32 {scores}; the largest of K is the class of the pixel, "
            "and the softmax of scores / temperature its probability",
        }
        if text_input:
            name, bank = self.experiment.encoder, self.experiment.text_bank
            source = f"tower {TINY if name == RESNET18 else name}"
            source = f"bank {Path(bank).name}" if bank else source
            about["text"] = (
                f"(K, {text.shape[1]}) float32, a vector per class, by the text {source}"
            )
        else:
            about["classes"] = json.dumps(names, ensure_ascii=False)
        from camvid_lang.models.export import onnx_graph

        with atomic_write(path) as file:
            file.write(onnx_graph(self.model, text, words, text_input, about))
        return about

    def need_language(self) -> None:
        """Raise InputError for SwiftNet."""
        if self._text_encoder is None:
            raise InputError(
                f"{self.experiment.name} segments its own 11 classes only: choose a run of "
                "bilinear-*, adapter-*, frozen-* or full-* for other words"
            )

    def _ask(self, classes: Classes | None, how: Options) -> tuple[list[str], Tensor | None]:
        """The classes' names and text (K, C), None for the run's own."""
        prompts = None if classes is None else parse_classes(classes)
        if how.none_below and not (prompts and len(getattr(self.model, "anchors", ()))):
            raise InputError(
                f"none_below={how.none_below}: it needs classes in words, and a run that was "
                "trained with language; leave it out"
            )
        if prompts is None:
            return self.classes, None
        names = list(prompts)
        plain = not (how.none_below or self.model.unseen)  # which was not trained with all words
        if plain and self.model.prompts and [*prompts.values()] == [*self.model.prompts.values()]:
            return names, None
        if len(names) + bool(how.none_below) > 255:
            raise InputError(f"{len(names)} classes: ids are uint8, give at most 255")
        if self._text_encoder is None and names == self.classes:
            return names, None
        self.need_language()
        if how.compare == "clip" and len(self.model.anchors) and not self.model.has_clip_map:
            raise InputError(
                f"compare='clip': the encoder of {self.experiment.name} is not the CLIP of its "
                "text, frozen; choose a run of frozen-* or adapter-*, or another compare"
            )
        if how.none_below:
            names.append(NONE_OF_THESE)
        return names, self._embed([*prompts.values()])

    def _embed(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """(K, C) on the device, for K groups of prompts; the run's own need no text encoder."""

        def key(group: Sequence[str]) -> tuple[str, ...]:
            return tuple(map(str.lower, group))

        if not self._embedded:
            own = map(key, self.model.prompts.values())
            self._embedded = dict(zip(own, self.model.text, strict=True))
        if new := {key(group): group for group in groups if key(group) not in self._embedded}:
            named = {" | ".join(group): group for group in new.values()}
            vectors = embed_classes(named, self._text_encoder()).to(self._device)
            self._embedded |= zip(new, vectors, strict=True)
        return torch.stack([self._embedded[key(group)] for group in groups])

    def _array(
        self,
        image: ImageLike,
        classes: Classes | None,
        how: Options,
        dtype: type,
        function: Callable[[Tensor], Tensor],
    ) -> np.ndarray:
        """(K, H, W): a function of the logits of each pixel."""
        names, text = self._ask(classes, how)
        rgb, row = read_rgb(image), 0
        array = np.empty((len(names), *rgb.shape[:2]), dtype)
        for band in self._bands(rgb, text, how):
            array[:, row : row + band.shape[1]] = function(band).cpu().numpy()
            row += band.shape[1]
        return array

    def _bands(self, rgb: np.ndarray, text: Tensor | None, how: Options) -> Iterator[Tensor]:
        """The image's logits (K, rows, W) from top to bottom: at once, or by rows of tiles."""
        if not how.tile or max(rgb.shape) <= how.tile:
            yield self._upsampled(rgb, text, how)
            return
        down, across = (_tiles(side, how.tile) for side in rgb.shape[:2])
        ends = [*(top for top, _ in down[1:]), len(rgb)]
        count = len(self.classes) if text is None else len(text) + bool(how.none_below)
        rest = torch.zeros(count, 0, rgb.shape[1], device=self._device)
        for (top, fade), end in zip(down, ends, strict=True):
            # The tiles below add to the rest.
            band = F.pad(rest, (0, 0, 0, len(fade) - rest.shape[1]))
            for left, ramp in across:
                tile = rgb[top : top + len(fade), left : left + len(ramp)]
                weights = (fade[:, None] * ramp).to(self._device)
                part = self._upsampled(tile, text, how).mul_(weights)
                band[..., left : left + len(ramp)] += part
            rest = band[:, end - top :].clone()
            yield band[:, : end - top]

    def _upsampled(self, rgb: np.ndarray, text: Tensor | None, how: Options) -> Tensor:
        """Logits (K, H, W) float32, upsampled bilinearly where the model sees a smaller image."""
        with autocast(self._device):
            logits = self._logits(self._input(rgb, how), text, how).float()
        return F.interpolate(logits, rgb.shape[:2], mode="bilinear")[0]

    def _logits(self, images: Tensor, text: Tensor | None, how: Options) -> Tensor:
        """(N, 3, h, w) -> (N, K, h, w), whose softmax are the probabilities."""
        if text is None:
            return self.model(images) / self.temperature
        by_cosine = how.compare == "cosine" or not len(self.model.anchors)
        if by_cosine and not how.none_below:  # no need of the anchors
            return self.model(images, text) / self.temperature
        match = self.model.match(images, text, how.compare == "clip")
        logits = match.scores(self.temperature, how.compare)
        if how.none_below:  # largest exactly where no agreement reaches `none_below`
            best, agreement = (x.amax(1, keepdim=True) for x in (logits, match.agreement))
            tiny = torch.finfo(agreement.dtype).tiny
            none = best + math.log(how.none_below) - agreement.clamp_min(tiny).log()
            logits = torch.cat([logits, none], dim=1)
        return logits

    def _input(self, rgb: np.ndarray, how: Options) -> Tensor:
        """(1, 3, h, w) uint8 on the device; each side at least 32 pixels."""
        scale = min(1.0, (how.tile or how.max_side) / max(rgb.shape))
        size = [max(MIN_SIDE, round(side * scale)) for side in rgb.shape[1::-1]]
        resized = np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(resized).permute(2, 0, 1)[None].to(self._device)


def _tiles(side: int, tile: int) -> list[tuple[int, Tensor]]:
    """Start and weights (n,) of each tile along a side; all weights of a pixel add up to 1."""
    tile = min(tile, side)
    overlap = max(1, int(tile * OVERLAP))
    steps = math.ceil((side - tile) / (tile - overlap)) if side > tile else 0
    starts = [(side - tile) * i // max(1, steps) for i in range(steps + 1)]
    ramp = ((torch.arange(tile) + 0.5) / overlap).clamp(max=1)
    ramp, total = torch.minimum(ramp, ramp.flip(0)), torch.zeros(side)
    for start in starts:
        total[start : start + tile] += ramp
    return [(start, ramp / total[start : start + tile]) for start in starts]


def read_rgb(image: ImageLike) -> np.ndarray:
    """Any image as (H, W, 3) uint8, RGB: EXIF orientation applied, transparency put on white.

    Args:
        image: a path, a PIL image of any mode, or an array (H, W) or (H, W, 1, 3 or 4), integers in
            0..255 or floats in 0..1.

    Raises:
        InputError: a file that cannot be read, another shape, values out of range.
    """
    if isinstance(image, str | Path):
        with image_errors(image), Image.open(image) as file:
            return read_rgb(file)
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
    camvid = dict(zip((*CLASSES, "void"), PALETTE, strict=True)) | {NONE_OF_THESE: (0, 0, 0)}
    # Steps of the golden ratio spread any number of hues; three brightnesses take turns.
    hues = (colorsys.hsv_to_rgb(k * 0.618 % 1, 0.7, 0.9 - k % 3 * 0.15) for k in count())
    others = (tuple(round(255 * part) for part in hue) for hue in hues)
    return [camvid[name] if name in camvid else next(others) for name in names]


def one_class_note(name: str) -> str:
    """What to say where a single class is given."""
    return f"every pixel is {name!r}: give more than one class, separated by commas or lines"
