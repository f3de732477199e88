"""Names and colours of classes, as a legend below an image.

Imports only `data` of the package, as `segmenter` draws with it, and matplotlib, which takes a
second, only to draw.
"""

import colorsys
import math
import unicodedata
from collections.abc import Sequence
from itertools import count

from PIL import Image, ImageDraw, ImageFont

from camvid_lang.data.classes import CLASSES, PALETTE

Colour = tuple[int, int, int]  # RGB, 0..255
NONE_OF_THESE = "none of these"


def class_colours(names: Sequence[str]) -> list[Colour]:
    """A colour (RGB, 0..255) for each class: CamVid's for its classes, distinct ones for others.

    Example:
        >>> class_colours(["sky", "lorry"])
        [(128, 128, 128), (69, 230, 181)]
    """
    camvid = dict(zip((*CLASSES, "void"), PALETTE, strict=True)) | {NONE_OF_THESE: (255,) * 3}
    # Steps of the golden ratio spread any number of hues, the first few far from CamVid's; three
    # brightnesses take turns.
    hues = (colorsys.hsv_to_rgb((0.45 + k * 0.618) % 1, 0.7, 0.9 - k % 3 * 0.15) for k in count())
    others = (tuple(round(255 * part) for part in hue) for hue in hues)
    return [camvid[name] if name in camvid else next(others) for name in names]


def one_line(text: str, limit: int = 80) -> str:
    """A text in one line of at most `limit` characters; the rest becomes an ellipsis."""
    text = " ".join(text.encode(errors="replace").decode().split())
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    # matplotlib leaves out of a legend what begins with "_"; a space of no width keeps it in.
    return f"\u200b{text}" if text.startswith("_") else text


def drawn_names(names: Sequence[str]) -> list[str]:
    """Names as `overlay` and `heat_maps` show them: "class 3" for the fourth, if it has letters
    that the font lacks or that are written from right to left, which matplotlib cannot draw.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[f]))) for f in FontProperties().get_family()]

    def drawable(letter: str) -> bool:
        known = letter.isspace() or any(font.get_char_index(ord(letter)) for font in fonts)
        return known and unicodedata.bidirectional(letter) not in ("R", "AL")

    return [n if all(map(drawable, n)) else f"class {i}" for i, n in enumerate(names)]


def with_legend(image: Image.Image, names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """The image above the `drawn_names`, each next to a square of its colour."""
    from matplotlib.font_manager import FontProperties, findfont

    size = max(11, image.width // 70)
    font = ImageFont.truetype(findfont(FontProperties()), size)
    labels, line = [one_line(name, 40) for name in drawn_names(names)], 2 * size
    cell = math.ceil(max(map(font.getlength, labels))) + 3 * size
    rows = math.ceil(len(labels) / max(1, image.width // cell))
    sheet = Image.new("RGB", (max(image.width, cell), image.height + rows * line + size), "white")
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        # Read from top to bottom, as the list of ids that `segment` prints.
        x, y = i // rows * cell + size // 2, image.height + i % rows * line + size
        draw.rectangle((x, y, x + size, y + size), colour, "black")
        draw.text((x + size * 3 // 2, y + size // 2), label, "black", font, "lm")
    return sheet
