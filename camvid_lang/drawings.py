"""Two explanatory drawings: the architecture (figure 5.1) and what IoU counts (figure 6.1)."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from camvid_lang.errors import InputError
from camvid_lang.plotting import FONT, OKABE_ITO, Canvas, hexadecimal

__all__ = ["KINDS", "architecture", "iou_venn"]

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
