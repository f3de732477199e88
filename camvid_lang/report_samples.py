"""The report's sample frames as small pictures inside the page: frame, label, predictions."""

import base64
import io
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from camvid_lang.plotting import colour_labels, hexadecimal
from camvid_lang.taxonomy import CLASSES, PALETTE

__all__ = ["Samples", "data_uri", "sample_section"]

MAX_FRAMES = 4
# Bytes of sample pictures before they are made smaller; base64 adds a third.
PICTURE_BUDGET = 1_300_000


class Samples(NamedTuple):
    """A few frames with what one run predicted: uint8 arrays and the frames' names."""

    images: np.ndarray  # (n, 3, H, W), RGB 0..255
    labels: np.ndarray  # (n, H, W), ids 0..11
    predictions: np.ndarray  # (n, H, W), ids 0..10
    names: tuple[str, ...]  # n names, like "test/0001TP_008550"


def data_uri(data, kind):
    """Bytes of a picture as the address of an <img>; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _frame_picture(image, width):
    picture = Image.fromarray(np.moveaxis(np.asarray(image, dtype=np.uint8), 0, -1))
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue(), "jpeg"


def _label_picture(ids, width):
    ids = np.asarray(ids, dtype=np.uint8)
    colour_labels(ids)  # refuses an id that has no colour
    picture = Image.fromarray(ids)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette([channel for colour in PALETTE for channel in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), "png"


def _sample_rows(samples, width):
    """For each of the first few frames: its name and [(caption, picture or None), ...]."""
    first = {}
    for run in samples.values():
        for index, name in enumerate(run.names):
            first.setdefault(name, (run.images[index], run.labels[index]))
    rows = []
    for name, (image, label) in list(first.items())[:MAX_FRAMES]:
        pictures = [
            ("frame", _frame_picture(image, width)),
            ("label", _label_picture(label, width)),
        ]
        for title, run in samples.items():
            held = name in run.names
            guess = run.predictions[list(run.names).index(name)] if held else None
            pictures.append((title, _label_picture(guess, width) if held else None))
        rows.append((name, pictures))
    return rows


def sample_section(samples):
    """HTML for {experiment: Samples}: a legend, then the first few frames."""
    for width in (480, 360, 240, 160):
        rows = _sample_rows(samples, width)
        size = sum(len(picture[0]) for _, row in rows for _, picture in row if picture)
        if size <= PICTURE_BUDGET:
            break
    colours = zip((*CLASSES, "void"), PALETTE, strict=True)
    legend = "".join(
        f'<li><i style="background:{hexadecimal(colour)}"></i>{name}</li>'
        for name, colour in colours
    )
    parts = [f'<ul class="legend">{legend}</ul>']
    for name, pictures in rows:
        cells = []
        for caption, picture in pictures:
            alt = escape(f"{caption} of {name}")
            shape = '<div class="absent">–</div>'
            if picture:
                shape = f'<img src="{data_uri(*picture)}" alt="{alt}">'
            cells.append(f"<figure>{shape}<figcaption>{escape(caption)}</figcaption></figure>")
        parts.append(f'<h3>{escape(str(name))}</h3><div class="samples">{"".join(cells)}</div>')
    return "".join(parts)
