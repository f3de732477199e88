"""The panel of notebook 06, with the uploads of ipywidgets 7 and 8."""

import datetime
import io
import re
from unittest.mock import Mock

import ipywidgets
import numpy as np
import pytest
import traitlets
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from camvid_lang.data.classes import CLASSES
from camvid_lang.notebook import MAX_SIDE, ask, panel
from camvid_lang.report.legend import class_colours
from camvid_lang.segmenter import load

RANDOM = np.random.default_rng(0)
ONE, OTHER = RANDOM.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)


@pytest.fixture
def segmenter(finished):
    """The model of a smoke run; it records what it is asked for."""
    found = load(finished / "frozen-names", "cpu")
    found.segment, found.probabilities = Mock(wraps=found.segment), Mock(wraps=found.probabilities)
    return found


def widgets(segmenter):
    """The widgets of a panel by their kind, and its message."""
    found = {}
    for row in panel(segmenter, {"one.png": ONE}, "road, car").children:
        for widget in getattr(row, "children", [row]):
            found.setdefault(type(widget).__name__, []).append(widget)
    return found, found["HTML"][0]


def test_ask_gives_a_segmentation_and_one_heat_map_per_class(segmenter):
    segmentation, maps = ask(segmenter, ONE, "road, car | lorry, shop window")
    names = ["road", "car", "shop window"]
    assert [axes.get_title(loc="left") for axes in maps.axes[:3]] == names
    ids = segmenter.segment(ONE, "road, car | lorry, shop window").ids
    shown = 0.45 * ONE + 0.55 * np.array(class_colours(names))[ids]
    np.testing.assert_allclose(segmentation.axes[1].images[0].get_array(), shown, atol=0.5)
    ask(segmenter, np.zeros((600, 900, 3), np.uint8), "road, car", none_below=0.5)
    assert max(segmenter.probabilities.call_args.args[0].shape) == MAX_SIDE
    assert segmenter.probabilities.call_args.kwargs == {"none_below": 0.5}


def test_ask_takes_any_image_and_shows_both_figures(segmenter, tmp_path, monkeypatch):
    Image.fromarray(ONE).save(tmp_path / "one.png")
    expected = [figure.png() for figure in ask(segmenter, ONE, "road, car")]
    for image in (str(tmp_path / "one.png"), Image.fromarray(ONE), ONE / 255):
        assert [figure.png() for figure in ask(segmenter, image, "road, car")] == expected
    shown = []
    monkeypatch.setattr("camvid_lang.notebook.display", lambda *figures: shown.extend(figures))
    DisplayFormatter().format(ask(segmenter, ONE, "road, car"))
    assert [figure.png() for figure in shown] == expected


def test_words_that_the_font_or_the_run_lacks_are_reported(segmenter, finished, tmp_path, capsys):
    segmentation, maps = ask(segmenter, ONE, "road, 路，🚗, lamp, شارع")
    drawn = ["road", "class 1", "class 2", "lamp", "class 4"]
    assert [axes.get_title(loc="left") for axes in maps.axes[:5]] == drawn
    assert [text.get_text() for text in segmentation.legends[0].get_texts()] == drawn
    assert capsys.readouterr().out == "class 1: 路\nclass 2: 🚗\nclass 4: شارع\n"
    text = segmenter.model.text.numpy()
    bank = {"phrases": [*CLASSES, "xylophone"], "embeddings": [*text, -text.mean(axis=0)]}
    np.savez(tmp_path / "bank.npz", **bank)
    other = load(finished / "frozen-names", "cpu", tmp_path / "bank.npz")
    ask(other, ONE, "road, xylophone")
    note = r"xylophone: not similar to any class of the run \(cosine -0\.\d\d\)\n"
    assert re.fullmatch(note, capsys.readouterr().out)


def test_the_panel_shows_a_result_at_once_and_on_a_click(segmenter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, message = widgets(segmenter)
    before = [bytes(output.value) for output in found["Image"]]
    assert all(value.startswith(b"\x89PNG") for value in before)
    segment, save = found["Button"]
    starts = {"road, road": "<b>", "road": "every pixel is &#x27;road&#x27;: give several"}
    for text, start in {**starts, "vehicle, lorry, <路>": "class 2: &lt;路&gt;"}.items():
        found["Textarea"][0].value = text
        segment.click()
        assert message.value.startswith(start)
    assert bytes(found["Image"][0].value) != before[0]
    found["Checkbox"][0].value = True
    assert segmenter.segment.call_args.kwargs == {"none_below": 0.5}
    save.click()
    assert message.value == f"saved in {tmp_path / 'segmented'}"
    saved = np.array(Image.open(tmp_path / "segmented" / "one.png"))
    expected = segmenter.segment(ONE, "vehicle, lorry, <路>", none_below=0.5).ids
    np.testing.assert_array_equal(saved, expected)
    (tmp_path / "segmented" / "one-2.png").touch()
    save.click()  # nothing is overwritten: another upload may have this name
    assert (tmp_path / "segmented" / "one-3_overlay.png").exists()


class FileUpload7(ipywidgets.VBox):
    """The FileUpload of ipywidgets 7, as far as the panel uses it."""

    value = traitlets.Dict()


def upload(widget, name, content):
    """Set the value of a FileUpload as a browser does, with ipywidgets 7 or 8."""
    if isinstance(widget.value, dict):
        found = {"old.png": {"content": b"an earlier upload"}, name: {"content": content}}
    else:
        known = {"name": name, "type": "image/png", "size": len(content)}
        known["last_modified"] = datetime.datetime.now(datetime.timezone.utc)
        found = ({**known, "content": memoryview(content)},)
    widget.set_trait("value", found)  # read-only with ipywidgets 7


@pytest.mark.parametrize("kind", [FileUpload7, ipywidgets.FileUpload])
def test_the_image_that_was_chosen_or_uploaded_last_is_segmented(kind, segmenter, monkeypatch):
    make = Mock(side_effect=lambda accept, multiple, description: kind())
    monkeypatch.setattr(ipywidgets, "FileUpload", make)
    found, message = widgets(segmenter)
    content = io.BytesIO()
    Image.fromarray(OTHER).save(content, "PNG")
    upload(found[kind.__name__][0], "other.png", content.getvalue())
    upload(found[kind.__name__][0], "notes.png", b"not an image")
    assert "notes.png" in message.value
    found["Button"][0].click()  # the last image stays
    np.testing.assert_array_equal(segmenter.segment.call_args.args[0], OTHER)
    found["Dropdown"][0].value = "one.png"  # which was chosen before
    np.testing.assert_array_equal(segmenter.segment.call_args.args[0], ONE)
