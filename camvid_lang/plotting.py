"""What all figures share: a canvas that needs no screen, the colours, and pictures as bytes.

The figures use matplotlib without pyplot: nothing global is opened, so nothing has to be closed,
and the same code runs in a notebook, in a test and in a batch job.
"""

import io
import warnings

import numpy as np
from matplotlib.figure import Figure

from camvid_lang.errors import InputError
from camvid_lang.taxonomy import PALETTE

__all__ = [
    "FONT",
    "OKABE_ITO",
    "Canvas",
    "colour_labels",
    "hexadecimal",
    "palette",
    "plain",
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
