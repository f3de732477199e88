"""The figures of the thesis, the notebooks and the report.

Images are uint8 (N, 3, H, W), labels and predictions class ids (N, H, W), scores percent; arrays
or CPU tensors. Charts are matplotlib figures made without pyplot, so that none has to be closed.
"""

import html
import io
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.report.legend import Colour, drawn_names, one_line
from camvid_lang.report.thesis import family
from camvid_lang.results import FigureData

STYLE = {"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 12}
STYLE |= {"figure.titleweight": "bold", "axes.axisbelow": True, "grid.alpha": 0.3}
STYLE |= {"text.parse_math": False}  # a "$" in a class or file name is not a formula
_OTHERS = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
_styled = matplotlib.rc_context({**_OTHERS, **STYLE})  # whatever the session has set

# Okabe and Ito's colours for all kinds of colour vision (jfly.uni-koeln.de/color, 2008), ordered so
# that neighbours differ in lightness too. Their black is left out: it stands for void.
_CODES = "0072b2 e69f00 009e73 d55e00 cc79a7 808080 56b4e9 f0e442"
OKABE_ITO = tuple(f"#{code}" for code in _CODES.split())


class Drawing(NamedTuple):
    """A drawing that a notebook shows: `name`.svg in this folder with numbers filled in.

    `iou` is figure 6.1: a predicted and a labelled shape on a grid of pixels; TP, FP, FN counted.
    """

    name: str
    numbers: Mapping[str, object] = MappingProxyType({})

    def _repr_svg_(self) -> str:
        text = Path(__file__).with_name(f"{self.name}.svg").read_text(encoding="utf-8")
        escaped = {key: html.escape(str(value)) for key, value in self.numbers.items()}
        return Template(text).substitute(escaped)


def architecture(model: str = "clip-upsampler", result: Mapping | None = None) -> Drawing:
    """Figure 5.1: from an image to classes, with the numbers of channels.

    `model` as in `Experiment`; `result`, a run's results.json, replaces the thesis's numbers.
    """
    if result and "channels" in result["encoder"]:
        encoder, channels = result["encoder"]["name"], result["encoder"]["channels"]
        widths = [result["settings"][key] for key in ("width", "spp_bottleneck", "spp_width")]
    elif model == "swiftnet":
        encoder, widths = "ResNet-18", (128, 128, 42)
        channels = {"stages": (64, 128, 256, 512), "head": 512, "text": 0}
    else:
        encoder, widths = "ConvNeXt-Base", (640, 512, 640)
        channels = {"stages": (128, 256, 512, 1024), "head": 640, "text": 640}
    same = channels["stages"][-1] == channels["head"]
    head = ("the last map", "unchanged") if same else ("CLIP's head", "at every position")
    keys = ("c1", "c2", "c3", "c4", "width", "bottleneck", "level", "head_1", "head_2")
    numbers = zip(keys, (*channels["stages"], *widths, *head), strict=True)
    return Drawing(f"architecture-{model}", {"encoder": encoder, **channels, **dict(numbers)})


class Canvas(Figure):
    """A figure with a title (sizes in inches) that a notebook shows without pyplot."""

    @_styled
    def __init__(self, title: str, width: float, height: float):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        self.suptitle(one_line(title))

    @_styled  # ticks are made when they are first drawn
    def png(self, dpi: int = 100) -> bytes:
        """The bytes of a PNG with `dpi` pixels per inch."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():  # letters that no font here has are drawn as boxes
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        return buffer.getvalue()

    _repr_png_ = png


def colour_labels(ids: ArrayLike, colours: Sequence[Colour] = PALETTE) -> np.ndarray:
    """Class ids (H, W) as an image (H, W, 3) uint8; `InputError` for an id without a colour."""
    ids = np.asarray(ids).astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(colours):
        found = f"ids {ids.min()}..{ids.max()} but {len(colours)} colours"
        raise InputError(f"colour_labels: {found}; give one colour per id")
    return np.asarray(colours, dtype=np.uint8)[ids]


def _gallery(title: str, rows: Sequence[Sequence], legend: Collection[tuple]) -> Canvas:
    """Rows of (heading, image (H, W, 3)), the last may be short, above a legend (name, colour)."""
    columns = len(rows[0])
    each, across = 9.6 / max(columns, 3), 6 if columns > 2 else 4
    tall = len(rows) * (each * _aspect(rows[0][0][1]) + 0.3) + 0.3
    figure = Canvas(title, each * columns, tall + math.ceil(len(legend) / across) * 0.25 + 0.2)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    cells = [cell for row in rows for cell in row]
    for axes in grid.flat[len(cells) :]:
        axes.set_axis_off()
    for axes, (heading, image) in zip(grid.flat, cells, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        heading = heading if len(heading) <= 32 else f"…{heading[-31:]}"
        axes.set_title(one_line(heading), loc="left")
    squares = [Patch(fc=np.divide(colour, 255), ec="black", lw=0.5) for _, colour in legend]
    labels = [one_line(name, 40) for name, _ in legend]
    figure.legend(squares, labels, loc="outside lower center", ncols=across)
    return figure


def _aspect(image: ArrayLike) -> float:
    """Height over width of the space for an image, bounded."""
    height, width = np.shape(image)[:2]
    return min(max(height / width, 0.2), 2.5)


CAMVID_LEGEND = [*zip((*CLASSES, "void"), PALETTE, strict=True)]
ERROR_COLOURS: dict[str, Colour] = {"right": (225,) * 3, "wrong": (213, 94, 0), "void": (0, 0, 0)}
ERROR_LEGEND = [*(dict(CAMVID_LEGEND) | ERROR_COLOURS).items()]  # void is black in both


def _frame(name: str, image: ArrayLike, label: ArrayLike) -> list[tuple[str, np.ndarray]]:
    """A frame (3, H, W) and its label as cells of `_gallery`."""
    return [(name, np.moveaxis(np.asarray(image), 0, -1)), ("label", colour_labels(label))]


@_styled
def frames_and_labels(images: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> Canvas:
    """Figure 4.1: each frame next to its coloured label."""
    rows = [_frame(*row) for row in zip(names, images, labels, strict=True)]
    return _gallery("Frames and their labels", rows, CAMVID_LEGEND)


def errors(label: ArrayLike, predicted: ArrayLike) -> tuple[str, np.ndarray]:
    """Heading and image (H, W, 3) of where a prediction is wrong, in `ERROR_COLOURS`.

    The heading gives the share of labelled pixels that are right.
    """
    label, predicted = np.asarray(label), np.asarray(predicted)
    labelled, right = label != VOID, label == predicted
    share = f"{100 * right[labelled].mean():.1f} % right" if labelled.any() else "all void"
    return share, colour_labels(np.where(labelled, ~right, 2), [*ERROR_COLOURS.values()])


def prediction(data: FigureData, name: str, label: ArrayLike) -> np.ndarray | None:
    """A run's prediction for a frame; None without one, or if its frame of that name is another."""
    for found, truth, predicted in zip(data.names, data.labels, data.predictions, strict=True):
        if found == name and np.array_equal(truth, label):
            return predicted
    return None


@_styled
def predictions(
    images: ArrayLike,
    labels: ArrayLike,
    predictions: ArrayLike,
    names: Sequence[str],
    title: str = "Frames, labels and predictions",
) -> Canvas:
    """Frame, label, prediction and `errors`."""
    rows = [
        [*_frame(name, image, label), ("prediction", colour_labels(guess)), errors(label, guess)]
        for name, image, label, guess in zip(names, images, labels, predictions, strict=True)
    ]
    return _gallery(title, rows, ERROR_LEGEND)


@_styled
def comparison(runs: Mapping[str, FigureData | None], frame: int = 0) -> Canvas:
    """One frame under several runs: frame and label, then each run's prediction and `errors`.

    `runs` are their `figures.npz`; those that lack the `frame` of the first are left out.
    """
    kept = {run: data for run, data in runs.items() if data}
    first = next(iter(kept.values()))
    name, label = first.names[frame], first.labels[frame]
    cells = _frame(name, first.images[frame], label)
    for run, data in kept.items():
        if (predicted := prediction(data, name, label)) is not None:
            cells += [(run, colour_labels(predicted)), errors(label, predicted)]
    rows = [cells[start : start + 4] for start in range(0, len(cells), 4)]
    return _gallery("One frame under all runs", rows, ERROR_LEGEND)


@_styled
def overlay(
    image: ArrayLike, ids: ArrayLike, names: Sequence[str], colours: Sequence[Colour]
) -> Canvas:
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
) -> Canvas:
    """One map per class over `image` (H, W, 3), on one scale: how well its prompts fit a pixel.

    `maps` (K, h, w) are probabilities in [0, 1], or else cosines in [-1, 1].
    """
    maps, rows = np.asarray(maps, dtype=float), math.ceil(len(maps) / 3)
    low, high = (0.0, 1.0) if probabilities else (maps.min(), maps.max())
    tall = rows * (8.6 / 3 * _aspect(image) + 0.25) + 0.5
    figure, extent = Canvas("Where each class fits", 9.6, tall), (0, *np.shape(image)[1::-1], 0)
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, values, name in zip(grid.flat, maps, drawn_names(names), strict=False):
        axes.imshow(np.asarray(image).mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=extent)
        drawn = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, extent=extent, alpha=0.7)
        axes.set_title(one_line(name, 34), loc="left")
    label = "probability among these" if probabilities else "cosine similarity"
    figure.colorbar(drawn, ax=grid, shrink=0.8, pad=0.01, label=label)
    return figure


def _label_cells(drawn: AxesImage, values: np.ndarray, rows: Sequence[str], digits: int) -> None:
    """Write `values` on the coloured cells of `drawn`, one column per class; NaN is a dash."""
    axes = drawn.axes
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=50, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [one_line(row, 40) for row in rows])
    lightness = drawn.to_rgba(drawn.get_array())[..., :3] @ (0.3, 0.6, 0.1)
    for (row, column), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.{digits}f}"
        colour = "white" if lightness[row, column] < 0.5 and text != "–" else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


@_styled
def similarity_matrices(matrices: Mapping[str, ArrayLike]) -> Canvas:
    """Figure 7.1: {title: cosine similarities (11, 11) of the classes' texts}, on one scale.

    The lower the mean off the diagonal, the easier the texts are to distinguish.
    """
    arrays = {title: np.asarray(values, dtype=float) for title, values in matrices.items()}
    low = min(values.min() for values in arrays.values())
    figure = Canvas("Cosine similarity between the classes' texts", len(arrays) * 5.1 + 0.8, 5.6)
    panels = figure.subplots(1, len(arrays), squeeze=False)[0]
    for axes, (title, values) in zip(panels, arrays.items(), strict=True):
        drawn = axes.imshow(values, cmap="cividis", vmin=low, vmax=1)
        _label_cells(drawn, values, CLASSES, 2)
        mean = values[~np.eye(len(values), dtype=bool)].mean()
        axes.set_title(f"{one_line(title)}\nmean between classes {mean:.3f}")
    figure.colorbar(drawn, ax=list(panels), shrink=0.75, label="cosine similarity")
    return figure


@_styled
def confusion(matrix: ArrayLike, title: str = "Confusion matrix") -> Canvas:
    """Pixel counts, rows the labels, in percent of each row, which may be empty; without void."""
    counts = np.asarray(matrix, dtype=float)[: len(CLASSES), : len(CLASSES)]
    total = counts.sum(axis=1, keepdims=True)
    share = 100 * counts / np.where(total > 0, total, np.nan)
    figure = Canvas(title, 6.8, 6.1)
    axes = figure.add_subplot()
    drawn = axes.imshow(share, cmap="cividis", vmin=0, vmax=100)
    _label_cells(drawn, share, CLASSES, 0)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="share of the true class's pixels (%)")
    return figure


@_styled
def class_matrix(series: Mapping[str, Mapping[str, float | None]], reference: str) -> Canvas:
    """IoU {run: {class: percent}}, a row for each run; colours are points above `reference`."""
    values = np.array([[row[name] for name in CLASSES] for row in series.values()], dtype=float)
    points = values - values[[*series].index(reference)]
    height = 1.9 + 0.33 * len(series)
    figure = Canvas(f"IoU of each class (%), compared with {reference}", 9.6, height)
    axes = figure.add_subplot()
    limit = max(10.0, np.nanmax(np.abs(points), initial=0))
    drawn = axes.imshow(points, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    _label_cells(drawn, values, [*series], 1)
    figure.colorbar(drawn, ax=axes, pad=0.01, label="points")
    return figure


def family_colours(runs: Collection[str]) -> dict[str, str]:
    """{run: colour}, one colour for each `family`; grey is SwiftNet's."""
    families = ("full", "frozen", "adapter", "best", "bilinear", "swiftnet", *map(family, runs))
    colours = dict(zip(dict.fromkeys(families), OKABE_ITO * len(families), strict=False))
    return {run: colours[family(run)] for run in runs}


@_styled
def curves(histories: Mapping[str, Sequence[Mapping]], title: str = "Training") -> Canvas:
    """Loss, and mIoU on the training crops, by epoch; "miou_val" as a dotted line.

    `histories` is {run: [{"epoch", "loss", "miou"}, ...]}; those below two epochs are left out, and
    `InputError` is raised where all are empty. One colour per `family`, descriptions are dashed.
    """
    if not any(histories.values()):
        raise InputError("curves: no run was trained; give one whose history is not empty")
    colours = family_colours(histories)
    histories = {name: history for name, history in histories.items() if len(history) > 1}
    figure = Canvas(title, 5.6, 5.2 + 0.25 * math.ceil(len(histories) / 2))
    labels = {"loss": "training loss", "miou": "mIoU on the training crops (%)"}
    if any("miou_val" in history[-1] for history in histories.values()):
        labels["miou"] = "mIoU (%): training crops; dotted: val"
    for axes, (key, label) in zip(figure.subplots(2, 1, sharex=True), labels.items(), strict=True):
        drawn = []
        for run, history in histories.items():
            epochs, values = ([row[k] for row in history] for k in ("epoch", key))
            colour, dashes = colours[run], "--" if "descriptions" in run else "-"
            drawn.append((colour, dashes))
            width = 2.4 / drawn.count(drawn[-1])  # runs of one look differ in width
            axes.plot(epochs, values, dashes, c=colour, lw=width, label=one_line(run, 40))
            if key == "miou" and "miou_val" in history[-1]:
                axes.plot(epochs, [row["miou_val"] for row in history], ":", c=colour, lw=width)
        axes.update_datalim([(1, 0)])  # so that the margin above is a share of the whole height
        axes.set(ylabel=label, ylim=(0, None))
        axes.grid()
    axes.set_xlabel("epoch" if histories else "epoch (a curve needs two)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if histories:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@_styled
def class_frequencies(counts: Mapping[str, ArrayLike]) -> Canvas:
    """Share of pixels of each class in percent; `counts` maps a split to its 12 pixel counts."""
    thick = 0.8 / len(counts)
    figure = Canvas("Share of each class", 7.2, 1.4 + 12 * (0.12 + 0.17 * len(counts)))
    axes = figure.add_subplot()
    for index, (split, values) in enumerate(counts.items()):
        share = 100 * np.asarray(values) / np.sum(values)
        places = np.arange(12) + (index - (len(counts) - 1) / 2) * thick
        bars = axes.barh(places, share, thick * 0.9, color=OKABE_ITO[index], label=split)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(range(12), [name for name, _ in CAMVID_LEGEND])
    axes.set_ylim(11.6, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel("share of all pixels (%)")
    axes.grid(axis="x")
    axes.legend(title="split")
    return figure
