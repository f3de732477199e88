"""The figures of the thesis, the notebooks and the report.

Images are uint8 (N, 3, H, W), labels and predictions class ids (N, H, W), scores percent; arrays
and CPU tensors are both accepted. Charts are matplotlib figures made without pyplot: a notebook
shows them as they are and none has to be closed. The drawings of figures 5.1 and 6.1 never change
and are SVG files.
"""

import html
import io
import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template

import matplotlib
import numpy as np
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw, ImageFont

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.results import FigureData

Colour = tuple[int, int, int]  # RGB, 0..255
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "text.parse_math": False,  # a "$" in a class or file name is not a formula
}
_styled = matplotlib.rc_context(STYLE)

# Okabe and Ito's colours for all kinds of colour vision (jfly.uni-koeln.de/color, 2008), ordered so
# that neighbours differ in lightness too. Their black is left out: it stands for void.
_CODES = ("0072b2", "e69f00", "009e73", "d55e00", "cc79a7", "808080", "56b4e9", "f0e442")
OKABE_ITO: tuple[Colour, ...] = tuple(ImageColor.getrgb(f"#{code}") for code in _CODES)


@dataclass(frozen=True)
class Drawing:
    """A drawing: `name`.svg in this folder with numbers filled in. A notebook shows it as it is.

    `iou` is figure 6.1: a predicted and a labelled shape on a grid of pixels; TP, FP, FN counted.
    """

    name: str
    numbers: Mapping[str, object] = field(default_factory=dict)

    def _repr_svg_(self) -> str:
        file = resources.files("camvid_lang.report") / f"{self.name}.svg"
        escaped = {key: html.escape(str(value)) for key, value in self.numbers.items()}
        return Template(file.read_text(encoding="utf-8")).substitute(escaped)


# Encoder and channels of the thesis's models: four stages, CLIP's head, text; see `Experiment`.
_THESIS = {"encoder": "ConvNeXt-Base", "stages": (128, 256, 512, 1024), "head": 640, "text": 640}
_SWIFTNET = {"encoder": "ResNet-18", "stages": (64, 128, 256, 512), "head": 512, "text": 0}


def architecture(model: str = "clip-upsampler", result: Mapping | None = None) -> Drawing:
    """Figure 5.1: from an image to classes, with the numbers of channels.

    Args:
        model: that of an experiment: bilinear, adapter, clip-upsampler (the thesis's) or swiftnet.
        result: a run's `results.json`, for its encoder and numbers instead of the thesis's.
    """
    swiftnet = model == "swiftnet"
    channels, widths = (
        _SWIFTNET if swiftnet else _THESIS,
        (128, 128, 42) if swiftnet else (640, 512, 640),
    )
    if result:
        channels = {"encoder": result["encoder"]["name"], **result["encoder"]["channels"]}
        widths = [result["settings"][key] for key in ("width", "spp_bottleneck", "spp_width")]
    stages, clip = channels["stages"], channels["stages"][-1] != channels["head"]
    return Drawing(
        f"architecture-{model}",
        {
            **dict(zip(("c1", "c2", "c3", "c4"), stages, strict=True)),
            **dict(zip(("width", "bottleneck", "level"), widths, strict=True)),
            **{key: channels[key] for key in ("encoder", "head", "text")},
            **{
                "head_1": "CLIP's own head" if clip else "the last map",
                "head_2": "at every position" if clip else "as it is",
            },
        },
    )


class Canvas(Figure):
    """A matplotlib figure with a title (sizes in inches) that a notebook shows without pyplot."""

    def __init__(self, title: str, width: float, height: float):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        self.suptitle(_line(title))

    def _repr_png_(self) -> bytes:
        return to_png(self)


@_styled  # ticks are made when they are first drawn
def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure as the bytes of a PNG with `dpi` pixels per inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # words in a script that no font here has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _line(text: str, limit: int = 80) -> str:
    """A text in one line of at most `limit` characters; the rest becomes an ellipsis."""
    text = " ".join(text.encode(errors="replace").decode().split())
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    # A legend leaves out what begins with "_"; a space of no width keeps it in.
    return f"\u200b{text}" if text.startswith("_") else text


def drawn_names(names: Sequence[str]) -> list[str]:
    """Names as `overlay` and `heat_maps` show them: "class 3" for the fourth, if it has letters
    that the font lacks or that are written from right to left, which matplotlib cannot draw.
    """
    families = FontProperties().get_family()
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]

    def drawable(letter: str) -> bool:
        known = letter == " " or any(font.get_char_index(ord(letter)) for font in fonts)
        return known and unicodedata.bidirectional(letter) not in ("R", "AL")

    shown = [all(map(drawable, " ".join(name.split()))) for name in names]
    return [
        name if fine else f"class {i}"
        for i, (name, fine) in enumerate(zip(names, shown, strict=True))
    ]


def with_legend(image: Image.Image, names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """The image above the names, as `drawn_names` has them, next to a square of their colour.

    It is as wide as the image, or as the longest name where that is wider.
    """
    size = max(11, image.width // 70)
    font = ImageFont.truetype(findfont(FontProperties()), size)
    labels = [_line(name, 40) for name in drawn_names(names)]
    cell = math.ceil(max(map(font.getlength, labels))) + 3 * size
    columns, line = max(1, image.width // cell), 2 * size
    rows = math.ceil(len(labels) / columns)
    width, height = max(image.width, cell), image.height + rows * line + size
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        # Read from top to bottom, as the list of ids that `segment` prints.
        x, y = i // rows * cell + size // 2, image.height + i % rows * line + size
        draw.rectangle((x, y, x + size, y + size), colour, "black")
        draw.text((x + size * 3 // 2, y + size // 2), label, "black", font, "lm")
    return sheet


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def colour_labels(ids: ArrayLike, colours: Sequence[Colour] = PALETTE) -> np.ndarray:
    """Class ids (H, W) as an image (H, W, 3) uint8; `colours` holds one colour per id.

    Raises:
        InputError: an id without a colour.
    """
    ids = np.asarray(ids).astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(colours):
        found = f"ids {ids.min()}..{ids.max()} but {len(colours)} colours"
        raise InputError(f"colour_labels: {found}; give one colour per id")
    return np.asarray(colours, dtype=np.uint8)[ids]


def _channels_last(image: ArrayLike) -> np.ndarray:
    return np.moveaxis(np.asarray(image), 0, -1)


def _gallery(title: str, rows: Sequence[Sequence], legend: Sequence[tuple[str, Colour]]) -> Figure:
    """Rows of (heading, image (H, W, 3)), or None, above a legend of (name, colour)."""
    columns = len(rows[0])
    each, across = 9.6 / max(columns, 3), 6 if columns > 2 else 4
    tall = len(rows) * (each * _aspect(rows[0][0][1]) + 0.3) + 0.6
    figure = Canvas(title, each * columns, tall + math.ceil(len(legend) / across) * 0.25 + 0.2)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, images in zip(grid, rows, strict=True):
        for axes, cell in zip(line, images, strict=True):
            if cell is None:
                axes.set_axis_off()
                continue
            heading, image = cell
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            heading = heading if len(heading) <= 32 else f"…{heading[-31:]}"
            axes.set_title(_line(heading), loc="left")
    patches = [Patch(fc=_hex(c), ec="black", lw=0.5, label=_line(name, 40)) for name, c in legend]
    figure.legend(handles=patches, loc="outside lower center", ncols=across)
    return figure


def _aspect(image: ArrayLike) -> float:
    """Height over width of the space for an image, within reason for any image."""
    height, width = np.shape(image)[:2]
    return min(max(height / width, 0.2), 2.5)


CAMVID_LEGEND = [*zip((*CLASSES, "void"), PALETTE, strict=True)]
ERROR_COLOURS = np.array([(225, 225, 225), OKABE_ITO[3], (0, 0, 0)], dtype=np.uint8)
ERROR_LEGEND = [("right", ERROR_COLOURS[0]), ("wrong", ERROR_COLOURS[1])]


@_styled
def frames_and_labels(images: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> Figure:
    """Figure 4.1: each frame next to its coloured label."""
    rows = [
        [(name, _channels_last(image)), ("label", colour_labels(label))]
        for image, label, name in zip(images, labels, names, strict=True)
    ]
    return _gallery("Frames and their labels", rows, CAMVID_LEGEND)


@_styled
def predictions(
    images: ArrayLike,
    labels: ArrayLike,
    predictions: ArrayLike,
    names: Sequence[str],
    title: str = "Frames, labels and predictions",
) -> Figure:
    """Frame, label, prediction, and where the two differ.

    The last column is light grey where right, vermilion where wrong and black where the label is
    void; its heading gives the share of labelled pixels that are right.
    """
    rows = []
    for image, label, guess, name in zip(images, labels, predictions, names, strict=True):
        row = [(name, _channels_last(image)), ("label", colour_labels(label))]
        rows.append([*row, ("prediction", colour_labels(guess)), _errors(label, guess)])
    return _gallery(title, rows, [*CAMVID_LEGEND, *ERROR_LEGEND])


def _errors(label: ArrayLike, guess: ArrayLike) -> tuple[str, np.ndarray]:
    """Heading and image of where a prediction is wrong."""
    label, guess = np.asarray(label), np.asarray(guess)
    counted = label != VOID
    right = f"{100 * (label == guess)[counted].mean():.1f} % right" if counted.any() else "all void"
    return f"errors: {right}", ERROR_COLOURS[np.where(counted, label != guess, 2)]


@_styled
def comparison(runs: Mapping[str, FigureData | None], frame: int = 0) -> Figure:
    """One frame under several runs: predictions above, errors below (colours as `predictions`).

    `runs` are their `figures.npz`, of which `frame` counts the frames of the first. Three runs are
    next to each other; those that lack the frame are left out.
    """
    kept = {run: data for run, data in runs.items() if data}
    first = next(iter(kept.values()))
    name, label = first.names[frame], first.labels[frame]
    cells = []
    for run, data in kept.items():
        if name in data.names:
            guess = data.predictions[data.names.index(name)]
            cells.append(((run, colour_labels(guess)), _errors(label, guess)))
    rows = [[(name, _channels_last(first.images[frame])), ("label", colour_labels(label)), None]]
    for start in range(0, len(cells), 3):
        part = cells[start : start + 3]
        part += [(None, None)] * (3 - len(part))
        rows += [list(row) for row in zip(*part, strict=True)]
    return _gallery("One frame under all runs", rows, [*CAMVID_LEGEND, *ERROR_LEGEND])


@_styled
def overlay(
    image: ArrayLike,
    ids: ArrayLike,
    names: Sequence[str],
    colours: Sequence[Colour],
) -> Figure:
    """An image (H, W, 3) next to itself tinted by the classes `ids` (H, W), with a legend.

    Names that cannot be drawn are numbered, see `drawn_names`, here and in `heat_maps`.
    """
    # More pixels than the figure has would only take memory.
    step = max(1, max(np.shape(ids)) // 1200)
    image, ids = np.asarray(image)[::step, ::step], np.asarray(ids)[::step, ::step]
    tinted = 0.45 * image + 0.55 * colour_labels(ids, colours)
    row = [("image", image), ("segmentation", tinted.round().astype(np.uint8))]
    legend = [*zip(drawn_names(names), colours, strict=True)]
    return _gallery("Segmentation by words", [row], legend)


@_styled
def heat_maps(
    image: ArrayLike, maps: ArrayLike, names: Sequence[str], probabilities: bool = True
) -> Figure:
    """One map per class over `image` (H, W, 3), on one scale: how well its prompts fit a pixel.

    `maps` (K, h, w) are probabilities in [0, 1], or else cosines in [-1, 1].
    """
    maps = np.asarray(maps, dtype=float)
    label = "probability among these" if probabilities else "cosine similarity"
    low, high = (0.0, 1.0) if probabilities else (maps.min(), maps.max())
    rows = math.ceil(len(maps) / 3)
    tall = rows * (8.6 / 3 * _aspect(image) + 0.25) + 0.5
    figure, extent = Canvas("Where each class fits", 9.6, tall), (0, *np.shape(image)[1::-1], 0)
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, values, name in zip(grid.flat, maps, drawn_names(names), strict=False):
        axes.imshow(np.asarray(image).mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=extent)
        drawn = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, extent=extent, alpha=0.7)
        axes.set_title(_line(name, 34), loc="left")
    figure.colorbar(drawn, ax=grid, shrink=0.8, pad=0.01).set_label(label)
    return figure


def _matrix(axes: Axes, values: np.ndarray, low: float, high: float, digits: int) -> AxesImage:
    """A matrix (11, 11) as coloured cells with the numbers in them; NaN is an empty cell."""
    drawn = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
    ticks = range(len(CLASSES))
    axes.set_xticks(ticks, CLASSES, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, CLASSES)
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.{digits}f}"
        colour = "white" if value < (low + high) / 2 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return drawn


@_styled
def similarity_matrices(matrices: Mapping[str, ArrayLike]) -> Figure:
    """Figure 7.1: cosine similarities (11, 11) of the classes' texts, on one colour scale.

    `matrices` maps a title to a matrix; below the title is the mean off the diagonal:
    the lower, the easier the texts are to distinguish.
    """
    arrays = {title: np.asarray(values, dtype=float) for title, values in matrices.items()}
    low = min(values.min() for values in arrays.values())
    figure = Canvas("Cosine similarity between the classes' texts", len(arrays) * 5.1 + 0.8, 5.6)
    panels = figure.subplots(1, len(arrays), squeeze=False)[0]
    for axes, (title, values) in zip(panels, arrays.items(), strict=True):
        drawn = _matrix(axes, values, low, 1.0, 2)
        mean = values[~np.eye(len(values), dtype=bool)].mean()
        axes.set_title(f"{_line(title)}\nmean between classes {mean:.3f}")
    figure.colorbar(drawn, ax=list(panels), shrink=0.75).set_label("cosine similarity")
    return figure


@_styled
def confusion(matrix: ArrayLike, title: str = "Confusion matrix") -> Figure:
    """A confusion matrix (11, 11) of pixel counts, rows the labels, each row as percent of itself.

    The row of a class without labelled pixels is empty.
    """
    counts = np.asarray(matrix, dtype=float)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    figure = Canvas(title, 6.8, 6.1)
    axes = figure.add_subplot()
    drawn = _matrix(axes, share, 0, 100, 0)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(drawn, ax=axes, shrink=0.8).set_label("share of the true class's pixels (%)")
    return figure


@_styled
def class_matrix(series: Mapping[str, Mapping[str, float | None]], reference: str) -> Figure:
    """IoU (percent) of each run, a row, and class, a column; colours are points above `reference`.

    `series` maps a run's name to {class: percent}.
    """
    values = np.array([[row[name] for name in CLASSES] for row in series.values()], dtype=float)
    points = values - np.array([series[reference][name] for name in CLASSES], dtype=float)
    figure = Canvas(
        f"IoU of each class (%), compared with {reference}", 9.6, 1.9 + 0.33 * len(series)
    )
    axes = figure.add_subplot()
    limit = max(10.0, np.nanmax(np.abs(points), initial=0))
    drawn = axes.imshow(points, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(series)), [_line(name, 40) for name in series])
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(points[row, column]) > 0.7 * limit else "black"
        text = "–" if np.isnan(value) else f"{value:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(drawn, ax=axes, pad=0.01).set_label("points")
    return figure


@_styled
def confusion_and_similarity(matrix: ArrayLike, similarity: ArrayLike) -> Figure:
    """Whether classes with similar texts are confused: a point for each pair of classes.

    Args:
        matrix: (11, 11) pixel counts, rows the labels.
        similarity: (11, 11) cosines of the classes' texts.
    """
    counts, cosines = np.asarray(matrix, dtype=float), np.asarray(similarity, dtype=float)
    share = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    first, second = np.triu_indices(len(CLASSES), 1)
    confused = (share[first, second] + share[second, first]) / 2
    rank = np.corrcoef(*(x.argsort().argsort() for x in (cosines[first, second], confused)))[0, 1]
    figure = Canvas(f"Confusion and similarity of texts: rank correlation {rank:+.2f}", 7.2, 4.6)
    axes = figure.add_subplot()
    axes.plot(cosines[first, second], confused, "o", color=_hex(OKABE_ITO[0]))
    for i in confused.argsort()[-6:]:
        pair = f"{CLASSES[first[i]]}, {CLASSES[second[i]]}"
        point = cosines[first[i], second[i]], confused[i]
        axes.annotate(pair, point, (5, 3), textcoords="offset points", fontsize=8)
    axes.set_xlabel("cosine similarity of the two texts")
    axes.set_ylabel("pixels of one taken for the other (%)")
    axes.margins(0.12)
    axes.grid()
    return figure


@_styled
def miou_bars(
    series: Mapping[str, float | None], published: Mapping[str, float] | None = None
) -> Figure:
    """mIoU of each run (percent) as bars, a diamond at the thesis's value where one is given."""
    names = list(series)
    figure = Canvas("mIoU of each run", 7.2, 0.9 + 0.34 * len(names))
    axes = figure.add_subplot()
    values = [series[name] or 0 for name in names]
    # Grey: what has no language.
    plain = [name == "chance" or name.startswith("swiftnet") for name in names]
    colours = [_hex(OKABE_ITO[5 if grey else 0]) for grey in plain]
    bars = axes.barh([_line(name, 40) for name in names], values, color=colours)
    texts = ["–" if series[name] is None else f"{series[name]:.1f}" for name in names]
    axes.bar_label(bars, labels=texts, padding=4)
    if marked := {name: value for name, value in (published or {}).items() if name in names}:
        places = [names.index(name) for name in marked]
        style = {"color": _hex(OKABE_ITO[3]), "mec": "white", "ms": 7, "label": "thesis"}
        axes.plot([*marked.values()], places, "D", **style)
        axes.legend(loc="lower right")
    axes.invert_yaxis()
    axes.set(xlabel="mIoU (%)", xlim=(0, max([*values, *(published or {}).values(), 10]) * 1.08))
    axes.grid(axis="x")
    return figure


@_styled
def curves(histories: Mapping[str, Sequence[Mapping]], title: str = "Training") -> Figure:
    """Loss, and mIoU on the training crops, by epoch; one line per run.

    `histories` maps a run's name to a list of {"epoch", "loss", "miou"}; empty ones are left out.
    With "miou_val" there is a second, dotted line of mIoU.

    Raises:
        InputError: all are empty.
    """
    histories = {name: history for name, history in histories.items() if history}
    if not histories:
        raise InputError("curves: no run was trained; give one whose history is not empty")
    figure = Canvas(title, 9.6, 4.2 + 0.25 * math.ceil(len(histories) / 3))
    val = any("miou_val" in history[-1] for history in histories.values())
    labels = {"loss": "cross-entropy loss", "miou": "mIoU on the training crops (%)"}
    if val:
        labels["miou"] = "mIoU (%): training crops; dotted: val"
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        # Every colour once in each line style.
        axes.set_prop_cycle(
            cycler(linestyle=["-", "--", "-."]) * cycler(color=map(_hex, OKABE_ITO))
        )
        for run, history in histories.items():
            epochs = [entry["epoch"] for entry in history]
            style = {"marker": "o" if len(history) < 30 else None, "markersize": 4}
            values = [entry[key] for entry in history]
            (drawn,) = axes.plot(epochs, values, label=_line(run, 40), **style)
            if key == "miou" and "miou_val" in history[-1]:
                values = [entry["miou_val"] for entry in history]
                axes.plot(epochs, values, color=drawn.get_color(), linestyle=":", linewidth=2)
        axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@_styled
def class_frequencies(counts: Mapping[str, ArrayLike]) -> Figure:
    """Share of pixels of each class in percent; `counts` maps a split to its 12 pixel counts."""
    names, thick = [name for name, _ in CAMVID_LEGEND], 0.8 / len(counts)
    figure = Canvas("Share of each class", 7.2, 1.4 + 12 * (0.12 + 0.17 * len(counts)))
    axes = figure.add_subplot()
    for index, (split, values) in enumerate(counts.items()):
        share = 100 * np.asarray(values) / np.sum(values)
        places = np.arange(len(names)) + (index - (len(counts) - 1) / 2) * thick
        bars = axes.barh(places, share, thick * 0.9, color=_hex(OKABE_ITO[index]), label=split)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("share of all pixels (%)")
    axes.grid(axis="x")
    axes.legend(title="split")
    return figure
