"""The panel of notebook 06, with the uploads of ipywidgets 7 and 8."""

import base64
import datetime
import io

import ipywidgets
import numpy as np
import pytest
import traitlets
from PIL import Image

from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.notebook import MAX_SIDE, ask, panel, similar
from camvid_lang.segmenter import Segmentation, class_colours, load

RANDOM = np.random.default_rng(0)
IMAGES = {
    name: RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in ("one.png", "two.png")
}


class Stub:
    """Stands for a Segmenter: the k-th class is best in the k-th strip of columns."""

    classes, temperature = ("car", "tree", "road"), 0.01
    experiment, model = configure("frozen-names", text_bank="words.npz"), None

    def __init__(self):
        self.calls = []

    def cosines(self, image, classes):
        if "unknown" in classes:
            raise InputError("text bank b.npz does not hold the prompt '<unknown>'")
        self.calls.append((image, list(classes)))
        height, width = image.shape[:2]
        strips = np.arange(width) * len(classes) // width == np.arange(len(classes))[:, None]
        return np.tile(strips[:, None].astype(np.float32), (1, height, 1))

    probabilities = cosines

    def segment(self, image, classes):
        ids = self.cosines(image, classes).argmax(0).astype(np.uint8)
        return Segmentation(image, ids, list(classes))

    def embed(self):
        return np.linalg.cholesky(0.3 * np.eye(3) + 0.7)  # cosines of 0.7 with each other

    def similarity(self, prompts):
        far = np.array(["xylophone" in prompt for prompt in prompts])
        return np.array([0.9, 0.5, 0.3]) - far[:, None]


def test_ask_gives_a_segmentation_and_one_heat_map_per_class():
    stub = Stub()
    segmentation, maps = ask(stub, IMAGES["one.png"], "road, car | lorry, shop window")
    titles = [title for axes in maps.axes if (title := axes.get_title(loc="left"))]
    assert titles == stub.calls[0][1] == [t.get_text() for t in segmentation.legends[0].get_texts()]
    assert titles[0] == "road"
    assert titles[2] == "shop window"
    shown = segmentation.axes[1].images[0].get_array()
    colours = (shown - 0.45 * IMAGES["one.png"]) / 0.55
    for column, colour in zip((0, 32, 63), class_colours(titles), strict=True):
        np.testing.assert_allclose(colours[:, column], np.tile(colour, (48, 1)), atol=1)
    ask(stub, np.zeros((2000, 3000, 3), np.uint8), "road, car")
    assert max(stub.calls[-1][0].shape) == MAX_SIDE  # of the maps
    assert stub.calls[-2][0].shape == (2000, 3000, 3)


def test_words_that_the_font_lacks_are_numbered_with_a_list(capsys):
    segmentation, maps = ask(Stub(), IMAGES["one.png"], "road, 路，🚗, réverbère, شارع")
    drawn = ["road", "class 1", "class 2", "réverbère", "class 4"]
    assert [axes.get_title(loc="left") for axes in maps.axes[:5]] == drawn
    assert [text.get_text() for text in segmentation.legends[0].get_texts()] == drawn
    assert capsys.readouterr().out == "class 1: 路\nclass 2: 🚗\nclass 4: شارع\n"
    found = parts(panel(Stub(), IMAGES, "<路>, car"))
    assert found["HTML"][0].value == "class 0: &lt;路&gt;"
    found["Textarea"][0].value = "road"
    found["Button"][0].click()
    assert found["HTML"][0].value.startswith("every pixel is &#x27;road&#x27;: give more")


def test_words_that_the_tiny_clip_has_not_seen_are_reported(finished, capsys):
    ask(load(finished / "frozen-names"), IMAGES["one.png"], "a road in the rain, xylophone, lorry")
    assert capsys.readouterr().out == "xylophone: the tiny CLIP was not trained on xylophone\n"


def test_similar_lists_the_most_similar_classes_first():
    table = similar(Stub(), ["vehicle"]).data.splitlines()
    assert table[-1] == "| vehicle | car (0.90), tree (0.50), road (0.30) |"


def parts(panel):
    """The panel's widgets by their kind."""
    found = {}
    rows = [row.children for row in panel.children[:3]]
    for widget in (*panel.children, *(widget for row in rows for widget in row)):
        found.setdefault(type(widget).__name__, []).append(widget)
    return found


def test_the_panel_shows_a_result_at_once_and_on_a_click():
    stub = Stub()
    found = parts(panel(stub, IMAGES, "road, car"))
    assert stub.calls[-1][1] == ["road", "car"]
    before = [bytes(output.value) for output in found["Image"]]
    assert all(Image.open(io.BytesIO(value)).format == "PNG" for value in before)
    for text in ("unknown", "", "road, road"):
        found["Textarea"][0].value = text
        found["Button"][0].click()
        assert found["HTML"][0].value.startswith("<b>")
        assert "<unknown>" not in found["HTML"][0].value  # escaped
    found["Textarea"][0].value = "vehicle, lorry, shop window"
    found["Button"][0].click()
    assert stub.calls[-1][1] == ["vehicle", "lorry", "shop window"]
    assert bytes(found["Image"][0].value) != before[0]
    assert found["HTML"][0].value == ""


def test_the_panel_saves_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub = Stub()
    found = parts(panel(stub, IMAGES, "road, xylophone"))
    assert found["HTML"][0].value.startswith("xylophone: not similar to any class of")
    found["Button"][1].click()
    assert "segmented" in found["HTML"][0].value
    names = {path.name for path in (tmp_path / "segmented").iterdir()}
    assert names == {"one.png", "one_overlay.png"}
    saved = Image.open(tmp_path / "segmented" / "one.png")
    np.testing.assert_array_equal(saved, stub.segment(IMAGES["one.png"], ["a", "b"]).ids)
    assert saved.info["camvid-lang classes"].count("\n") == 1  # two names, for `score`


def seven(name, content):
    """The value of a FileUpload in ipywidgets 7."""
    return {"old.png": {"content": b"an earlier upload"}, name: {"content": content}}


def eight(name, content):
    entry = {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
    }
    return ({**entry, "last_modified": datetime.datetime.now(datetime.timezone.utc)},)


class FileUpload7(ipywidgets.VBox):
    """The FileUpload of ipywidgets 7, as far as the panel uses it."""

    value = traitlets.Dict()


@pytest.mark.parametrize(("kind", "value"), [(None, eight), (FileUpload7, seven)])
def test_the_image_that_was_chosen_or_uploaded_last_is_segmented(kind, value, monkeypatch):
    if kind:
        monkeypatch.setattr(ipywidgets, "FileUpload", lambda accept, multiple, description: kind())
    elif ipywidgets.__version__ < "8":
        pytest.skip("ipywidgets 7 is installed")
    stub = Stub()
    found = parts(panel(stub, IMAGES, "road, car"))
    upload = found["FileUpload7" if kind else "FileUpload"][0]
    own = RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(own).save(content, "PNG")
    upload.value = value("own.png", content.getvalue())
    found["Button"][0].click()
    assert len(stub.calls) == 6  # ids and maps each
    for image, _ in stub.calls[2:]:
        np.testing.assert_array_equal(image, own)
    upload.value = value("notes.png", b"not an image")
    assert "notes.png" in found["HTML"][0].value
    found["Dropdown"][0].value = "two.png"
    assert found["HTML"][0].value == ""
    found["Button"][0].click()
    np.testing.assert_array_equal(stub.calls[-1][0], IMAGES["two.png"])


def test_an_image_that_is_dropped_is_segmented():
    stub = Stub()
    shown = panel(stub, IMAGES, "road, car")
    found, own = parts(shown), RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(own).save(content, "PNG")
    (field,) = (text for text in found["Textarea"] if "dropped" in text._dom_classes)
    field.value = f"my\nown.png\n{base64.b64encode(content.getvalue()).decode()}"
    np.testing.assert_array_equal(stub.calls[-1][0], own)
    field.value = "notes.png\n"  # an empty file
    assert "notes.png" in found["HTML"][0].value
    np.testing.assert_array_equal(stub.calls[-1][0], own)  # the last image stays
    found["Dropdown"][0].value = "one.png"  # that was chosen before
    np.testing.assert_array_equal(stub.calls[-1][0], IMAGES["one.png"])
    field.value = f"own.png\n{base64.b64encode(content.getvalue()).decode()}"
    assert (field.value, found["Dropdown"][0].value) == ("", None)
    np.testing.assert_array_equal(stub.calls[-1][0], own)
    # What the script of the area looks for.
    assert any(all(part in html.value for part in ("ondrop", ".with-drop", ".dropped textarea"))
               for html in found["HTML"])  # fmt: skip
    assert "with-drop" in shown._dom_classes
