"""What all figures share: a canvas that needs no screen, the colours, and pictures as bytes.

The figures use matplotlib without pyplot: nothing global is opened, so nothing has to be closed,
and the same code runs in a notebook, in a test and in a batch job.

Two explanatory drawings: the architecture (figure 5.1) and what IoU counts (figure 6.1).

Frames, labels and predictions side by side (figure 4.1 and the samples).

The figures of the thesis and of the report, each a function that returns a matplotlib figure.

Frames are uint8 (N, 3, H, W), labels and predictions hold class ids (N, H, W), scores are percent;
arrays and CPU tensors both do. Nothing here opens a window or keeps a figure alive."""

import io
import math
import warnings

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError

__all__ = [
    "CAMVID_NAMES",
    "FONT",
    "KINDS",
    "OKABE_ITO",
    "Canvas",
    "architecture",
    "bench_bars",
    "class_bars",
    "class_frequencies",
    "colour_labels",
    "confusion",
    "curves",
    "frames_and_labels",
    "heat_maps",
    "hexadecimal",
    "iou_venn",
    "overlay",
    "palette",
    "plain",
    "predictions",
    "similarity_matrices",
    "to_png",
]

# Points; the smallest size in use anywhere, legible at 100 dots per inch.
FONT = 9

# Okabe and Ito's colours for all kinds of colour vision (jfly.uni-koeln.de/color, 2008), ordered so
# that neighbours differ in lightness too and the two blues, alike once a picture shines through,
# seldom meet. Their black is left out: it stands for void.
OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (128, 128, 128),
    (86, 180, 233),
    (240, 228, 66),
)


class Canvas(Figure):
    """A matplotlib figure with a title that a notebook shows without pyplot being imported."""

    def __init__(self, title, width, height):
        """`title` goes on top; `width` and `height` in inches."""
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        self.suptitle(plain(title), fontsize=FONT + 3, fontweight="bold")

    def _repr_png_(self):
        return to_png(self)


def to_png(figure, dpi=100):
    """The figure as the bytes of a PNG with `dpi` pixels to the inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # words in a script that no font here has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def palette(n):
    """`n` different RGB triples (ints 0..255) for any list of classes.

    The first eight are told apart with every kind of colour vision; the following are darker and
    lighter shades of the same eight, so beyond about 16 a legend alone is no longer enough.
    """
    colours = []
    for index in range(n):
        base = np.array(OKABE_ITO[index % len(OKABE_ITO)], dtype=float)
        turn = index // len(OKABE_ITO)
        if turn:
            # Steps of the golden ratio spread any number of shades evenly between the two ends.
            amount = 0.35 + 0.4 * ((turn - 1) // 2 * 0.618 % 1)
            base += ((0 if turn % 2 else 255) - base) * amount
        colours.append(tuple(int(value) for value in base.round()))
    return tuple(colours)


def plain(text, most=None):
    """A text that matplotlib shows as it stands: no formula between dollar signs, one line,
    a question mark for what cannot be printed.

    `most` is the largest number of characters; the rest becomes an ellipsis.
    """
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))
    if most and len(text) > most:
        text = f"{text[: most - 1]}…"
    # A legend leaves out what begins with an underscore; a space of no width keeps it in.
    text = f"\u200b{text}" if text.startswith("_") else text
    return text.replace("$", r"\$")


def hexadecimal(colour):
    """An RGB triple of ints 0..255 as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in colour))


def colour_labels(label, colours=PALETTE):
    """Class ids (H, W) as a picture: uint8 (H, W, 3), RGB.

    `colours` is a sequence of RGB triples 0..255, one per id; the default is CamVid's 11 and black
    for void. Raises InputError for an id without a colour.
    """
    ids = np.asarray(label)
    if ids.ndim != 2:
        raise InputError(
            f"colour_labels: the label has shape {ids.shape}; give one map of ids, (H, W)"
        )
    if ids.size and not 0 <= ids.min() <= ids.max() < len(colours):
        raise InputError(
            f"colour_labels: the ids run from {ids.min()} to {ids.max()} but there are "
            f"{len(colours)} colours; give one colour per id through colours="
        )
    return np.asarray(colours, dtype=np.uint8)[ids.astype(np.int64)]


KINDS = {
    "bilinear": "Bilinear baseline: the encoder's last map, enlarged; nothing is learned",
    "adapter": "Adapter baseline: two learned 1×1 convolutions, then enlarged",
    "ladder": "Language segmenter: encoder, spatial pyramid and ladder",
    "swiftnet": "SwiftNet single-scale: the same ladder with an ordinary classifier",
}
# Encoder, channels of its taps, width of the ladder, of each pyramid level, of the bottleneck.
CONVNEXT = ("ConvNeXt-Base", (128, 256, 512, 1024), 640, 640, 512)
RESNET = ("ResNet-18", (64, 128, 256, 512), 128, 42, 128)
ENCODER, LEARNED, LANGUAGE, PLAIN = "#d6e6f4", "#fde6c4", "#d3ece3", "#f2f2f2"


class _Plan:
    """Named boxes and the arrows between them; lengths in inches, y upwards."""

    def __init__(self, title, width, height):
        self.figure = Canvas(title, width, height)
        self.axes = self.figure.add_subplot()
        self.axes.set(xlim=(0, width), ylim=(0, height - 0.45), aspect="equal")
        self.axes.set_axis_off()
        self.places = {}

    def box(self, name, x, y, text, colour, width=1.42, height=1.0):
        style = "round,pad=0,rounding_size=0.08"
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(
            FancyBboxPatch(
                corner, width, height, boxstyle=style, facecolor=colour, edgecolor="#444444"
            )
        )
        self.axes.text(x, y, text, ha="center", va="center", fontsize=FONT)
        self.places[name] = (x, y, width, height)

    def link(self, start, end, text=""):
        """An arrow from one box to another, along the axis on which they lie further apart."""
        x, y, width, height = self.places[start]
        to_x, to_y, to_width, to_height = self.places[end]
        if abs(to_x - x) > abs(to_y - y):
            side = np.sign(to_x - x)
            tail, tip = (x + side * width / 2, y), (to_x - side * to_width / 2, to_y)
        else:
            side = np.sign(to_y - y)
            tail, tip = (x, y + side * height / 2), (to_x, to_y - side * to_height / 2)
        self.axes.add_patch(
            FancyArrowPatch(
                tail,
                tip,
                arrowstyle="-|>",
                mutation_scale=12,
                color="#222222",
                shrinkA=0,
                shrinkB=0,
            )
        )
        middle = ((tail[0] + tip[0]) / 2 + 0.08, (tail[1] + tip[1]) / 2)
        self.axes.text(*middle, text, va="center", fontsize=FONT)

    def key(self, x, y, entries):
        for index, (colour, text) in enumerate(entries):
            self.box(text, x, y - 0.3 * index, "", colour, 0.3, 0.2)
            self.axes.text(x + 0.25, y - 0.3 * index, text, va="center", fontsize=FONT)


def architecture(
    kind="ladder",
    encoder=None,
    channels=None,
    dimension=640,
    width=None,
    levels=None,
    bottleneck=None,
    classes=11,
):
    """Figure 5.1: how a picture becomes classes, as boxes and arrows.

    `kind` is a key of `KINDS`: "bilinear", "adapter", "ladder" (the thesis's model) or "swiftnet".
    `encoder` is its name, `channels` those of its four taps at strides 4, 8, 16 and 32;
    `dimension` is that of the text vectors, `width` the ladder's channels, `levels` the pyramid's
    per level (640, or 160 for the narrow one), `bottleneck` what the pyramid is first brought to.
    What is left out is as the thesis has it; SwiftNet's are its authors'. Raises InputError for
    another kind.
    """
    if kind not in KINDS:
        raise InputError(f"architecture: no kind {kind!r}; choose one of {', '.join(KINDS)}")
    defaults = RESNET if kind == "swiftnet" else CONVNEXT
    given = (encoder, channels, width, levels, bottleneck)
    encoder, channels, width, levels, bottleneck = (
        default if value is None else value for value, default in zip(given, defaults, strict=True)
    )
    ladder, worded = kind in ("ladder", "swiftnet"), kind != "swiftnet"
    plan = _Plan(KINDS[kind], 10.4 if worded else 8.7, 5.6 if ladder else 4.5)
    top, middle, low = (4.5, 2.55, 0.75) if ladder else (3.4, 1.6, 1.6)
    columns = [0.85 + 1.74 * index for index in range(6)]

    plan.box("picture", columns[0], top, "picture\n3 × H × W", PLAIN)
    for stage, (x, count) in enumerate(zip(columns[1:5], channels, strict=True), start=1):
        text = f"{encoder}\nstage {stage}\nstride {2 ** (stage + 1)}\n{count} channels"
        plan.box(f"stage {stage}", x, top, text, ENCODER)
        plan.link(f"stage {stage - 1}" if stage > 1 else "picture", f"stage {stage}")
    last = "stage 4"
    if worded:
        text = f"CLIP's own head,\nat every position\nstride 32\n{dimension} channels"
        plan.box("head", columns[5], top, text, ENCODER)
        plan.link(last, "head")
        last = "head"

    vectors = f"each pixel's vector\nset to length 1\n{dimension} × H × W"
    if ladder:
        text = (
            f"spatial pyramid\n1×1 to {bottleneck}\ngrids 6, 3, 2, 1\n{levels} per level\n"
            f"1×1 to {width}"
        )
        plan.box("pyramid", columns[5 if worded else 4], middle, text, LEARNED, height=1.2)
        plan.link(last, "pyramid")
        last = "pyramid"
        for stage in (3, 2, 1):
            text = f"enlarge ×2\nadd, blend 3×3\nstride {2 ** (stage + 1)}\n{width} channels"
            plan.box(f"step {stage}", columns[stage], middle, text, LEARNED)
            plan.link(last, f"step {stage}")
            plan.link(f"stage {stage}", f"step {stage}", f"skip, 1×1\nto {width}")
            last = f"step {stage}"
        text = (
            f"bilinear ×4\n{vectors}"
            if worded
            else f"3×3 classifier\nto {classes} scores\nbilinear ×4"
        )
        plan.box("pixels", columns[0], middle, text, PLAIN if worded else LEARNED)
        plan.link(last, "pixels")
    else:
        if kind == "adapter":
            text = f"1×1, ReLU,\n1×1, ReLU\nstride 32\n{dimension} channels"
            plan.box("adapter", columns[5], middle, text, LEARNED)
            plan.link(last, "adapter")
            last = "adapter"
        place = columns[4] - 0.1 if kind == "adapter" else columns[5]
        plan.box("pixels", place, middle, f"bilinear ×32\n{vectors}", PLAIN)
        plan.link(last, "pixels")

    answer = columns[0 if ladder else 2]
    text = f"{classes} × H × W\nlargest wins:\none class per pixel"
    if worded:
        text = f"cosine similarity\n{text}"
    plan.box("answer", answer, low, text, LANGUAGE if worded else PLAIN)
    plan.link("pixels", "answer")
    if worded:
        text = (
            f"{classes} text vectors\n(names or descriptions)\nof length 1\n{classes} × {dimension}"
        )
        plan.box(
            "words", columns[2] if ladder else columns[0] + 0.2, low, text, LANGUAGE, width=1.85
        )
        plan.link("words", "answer")
    entries = [(ENCODER, "pretrained encoder"), (LEARNED, "learned here")]
    entries = [entry for entry in entries if kind != "bilinear" or entry[0] == ENCODER]
    if worded:
        entries.append((LANGUAGE, "language"))
    plan.key(columns[4] - 0.4 if ladder else columns[0] - 0.5, 1.1 if ladder else 0.8, entries)
    return plan.figure


def iou_venn():
    """Figure 6.1: a predicted and a true shape on a grid of pixels, with TP, FP and FN counted.

    The numbers in the picture are counted from the shapes drawn, not written by hand.
    """
    rows, columns, radius = 28, 46, 11
    centres = {"prediction": (17.0, 14.0), "truth": (28.0, 14.0)}
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    predicted, true = (
        (x - column) ** 2 + (y - row) ** 2 <= radius**2 for column, row in centres.values()
    )
    regions = np.select([predicted & true, predicted, true], [2, 1, 3], 0)
    fp, tp, fn = (int((regions == region).sum()) for region in (1, 2, 3))

    figure = Canvas("IoU: how much of both shapes together do they share?", 7.2, 5.0)
    axes = figure.add_subplot()
    colours = ListedColormap(["white", *(hexadecimal(OKABE_ITO[index]) for index in (1, 2, 4))])
    axes.pcolormesh(regions, cmap=colours, vmin=0, vmax=3, edgecolors="#dddddd", linewidth=0.4)
    axes.set(aspect="equal", xlim=(0, columns), ylim=(rows, 0))
    axes.set_xlabel("pixels")
    axes.set_ylabel("pixels")
    for name, (column, row) in centres.items():
        style = "-" if name == "truth" else "--"
        axes.add_patch(Circle((column, row), radius, fill=False, linewidth=2, linestyle=style))
        axes.text(column, row - radius - 1, name, ha="center", fontsize=FONT + 2)
    labels = ((11.5, f"FP\nonly predicted\n{fp}"), (22.5, f"TP\nboth\n{tp}"))
    for column, text in (*labels, (33.5, f"FN\nonly true\n{fn}")):
        axes.text(column, 14, text, ha="center", va="center", fontsize=FONT + 1, fontweight="bold")
    formula = f"IoU = TP / (TP + FP + FN) = {tp} / ({tp} + {fp} + {fn}) = {tp / (tp + fp + fn):.3f}"
    axes.set_title(formula, fontsize=FONT + 3)
    return figure


CAMVID_NAMES = (*CLASSES, "void")


def _gallery(title, rows, legend):
    """Pictures in a table; each row is a list of (heading, picture), `legend` of (name, colour)."""
    if not rows:
        raise InputError(f"{title}: there is no frame to show; give at least one")
    height, width = rows[0][0][1].shape[:2]
    columns = len(rows[0])
    each = 9.6 / max(columns, 3)
    across = 6 if columns > 2 else 4
    below = math.ceil(len(legend) / across) * 0.25 + 0.2
    tall = len(rows) * (each * _tallness(height, width) + 0.3) + 0.6
    figure = Canvas(title, each * columns, tall + below)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, pictures in zip(axes, rows, strict=True):
        for place, (heading, picture) in zip(line, pictures, strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            heading = heading if len(heading) <= 32 else f"…{heading[-31:]}"
            place.set_title(plain(heading), fontsize=FONT, loc="left")
    patches = [
        Patch(
            facecolor=hexadecimal(colour), edgecolor="black", linewidth=0.5, label=plain(name, 40)
        )
        for name, colour in legend
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=across, fontsize=FONT)
    return figure


def _tallness(height, width):
    """Height over width of a picture's place: within reason, whatever the picture's shape."""
    return min(max(height / width, 0.2), 2.5)


def _channels_last(image):
    return np.moveaxis(np.asarray(image), 0, -1)


def frames_and_labels(images, labels, titles, names=CAMVID_NAMES, colours=PALETTE):
    """Figure 4.1: each frame beside its coloured label, with a legend.

    `titles` is one short text per frame; `names` and `colours` one entry per id, void last.
    Raises InputError for no frame, or an id without a colour.
    """
    rows = [
        [(title, _channels_last(image)), ("label", colour_labels(label, colours))]
        for image, label, title in zip(images, labels, titles, strict=True)
    ]
    return _gallery("Frames and their labels", rows, [*zip(names, colours, strict=True)])


def predictions(
    images,
    labels,
    predictions,
    titles,
    names=CAMVID_NAMES,
    colours=PALETTE,
    void=VOID,
    title="Frames, labels and predictions",
):
    """Sample frames: frame, label, prediction, and where the two differ, with a legend.

    The last column is light grey where right, vermilion where wrong, black where the label is
    `void` and nothing counts; its heading states the share of right pixels in percent.
    """
    errors = np.array([(225, 225, 225), OKABE_ITO[3], (0, 0, 0)], dtype=np.uint8)
    key = [*zip(names, colours, strict=True), ("right", errors[0]), ("wrong", errors[1])]
    rows = []
    for image, label, guess, name in zip(images, labels, predictions, titles, strict=True):
        label, guess = np.asarray(label), np.asarray(guess)
        counted = label != void
        state = np.where(counted, label != guess, 2).astype(np.int64)
        right = f"{100 * (state[counted] == 0).mean():.1f} % right" if counted.any() else "all void"
        pictures = [(name, _channels_last(image)), ("label", colour_labels(label, colours))]
        pictures.append(("prediction", colour_labels(guess, colours)))
        rows.append([*pictures, (f"errors: {right}", errors[state])])
    return _gallery(title, rows, key)


def overlay(image, ids, names, colours):
    """A picture beside the same picture tinted by class, with a legend.

    `image` is uint8 (H, W, 3), `ids` (H, W); `names` and `colours` hold one entry per id.
    """
    # More pixels than the figure has would only take memory.
    step = max(1, max(np.asarray(ids).shape) // 1200)
    image, ids = np.asarray(image)[::step, ::step], np.asarray(ids)[::step, ::step]
    tinted = 0.45 * image + 0.55 * colour_labels(ids, colours)
    row = [("picture", image), ("segmentation", tinted.round().astype(np.uint8))]
    return _gallery("Segmentation by words", [row], [*zip(names, colours, strict=True)])


def heat_maps(image, cosines, names, temperature=None, columns=3):
    """One map per phrase: how well it fits each pixel, dark to bright, all on one scale.

    `image` is uint8 (H, W, 3), `cosines` (K, h, w) in [-1, 1], `names` K texts. With a temperature
    the maps show the phrases' probabilities, the softmax of cosines / temperature over the
    phrases, from 0 to 1; without, or with one phrase alone, the cosines themselves.
    """
    maps, label = np.asarray(cosines, dtype=float), "cosine similarity"
    low, high = float(maps.min()), float(maps.max())
    if temperature and len(maps) > 1:
        maps = np.exp((maps - maps.max(axis=0)) / temperature)
        maps, label, low, high = maps / maps.sum(axis=0), "probability among these", 0.0, 1.0
    height, width = np.asarray(image).shape[:2]
    rows = math.ceil(len(maps) / columns)
    each = 8.6 / columns  # the rest is the scale's
    tall = rows * (each * _tallness(height, width) + 0.25) + 0.5
    figure = Canvas("Where each phrase fits", 9.6, tall)
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for place in axes.flat:
        place.set_axis_off()
    for place, values, name in zip(axes.flat, maps, names, strict=False):
        shown = place.imshow(values, cmap="viridis", vmin=low, vmax=high)
        place.set_title(plain(name, 34), fontsize=FONT, loc="left")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label(label, fontsize=FONT)
    return figure


BLUE, ORANGE = hexadecimal(OKABE_ITO[0]), hexadecimal(OKABE_ITO[3])
STYLES = ("-", "--", "-.", ":")


def _matrix(axes, values, names, colours, low, high, template):
    """A square matrix as coloured cells with the numbers in them; NaN is an empty cell."""
    picture = axes.imshow(values, cmap=colours, vmin=low, vmax=high)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=FONT)
    axes.set_yticks(ticks, names, fontsize=FONT)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = picture.cmap(picture.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = "–" if np.isnan(value) else template.format(value)
        colour = "white" if dark and not np.isnan(value) else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return picture


def similarity_matrices(matrices, names=CLASSES):
    """Figure 7.1: cosine similarities (K, K) between texts, side by side on one colour scale.

    `matrices` maps a title ("Names", "Descriptions") to a matrix; below each title stands the mean
    of what lies off the diagonal: the lower, the better the texts are told apart.
    """
    matrices = {title: np.asarray(values, dtype=float) for title, values in matrices.items()}
    size = len(names)
    for title, values in matrices.items():
        if values.shape != (size, size):
            raise InputError(
                f"similarity_matrices: {title!r} has shape {values.shape} but there are {size} "
                f"names; give a matrix ({size}, {size})"
            )
    low = min(float(values.min()) for values in matrices.values())
    edge = max(3.0, 0.37 * size)
    figure = Canvas(
        "Cosine similarity between the classes' texts",
        len(matrices) * (edge + 1.0) + 0.8,
        edge + 1.5,
    )
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (title, values) in zip(panels, matrices.items(), strict=True):
        picture = _matrix(axes, values, names, "cividis", low, 1.0, "{:.2f}")
        apart = values[~np.eye(size, dtype=bool)]
        mean = f"mean between classes {apart.mean():.3f}" if size > 1 else "one class"
        axes.set_title(f"{title}\n{mean}", fontsize=FONT + 1)
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.75)
    bar.set_label("cosine similarity (1 = same direction)", fontsize=FONT)
    return figure


def confusion(matrix, names=CLASSES, title="Confusion: where the pixels of each class went"):
    """A confusion matrix (K, K) of pixel counts, rows the truth, each row as percent of itself.

    A class without a pixel in the labels has an empty row.
    """
    counts = np.asarray(matrix, dtype=float)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    edge = max(3.5, 0.42 * len(names))
    figure = Canvas(title, edge + 2.2, edge + 1.5)
    axes = figure.add_subplot()
    picture = _matrix(axes, share, names, "cividis", 0, 100, "{:.0f}")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    bar.set_label("share of the true class's pixels (%)", fontsize=FONT)
    return figure


def class_bars(series, published=None, names=CLASSES, title="IoU of each class", columns=3):
    """Per-class IoU, one panel per run, with the thesis's value as a diamond where there is one.

    `series` and `published` map a run's name to {class: percent or None}; a class without a value
    has a dash instead of a bar. All panels share one scale from 0 to 100 %.
    """
    if not series:
        raise InputError("class_bars: there is no run to show; give at least one")
    published = published or {}
    columns = min(columns, len(series))
    lines = math.ceil(len(series) / columns)
    figure = Canvas(title, 1.0 + 3.0 * columns, 0.9 + lines * (0.22 * len(names) + 0.75))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (run, scores) in zip(panels, series.items(), strict=False):
        values = [scores.get(name) for name in names]
        axes.barh(range(len(names)), [value or 0 for value in values], color=BLUE, label="measured")
        for place, value in enumerate(values):
            text = "–" if value is None else f"{value:.1f}"
            axes.text(103, place, text, va="center", ha="left", fontsize=8)
        theirs = published.get(run) or {}
        marks = [
            (theirs[name], at) for at, name in enumerate(names) if theirs.get(name) is not None
        ]
        if marks:
            axes.plot(
                *zip(*marks, strict=True),
                "D",
                color=ORANGE,
                markeredgecolor="white",
                markersize=7,
                label="thesis",
            )
        axes.set_title(plain(run, 40), fontsize=FONT + 1)
        axes.set_yticks(range(len(names)), names, fontsize=FONT)
        axes.set(xlim=(0, 122), xticks=range(0, 101, 25), ylim=(len(names) - 0.4, -0.6))
        axes.tick_params(labelsize=FONT, labelbottom=True)
        axes.set_xlabel("IoU (%)", fontsize=FONT)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    for axes in panels[len(series) :]:
        axes.set_axis_off()
    handles = {
        text: item
        for axes in panels
        for item, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, fontsize=FONT
    )
    return figure


def curves(histories, title="Loss and mIoU while learning"):
    """Loss, and mIoU over the crops learned from, against the epoch; one line per run.

    `histories` maps a run's name to its list of {"epoch", "loss", "miou"?}. Runs that learn nothing
    (an empty history) are left out. Raises InputError if none is left.
    """
    histories = {name: history for name, history in histories.items() if history}
    if not histories:
        raise InputError("curves: no run has a history; give at least one run that learned")
    wanted = [("loss", "cross-entropy loss"), ("miou", "mIoU on the crops learned from (%)")]
    entries = [entry for history in histories.values() for entry in history]
    if all(entry.get("miou") is None for entry in entries):
        wanted.pop()
    figure = Canvas(title, 1.0 + 4.3 * len(wanted), 4.2 + 0.25 * math.ceil(len(histories) / 3))
    panels = figure.subplots(1, len(wanted), squeeze=False)[0]
    for axes, (key, label) in zip(panels, wanted, strict=True):
        for index, ((run, entries), colour) in enumerate(
            zip(histories.items(), palette(len(histories)), strict=True)
        ):
            points = [
                (entry["epoch"], entry[key]) for entry in entries if entry.get(key) is not None
            ]
            style = STYLES[index % len(STYLES)]
            mark = "o" if len(points) < 30 else None
            axes.plot(
                *(zip(*points, strict=True) if points else ([], [])),
                color=hexadecimal(colour),
                linestyle=style,
                marker=mark,
                markersize=4,
                label=plain(run, 40),
            )
        axes.set_xlabel("epoch", fontsize=FONT)
        axes.set_ylabel(label, fontsize=FONT)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=FONT)
        axes.grid(alpha=0.3)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=FONT)
    return figure


def class_frequencies(counts, names=CAMVID_NAMES, title="How much of the picture each class fills"):
    """Share of pixels per class in percent, one bar per split.

    `counts` maps a split ("train", "test") to pixel counts, one per name; the names may go one
    further than the counts (void left out).
    """
    if not counts:
        raise InputError("class_frequencies: there is no split to show; give at least one")
    names = names[: max(len(values) for values in counts.values())]
    thick = 0.8 / len(counts)
    figure = Canvas(title, 7.2, 1.4 + len(names) * (0.12 + 0.17 * len(counts)))
    axes = figure.add_subplot()
    for index, ((split, values), colour) in enumerate(
        zip(counts.items(), palette(len(counts)), strict=True)
    ):
        share = 100 * np.asarray(values, dtype=float) / max(float(np.sum(values)), 1.0)
        places = np.arange(len(names)) + (index - (len(counts) - 1) / 2) * thick
        bars = axes.barh(places, share, thick * 0.9, color=hexadecimal(colour), label=split)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(range(len(names)), names, fontsize=FONT)
    axes.invert_yaxis()
    axes.set_xlabel("share of all pixels (%)", fontsize=FONT)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(title="split", fontsize=FONT, title_fontsize=FONT)
    return figure


def bench_bars(results, title="The thesis's way and ours"):
    """Seconds and peak extra memory of head, training step and inference, as `bench` measured."""
    figure = Canvas(title, 9.0, 3.6)
    parts = ("head", "step", "inference")
    for axes, key, unit, scale in zip(
        figure.subplots(1, 2),
        ("seconds", "extra_bytes"),
        ("time (ms)", "peak extra memory (MiB)"),
        (1e3, 2**-20),
        strict=True,
    ):
        for offset, (style, colour) in enumerate((("thesis", ORANGE), ("ours", BLUE))):
            values = [(results[part][style][key] or 0) * scale for part in parts]
            places = [place + 0.4 * offset - 0.2 for place in range(len(parts))]
            bars = axes.barh(places, values, height=0.38, color=colour, label=style)
            axes.bar_label(bars, [f" {value:,.0f}" for value in values], fontsize=FONT)
        axes.set_yticks(range(len(parts)), parts, fontsize=FONT)
        axes.set(xscale="log", ylim=(len(parts) - 0.5, -0.5))
        axes.margins(x=0.3)
        axes.tick_params(labelsize=FONT)
        axes.set_xlabel(f"{unit}, logarithmic", fontsize=FONT)
        axes.legend(fontsize=FONT)
    return figure
