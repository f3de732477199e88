"""Any words on any image, by a finished run: inference of the API, command line and notebook."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn import functional as F

from camvid_lang import MODELS
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES
from camvid_lang.data.labels import CLASSES_KEY, open_image
from camvid_lang.data.words import Classes, Wording, parse_classes
from camvid_lang.device import autocast, pick_device, to_device, torch_defaults
from camvid_lang.errors import InputError, check_folder
from camvid_lang.evaluation import vocabulary_shift
from camvid_lang.experiments import Experiment
from camvid_lang.models.encoder import ASSETS
from camvid_lang.models.segmentation import COMPARE, SegmentationModel, best_class
from camvid_lang.models.text import TextEncoder, Vocabulary, embed
from camvid_lang.report.legend import NONE_OF_THESE, class_colours, with_legend
from camvid_lang.results import atomic_write
from camvid_lang.runs import load_run

MAX_SIDE = 1024  # pixels, of a model that was not trained; memory grows with the area
LARGER = 4 / 3  # than the frames of training an image may be: beyond, camvid loses mIoU
MIN_SIDE = 32  # pixels; the stride of the encoders' coarsest map
OVERLAP = 1 / 4  # of a tile with the next

ImageLike = str | Path | Image.Image | np.ndarray


@torch_defaults()
def load(
    folder: str | Path,
    device: str = "auto",
    text_bank: str | Path | None = None,
    weights: str | Path | None = None,
) -> "Segmenter":
    """Load the model of a run.

    Args:
        folder: the run's folder; or a small model that the package carries: `camvid`, of streets,
            or `demo`, of drawn scenes (`assets/README.md`). Write `./demo` for a folder.
        device: `cpu`, `cuda`, or `auto` (CUDA where there is a GPU).
        text_bank, weights: where the run's files are now, if they have moved.

    Raises:
        InputError: no run in the folder; weights of a frozen encoder that are missing or others
            than the run was made with.
    """
    target = pick_device(device)
    path = ASSETS / MODELS[folder] if check_folder(folder, "run") in MODELS else Path(folder)
    model, experiment, text_encoder = load_run(path, text_bank, weights)
    return Segmenter(to_device(model, target), experiment, text_encoder, path)


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
        """The image blended with its classes' colours (share `alpha`), above a legend if asked."""
        colours = np.array(self.colours, np.uint8)[self.ids]
        blended = Image.blend(Image.fromarray(self.image), Image.fromarray(colours), alpha)
        return with_legend(blended, self.classes, self.colours) if legend else blended

    def _repr_png_(self) -> bytes | None:  # what a notebook shows and keeps
        factor = math.ceil(max(self.ids.shape) / MAX_SIDE)
        return self.overlay(legend=True).reduce(factor)._repr_png_()

    def save(self, stem: str | Path, alpha: float = 0.6, legend: bool = False) -> Path:
        """Write STEM.png, ids and names for `score`, and STEM_overlay.png; return its path.

        Ids of other classes than CamVid's 11 have 16 bits, so that no reader takes them for these.
        """
        metadata, path = PngImagePlugin.PngInfo(), Path(f"{stem}_overlay.png")
        metadata.add_itxt(CLASSES_KEY, "\n".join(self.classes))
        path.parent.mkdir(parents=True, exist_ok=True)
        is_camvid = tuple(map(str.lower, self.classes)) == CLASSES
        with atomic_write(f"{stem}.png") as file:
            ids = Image.fromarray(self.ids.astype(np.uint8 if is_camvid else np.uint16))
            ids.save(file, "PNG", pnginfo=metadata)
        with atomic_write(path) as file:
            self.overlay(alpha, legend).save(file, "PNG")
        return path


@dataclass
class _Query:
    """What an image is asked for: see the arguments of `Segmenter.segment`."""

    names: list[str]
    text: Tensor | None = None  # (K, C), of the classes; None: the model's, compared by cosine
    compare: str = "anchored"
    none_below: float = 0.0
    max_side: int = MAX_SIDE
    tile: int | None = None

    def __post_init__(self):
        tile, none_below = MIN_SIDE if self.tile is None else self.tile, self.none_below
        none = f"none_below={none_below}"
        for is_wrong, message in (
            (self.max_side < MIN_SIDE, f"max_side={self.max_side}: choose at least {MIN_SIDE}"),
            (tile not in range(32, 1 << 31, 32), f"tile={tile}: choose a multiple of 32"),
            (self.compare not in COMPARE, f"compare={self.compare!r}: choose {', '.join(COMPARE)}"),
            (not 0 <= none_below <= 1, f"{none}: choose a value in 0..1"),
            (none_below and self.compare == "clip", f"{none}: it excludes compare='clip'"),
            (len(self.names) > 255, f"{len(self.names)} classes: ids are uint8, give at most 255"),
        ):
            if is_wrong:
                raise InputError(message)


class Segmenter:
    """A run's model, loaded once by `load`, that segments any image into any classes.

    In its methods `image` is what `read_rgb` accepts; `classes` are what `data.words.parse_classes`
    accepts (["road", "car"], {"car": ["car", "lorry"]}, "road, car | lorry", a file), or None for
    the model's. The arguments of `segment` have the same meaning everywhere.

    Attributes:
        model: in evaluation mode; its `forward` takes (N, 3, H, W) images.
        experiment: the settings of the run.
        classes: names of the model's classes.
        max_side: in pixels, the default of `segment`.
        temperature: divides the cosines in the softmax of the loss.
        folder: the run's, None for a model that was not loaded from one.
    """

    def __init__(
        self,
        model: SegmentationModel,
        experiment: Experiment,
        text_encoder: Callable[[], TextEncoder] | None,
        folder: Path | None = None,
    ):
        """`text_encoder` is called for words that are not the model's; None for SwiftNet."""
        self.model, self.experiment, self.folder = model, experiment, folder
        self.temperature: float = model.temperature
        self.classes = list(model.names)
        self._text_encoder = text_encoder
        named = tuple((name,) for name in model.names)  # SwiftNet has names alone
        self._prompts = named if text_encoder is None else model.vocabulary.prompts
        self._embedded: dict[tuple, Tensor] = {}  # by prompts: many images, the same classes
        self._device = next(model.parameters()).device
        self.max_side = round(LARGER * max(model.trained_size)) if model.trained_size else MAX_SIDE

    def __repr__(self) -> str:
        source, classes = self.folder or "no folder", ", ".join(self.classes)
        return f"Segmenter({self.experiment.name} from {source}: {classes})"

    @torch_defaults()
    @torch.inference_mode()
    def segment(
        self,
        image: ImageLike,
        classes: Classes | None = None,
        *,
        compare: str = "anchored",
        none_below: float = 0.0,
        max_side: int | None = None,
        tile: int | None = None,
    ) -> Segmentation:
        """The best class of each pixel, upsampled nearest; warns of classes that may not be found.

        Args:
            compare: `anchored` (words stand for classes of training: "house" for "building"),
                `cosine` (the thesis's way), or `clip` (words for things that were not trained; a
                frozen CLIP only), see `Match.scores`. The model's classes as a whole, and words by
                a model that was not trained, are always compared by cosine.
            none_below: in 0..1. Pixels become the class `none of these` where every agreement with
                the classes (see `LanguageModel.match`) is below this. 0: no such class.
            max_side: a larger image is reduced to this many pixels for the model; by default to
                4/3 of the frames that it was trained on, as it knows things at their size there.
            tile: a multiple of 32. The image keeps its size, whatever `max_side`: the model sees
                squares of this many pixels that overlap by a quarter or more, and scores are
                blended linearly over the overlap. Tiles keep small objects of large images, but the
                model sees no more than a tile N at once. Memory, next to model, image and result:
                about 9 K N W bytes for an image W wide, and 25 K N^2 for the scores of one tile.

        Raises:
            InputError: an image or classes that cannot be read, a prompt that cannot be embedded,
                files for it that are missing or others, words for SwiftNet, a value out of range.
        """
        sizes = {"max_side": max_side, "tile": tile}
        query = self._query(classes, compare=compare, none_below=none_below, **sizes)
        rgb = read_rgb(image)
        for note in self._notes(query, rgb):
            warnings.warn(note, stacklevel=4)
        if tile and max(rgb.shape) > tile:
            bands = self._bands(rgb, query)
            ids = np.concatenate([best_class(band[None])[0].cpu().numpy() for band in bands])
            return Segmentation(rgb, ids, query.names)
        with autocast(self._device):
            images = self._input(rgb, query)
            if query.text is None:
                found = self.model.segment(images)
            else:
                found = best_class(self._logits(images, query))
        resized = Image.fromarray(found[0].cpu().numpy())
        resized = resized.resize(rgb.shape[1::-1], Image.Resampling.NEAREST)
        return Segmentation(rgb, np.array(resized), query.names)

    @torch_defaults()
    @torch.inference_mode()
    def cosines(
        self, image: ImageLike, classes: Classes | None = None, **sizes: int | None
    ) -> np.ndarray:
        """(K, H, W) float32 cosine similarities in [-1, 1], upsampled bilinearly.

        Takes `max_side` and `tile` as `segment` does; `InputError` also for any use of SwiftNet.
        """
        self.need_language()
        query = self._query(classes, compare="cosine", none_below=0.0, **sizes)
        return self._array(image, query, np.float32, lambda x: (x * self.temperature).clamp(-1, 1))

    @torch_defaults()
    @torch.inference_mode()
    def probabilities(
        self, image: ImageLike, classes: Classes | None = None, **options: object
    ) -> np.ndarray:
        """(K, H, W) float16: the softmax over the classes; options and errors as of `segment`."""
        query = self._query(classes, **options)
        return self._array(image, query, np.float16, lambda x: x.softmax(0))

    @torch_defaults()
    def similarity(self, classes: Classes) -> np.ndarray:
        """(n, K) float32 cosine similarities of n classes with the model's, by text embeddings."""
        vectors = self.vocabulary(classes).vectors  # raises for SwiftNet
        return (vectors @ self.model.text.T).cpu().numpy()

    @torch_defaults()
    def vocabulary(self, classes: Classes) -> Vocabulary:
        """Classes with their text embeddings, on the model's device; `InputError` as `cosines`.

        The text encoder is loaded only for prompts that are not the model's.
        """
        self.need_language()
        prompts = parse_classes(classes)

        def key(group: Sequence[str]) -> tuple[str, ...]:
            return tuple(map(str.lower, group))

        if not self._embedded:
            self._embedded |= zip(map(key, self._prompts), self.model.text, strict=True)
        if new := {n: group for n, group in prompts.items() if key(group) not in self._embedded}:
            found = embed(new, self._text_encoder()).to(self._device)
            self._embedded |= zip(map(key, found.prompts), found.vectors, strict=True)
        vectors = torch.stack([self._embedded[key(group)] for group in prompts.values()])
        return Vocabulary(tuple(prompts), tuple(map(tuple, prompts.values())), vectors)

    @torch_defaults()
    def vocabulary_shift(
        self, frames: Frames, asked: Mapping[str, Wording] | None = None
    ) -> dict[str, object]:
        """`evaluation.vocabulary_shift` of this model, as vocabulary.json holds it."""
        self.need_language()

        def vectors(phrases: list[str]) -> Tensor:
            unique = list(dict.fromkeys(phrases))  # one phrase may stand for two classes
            return self.vocabulary(unique).vectors[[unique.index(phrase) for phrase in phrases]]

        found = vocabulary_shift(self.model, vectors, frames, asked)
        measured = {"test_frames": len(frames), "digest": frames.digest, "wordings": found}
        return {"experiment": self.experiment.name, **measured}

    def need_language(self) -> None:
        """Raise InputError for SwiftNet."""
        if self._text_encoder is None:
            what = f"{self.experiment.name} has fixed classes, its 11"
            raise InputError(f"{what}: choose a run with language, such as frozen-names")

    def _query(self, classes: Classes | None, **options: object) -> _Query:
        """The arguments of `segment`, checked, with the vectors of the classes."""
        prompts = None if classes is None else parse_classes(classes)
        if options.get("max_side") is None:
            options["max_side"] = self.max_side
        query = _Query(list(prompts or self.classes), **options)
        anchors = len(getattr(self.model, "anchors", ()))
        if query.none_below and not (prompts and anchors):
            what = f"none_below={query.none_below}: it needs classes in words, and a run"
            raise InputError(f"{what} that was trained with language; leave it out")
        if query.compare == "clip" and prompts and anchors and not self.model.has_clip_map:
            what = f"compare='clip': {self.experiment.name} has no frozen CLIP of its text"
            raise InputError(f"{what}; choose a run of frozen-* or adapter-*, or another compare")
        is_other = prompts and tuple(map(tuple, prompts.values())) != self._prompts
        if query.none_below or is_other:
            query.text = self.vocabulary(prompts).vectors
        if query.none_below and NONE_OF_THESE in map(str.lower, query.names):
            raise InputError(f"class {NONE_OF_THESE!r} is given twice: none_below adds it")
        query.names += [NONE_OF_THESE] if query.none_below else []
        return query

    def _notes(self, query: _Query, rgb: np.ndarray) -> Iterator[str]:
        """What a user should know before trusting the result; drawn scenes are 256x192."""
        if self.folder == ASSETS / MODELS["demo"] and rgb.shape[:2] != (192, 256):
            yield "the model demo knows drawn street scenes only: take camvid for photographs"
        if len(query.names) == 1:
            yield f"every pixel is {query.names[0]!r}: give several classes, separated by commas"
        if query.text is None or query.compare == "clip" or not len(self.model.anchors):
            return
        # A word should be as similar to some class as most classes are to their nearest neighbour.
        trained = self.model.text
        usual = (trained @ trained.T).sort().values[:, -2].quantile(0.25)
        for name, nearest in zip(query.names, (query.text @ trained.T).amax(1), strict=False):
            if nearest < usual:
                yield f"{name}: not similar to any class of the run (cosine {nearest:.2f})"

    def _array(
        self, image: ImageLike, query: _Query, dtype: type, function: Callable[[Tensor], Tensor]
    ) -> np.ndarray:
        """(K, H, W): a function of the logits of each pixel."""
        rgb, row = read_rgb(image), 0
        array = np.empty((len(query.names), *rgb.shape[:2]), dtype)
        for band in self._bands(rgb, query):
            array[:, row : row + band.shape[1]] = function(band).cpu().numpy()
            row += band.shape[1]
        return array

    def _bands(self, rgb: np.ndarray, query: _Query) -> Iterator[Tensor]:
        """The image's logits (K, rows, W) from top to bottom: at once, or by rows of tiles."""
        if not query.tile or max(rgb.shape) <= query.tile:
            yield self._upsampled(rgb, query)
            return
        down, across = (_tiles(side, query.tile) for side in rgb.shape[:2])
        ends = [*(top for top, _ in down[1:]), len(rgb)]
        rest = torch.zeros(len(query.names), 0, rgb.shape[1], device=self._device)
        for (top, fade), end in zip(down, ends, strict=True):
            # The tiles below add to the rest.
            band = F.pad(rest, (0, 0, 0, len(fade) - rest.shape[1]))
            for left, ramp in across:
                tile = rgb[top : top + len(fade), left : left + len(ramp)]
                weights = (fade[:, None] * ramp).to(self._device)
                part = self._upsampled(tile, query).mul_(weights)
                band[..., left : left + len(ramp)] += part
            rest = band[:, end - top :].clone()
            yield band[:, : end - top]

    def _upsampled(self, rgb: np.ndarray, query: _Query) -> Tensor:
        """Logits (K, H, W) float32, upsampled bilinearly where the model sees a smaller image."""
        with autocast(self._device):
            logits = self._logits(self._input(rgb, query), query).float()
        return F.interpolate(logits, rgb.shape[:2], mode="bilinear")[0]

    def _logits(self, images: Tensor, query: _Query) -> Tensor:
        """(N, 3, h, w) -> (N, K, h, w), whose softmax are the probabilities."""
        text = query.text
        if text is None:
            return self.model(images) / self.temperature
        by_cosine = query.compare == "cosine" or not len(self.model.anchors)
        if by_cosine and not query.none_below:  # no need of the anchors
            return self.model(images, text) / self.temperature
        match = self.model.match(images, text, query.compare == "clip")
        logits = match.scores(self.temperature, query.compare)
        if query.none_below:  # largest exactly where no agreement reaches `none_below`
            best, agreement = (x.amax(1, keepdim=True) for x in (logits, match.agreement))
            tiny = torch.finfo(agreement.dtype).tiny
            none = best + math.log(query.none_below) - agreement.clamp_min(tiny).log()
            logits = torch.cat([logits, none], dim=1)
        return logits

    def _input(self, rgb: np.ndarray, query: _Query) -> Tensor:
        """(1, 3, h, w) uint8 on the device; each side at least 32 pixels."""
        scale = min(1.0, (query.tile or query.max_side) / max(rgb.shape))
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
            0..255 or floats in 0..1; `InputError` for anything else.
    """
    if isinstance(image, str | Path):
        with open_image(image, turned=True) as file:
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
