"""Frames, labels and predictions side by side (figure 4.1 and the samples)."""

import math

import numpy as np
from matplotlib.patches import Patch

from camvid_lang.errors import InputError
from camvid_lang.plotting import FONT, OKABE_ITO, Canvas, colour_labels, hexadecimal, plain
from camvid_lang.taxonomy import CLASSES, PALETTE, VOID

__all__ = ["CAMVID_NAMES", "frames_and_labels", "heat_maps", "overlay", "predictions"]

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
