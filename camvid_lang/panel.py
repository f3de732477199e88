"""The panel of notebook 06: a picture, any phrases, and where each phrase fits.

It uses what ipywidgets 7 and 8 share. Without widgets, `ask` shows the same for one call.
"""

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from camvid_lang.data import read_image
from camvid_lang.errors import InputError
from camvid_lang.galleries import heat_maps, overlay
from camvid_lang.plotting import palette, to_png
from camvid_lang.words import Words, read_phrases, shrink

__all__ = ["ask", "panel", "similar", "uploaded"]

EXAMPLE = "road, vehicle, tree, building, sky, person"


def ask(words: Words, image: np.ndarray, text: str) -> tuple:
    """Segment a picture by phrases.

    Args:
        image: (H, W, 3) uint8.
        text: phrases, see `words.read_phrases`.

    Returns:
        Two figures: the segmentation with its legend, and one heat map per phrase, of its
        probability among the phrases (of its cosine, if it is alone).

    Raises:
        InputError: phrases that cannot be read or embedded.
    """
    phrases = read_phrases(text)
    cosines = words.cosines(image, phrases)
    names, small = list(phrases), shrink(image)
    ids = cosines.argmax(axis=0).astype(np.uint8)
    return overlay(small, ids, names, palette(len(names))), heat_maps(
        small, cosines, names, words.temperature
    )


def uploaded(value: object) -> tuple[str, bytes] | None:
    """Name and content of the newest file of a FileUpload, in ipywidgets 7 or 8; None if empty."""
    if not value:
        return None
    if isinstance(value, Mapping):  # 7: {name: {"metadata": ..., "content": bytes}}
        name, entry = list(value.items())[-1]
    else:  # 8: ({"name": ..., "content": memoryview}, ...)
        entry = value[-1]
        name = entry["name"]
    return name, bytes(entry["content"])


def read_upload(name: str, content: bytes) -> np.ndarray:
    """The picture (H, W, 3) uint8 in an uploaded file.

    Raises:
        InputError: no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{Path(name).suffix}"
        path.write_bytes(content)
        try:
            return read_image(path, upright=True)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None


def panel(words: Words, pictures: Mapping[str, np.ndarray], text: str = EXAMPLE) -> object:
    """A widget to choose or upload a picture and to type phrases.

    Args:
        pictures: {name: (H, W, 3) uint8} to choose from, at least one.
        text: the phrases to begin with.

    Returns:
        The widget, to be shown as a cell's last line; None (and the result of the first picture
        shown) where ipywidgets is absent.
    """
    first = next(iter(pictures))
    try:
        import ipywidgets
    except ImportError:
        from IPython.display import display

        print("note: ipywidgets is absent: call ask(words, picture, phrases) for other words")
        for figure in ask(words, pictures[first], text):
            display(figure)
        return None

    wide = ipywidgets.Layout(width="640px")
    choice = ipywidgets.Dropdown(options=list(pictures), value=first, description="picture")
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="or upload")
    phrases = ipywidgets.Textarea(value=text, description="phrases", layout=wide)
    button = ipywidgets.Button(description="segment", button_style="primary")
    told = ipywidgets.HTML()
    result, maps = (ipywidgets.Image(format="png", layout={"max_width": "960px"}) for _ in "12")

    shown = {"image": pictures[first]}  # whichever was chosen or uploaded last

    def show(_: object = None) -> None:
        told.value = "…"
        try:
            figures = ask(words, shown["image"], phrases.value)
        except InputError as error:
            told.value = f"<b>{html.escape(str(error))}</b>"
            return
        for widget, figure in zip((result, maps), figures, strict=True):
            widget.value = to_png(figure)
        told.value = ""

    def choose(_: object) -> None:
        shown["image"] = pictures[choice.value]
        show()

    def receive(_: object) -> None:
        sent = uploaded(upload.value)
        if sent is None:
            return
        try:
            shown["image"] = read_upload(*sent)
        except InputError as error:
            told.value = f"<b>{html.escape(str(error))}</b>"
            return
        show()

    button.on_click(show)
    choice.observe(choose, names="value")
    upload.observe(receive, names="value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([choice, upload]), phrases, button, told, result, maps])


def similar(words: Words, new: Sequence[str]) -> str:
    """A Markdown table: for each new phrase the three classes whose embeddings lie nearest."""
    lines = ["| phrase | nearest of the run's classes (cosine) |", "|---|---|"]
    for phrase, cosines in zip(new, words.similarity(new), strict=True):
        near = sorted(zip(cosines, words.classes, strict=True), reverse=True)
        lines.append(f"| {phrase} | " + ", ".join(f"{n} ({c:.2f})" for c, n in near[:3]) + " |")
    return "\n".join(lines)
