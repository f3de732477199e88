"""The figures of the thesis and of the report, each a function that returns a matplotlib figure.

Frames are uint8 (N, 3, H, W), labels and predictions hold class ids (N, H, W), scores are percent;
arrays and CPU tensors both do. Nothing here opens a window or keeps a figure alive.
"""

import math

import numpy as np

from camvid_lang.drawings import KINDS, architecture, iou_venn
from camvid_lang.errors import InputError
from camvid_lang.galleries import CAMVID_NAMES, frames_and_labels, predictions
from camvid_lang.plotting import (
    FONT,
    OKABE_ITO,
    Canvas,
    colour_labels,
    hexadecimal,
    palette,
    plain,
    to_png,
)
from camvid_lang.taxonomy import CLASSES

__all__ = [
    "KINDS",
    "architecture",
    "bench_bars",
    "class_bars",
    "class_frequencies",
    "colour_labels",
    "confusion",
    "curves",
    "frames_and_labels",
    "iou_venn",
    "palette",
    "predictions",
    "similarity_matrices",
    "to_png",
]

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
