"""The panel of notebook 06, in ipywidgets 7 and 8 and without it; the figures it shows."""

import datetime
import io
import sys

import numpy as np
import pytest
from PIL import Image

from camvid_lang import notebook as module
from camvid_lang.errors import InputError
from camvid_lang.notebook import ask, panel, read_upload, similar, uploaded
from camvid_lang.report.figures import heat_maps, overlay, palette
from camvid_lang.segmenter import shrink

RANDOM = np.random.default_rng(0)
PICTURES = {
    name: RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in ("one.png", "two.png")
}


class Fake:
    """Stands for `words.Words`: the k-th phrase is best in the k-th strip of columns."""

    classes = ("car", "tree", "road")
    temperature = 0.01

    def __init__(self):
        self.asked = []

    def cosines(self, image, phrases):
        if "unknown" in phrases:
            raise InputError("text bank b.npz does not hold the phrase '<unknown>'")
        self.asked.append((image, list(phrases)))
        height, width = shrink(image).shape[:2]
        columns = np.arange(width) * len(phrases) // width
        maps = [np.where(columns == k, 0.5, -0.5) for k in range(len(phrases))]
        return np.stack([np.tile(line, (height, 1)) for line in maps]).astype(np.float32)

    def similarity(self, phrases):
        return np.tile(np.array([0.9, 0.1, -0.2]), (len(phrases), 1))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


# Plain calls


def test_ask_gives_segmentation_and_one_map_per_phrase():
    segmentation, maps = ask(Fake(), PICTURES["one.png"], "road, car | lorry\nshop window")
    assert titles(maps) == ["road", "car / lorry", "shop window"]
    legend = [text.get_text() for text in segmentation.legends[0].get_texts()]
    assert legend == ["road", "car / lorry", "shop window"]
    # The first strip is tinted with the first colour, and so on.
    shown = segmentation.axes[1].images[0].get_array()
    picture = PICTURES["one.png"].astype(float)
    for column, colour in zip((0, 32, 63), palette(3), strict=True):
        expected = 0.45 * picture[:, column] + 0.55 * np.array(colour)
        np.testing.assert_allclose(shown[:, column], expected, atol=1)


def test_maps_share_one_scale():
    cosines = np.stack([np.full((4, 6), value) for value in (-0.2, 0.1, 0.6, 0.3)])
    figure = heat_maps(np.zeros((4, 6, 3), np.uint8), cosines, ["a", "b", "c", "$d_$"])
    limits = {image.get_clim() for axes in figure.axes for image in axes.images}
    assert limits == {(-0.2, 0.6)}
    assert figure.get_suptitle()
    assert Image.open(io.BytesIO(figure._repr_png_())).size[0] == 960


def test_overlay_names_every_class():
    names = ["road", "_odd", "a phrase that goes on for much longer than a legend is wide"]
    figure = overlay(PICTURES["one.png"], np.zeros((48, 64), np.uint8), names, palette(3))
    assert len(figure.legends[0].get_texts()) == 3


def test_similar_lists_the_nearest_classes_first():
    table = similar(Fake(), ["vehicle"]).splitlines()
    assert table[-1] == "| vehicle | car (0.90), tree (0.10), road (-0.20) |"


# Uploads


def test_uploads_of_both_majors_are_read():
    content = png(PICTURES["two.png"])
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"older"}}
    seven["b.png"] = {"metadata": {"name": "b.png"}, "content": content}
    eight = ({"name": "b.png", "size": len(content), "content": memoryview(content)},)
    for value in (seven, eight):
        name, found = uploaded(value)
        assert (name, found) == ("b.png", content)
        np.testing.assert_array_equal(read_upload(name, found), PICTURES["two.png"])
    assert uploaded({}) is uploaded(()) is None


def test_an_upload_that_is_no_picture_is_told_by_its_own_name():
    with pytest.raises(InputError, match=r"holiday\.png") as caught:
        read_upload("holiday.png", b"no picture")
    assert "upload" not in str(caught.value).replace("uploaded", "")


# The widget; by what ipywidgets 7 and 8 share


def parts(widget):
    """The panel's widgets by their kind, depth first."""
    found = {}
    todo = [widget]
    while todo:
        one = todo.pop(0)
        found.setdefault(type(one).__name__, []).append(one)
        todo[:0] = getattr(one, "children", ())
    return found


@pytest.fixture
def widgets():
    return pytest.importorskip("ipywidgets")


def test_the_panel_shows_a_result_at_once_and_on_a_click(widgets):
    words = Fake()
    found = parts(panel(words, PICTURES, "road, car"))
    assert [names for _, names in words.asked] == [["road", "car"]]
    result, maps = found["Image"]
    before = bytes(result.value), bytes(maps.value)
    assert all(Image.open(io.BytesIO(value)).format == "PNG" for value in before)
    found["Textarea"][0].value = "vehicle, lorry, shop window"
    found["Button"][0].click()
    assert words.asked[-1][1] == ["vehicle", "lorry", "shop window"]
    assert bytes(result.value) != before[0]
    found["Dropdown"][0].value = "two.png"  # another picture is shown without a click
    assert words.asked[-1][0] is PICTURES["two.png"]


def test_an_error_is_shown_in_the_panel_and_then_goes(widgets):
    found = parts(panel(Fake(), PICTURES, "road"))
    told = found["HTML"][0]
    found["Textarea"][0].value = "unknown"
    found["Button"][0].click()
    assert "&lt;unknown&gt;" in told.value  # not taken for markup
    found["Textarea"][0].value = "car"
    found["Button"][0].click()
    assert told.value == ""


def send(widgets, upload, name, content):
    """What the browser does when a file is chosen, in either major."""
    if widgets.__version__.startswith("7"):
        upload.set_trait("value", {name: {"metadata": {"name": name}, "content": content}})
        return
    now = datetime.datetime.now(datetime.timezone.utc)
    entry = {"name": name, "type": "image/png", "size": len(content), "last_modified": now}
    upload.value = ({**entry, "content": memoryview(content)},)


def test_what_was_chosen_or_uploaded_last_is_asked(widgets):
    words = Fake()
    found = parts(panel(words, PICTURES, "road"))
    own = RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    send(widgets, found["FileUpload"][0], "own.png", png(own))
    np.testing.assert_array_equal(words.asked[-1][0], own)  # without a click
    found["Button"][0].click()
    np.testing.assert_array_equal(words.asked[-1][0], own)
    found["Dropdown"][0].value = "two.png"
    assert words.asked[-1][0] is PICTURES["two.png"]
    found["Button"][0].click()
    assert words.asked[-1][0] is PICTURES["two.png"]


def test_an_upload_that_is_no_picture_leaves_the_last_one(widgets):
    words = Fake()
    found = parts(panel(words, PICTURES, "road"))
    send(widgets, found["FileUpload"][0], "notes.png", b"no picture")
    assert "notes.png" in found["HTML"][0].value
    found["Button"][0].click()
    assert words.asked[-1][0] is PICTURES["one.png"]
    assert found["HTML"][0].value == ""


def test_without_widgets_the_result_is_shown_plainly(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    words = Fake()
    assert module.panel(words, PICTURES, "road, car") is None
    assert "ipywidgets is absent: call ask(" in capsys.readouterr().out
    assert len(words.asked) == 1
