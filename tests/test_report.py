"""The report: right numbers in all tables, honest about its data, self-contained and safe."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.report.html import report_runs
from camvid_lang.report.tables import (
    banner,
    encoder_note,
    findings,
    measured_on,
    shown,
    tables,
    to_markdown,
)
from camvid_lang.results import FigureData, write_figures, write_results

# Typed in from the thesis again, so that a slip in the package is not repeated here.
THESIS = {
    "bilinear-names": (45.71, 47.35, None, 21.19),
    "bilinear-descriptions": (51.45, 46.31, None, 23.93),
    "adapter-names": (80.78, 59.65, None, 43.41),
    "adapter-descriptions": (80.78, 60.84, None, 43.87),
    "frozen-names": (91.19, 75.26, 73.90, 63.16),
    "frozen-descriptions": (89.68, 75.67, 73.88, 62.99),
    "full-descriptions": (89.45, 75.01, 79.08, 62.42),
    "full-narrow-descriptions": (90.86, 76.38, 78.75, 63.76),
    "swiftnet": (89.96, None, None, 64.52),
}
FROZEN = (89.70, 80.07, 23.08, 90.32, 77.07, 71.71, 42.06, 39.06, 84.19, 47.56, 49.96)
NARROW = (90.22, 78.74, 31.81, 89.70, 75.65, 72.92, 45.11, 34.83, 79.71, 47.23, 55.48)
KEYS = ("accuracy", "mean_accuracy", "miou_train", "miou")
TABLES = {
    "7.1": (["bilinear-names", "bilinear-descriptions"], (0, 1, 3)),
    "7.2": (["adapter-names", "adapter-descriptions"], (0, 1, 3)),
    "7.3": (["frozen-names", "frozen-descriptions"], (0, 1, 2, 3)),
    "7.5": (["full-descriptions", "full-narrow-descriptions"], (0, 1, 2, 3)),
    "7.6": (
        [
            "bilinear-descriptions",
            "adapter-descriptions",
            "frozen-names",
            "full-narrow-descriptions",
            "swiftnet",
        ],
        (0, 1, 3),
    ),
}


WIDTHS = {"width": 96, "spp_bottleneck": 48, "spp_width": 24}


def result(name="frozen-names", shift=1.0, **changes):
    """Results as a run on the whole of CamVid with the thesis's encoder writes them."""
    weights = "laion_aesthetic_s13b_b82k_augreg"
    channels = {"stages": [128, 256, 512, 1024], "head": 640, "text": 640}
    clip = {"name": "convnext_base_w_320", "weights": weights, "text": "text tower"}
    clip["channels"] = channels
    resnet = {"name": "resnet18", "weights": "ImageNet-1k (timm)", "text": "none"}
    whole = {"train_frames": 468, "test_frames": 233, "size": [360, 480], "complete": True}
    return {
        "experiment": name,
        **{key: 30.125 + shift + 10 * place for place, key in enumerate(KEYS)},
        "iou": {label: 7.0 * place + shift for place, label in enumerate(CLASSES)},
        "confusion": [],
        "history": [{"epoch": 1, "loss": 2.0, "miou": None}, {"epoch": 2, "loss": 1, "miou": 40.0}],
        "seconds": 90.0,
        "settings": {"epochs": 3, "weights": ""} | WIDTHS,
        "prompts": None,
        "data": {"name": "CamVid", **whole},
        "encoder": resnet if name == "swiftnet" else clip,
        "device": "cpu",
        "versions": {"torch": "2.15"},
        "command": "python -m camvid_lang run",
        **changes,
    }


SCENES = {**result()["data"], "name": "scenes", "size": [192, 256], "test_frames": 60}
PART = {**result()["data"], "test_frames": 40, "complete": False}
TINY = {"name": "camvid-tiny", "weights": "/home/me/tiny.safetensors", "text": "words"}
EVERYTHING = {
    name: result(name, place * 1.003) for place, name in enumerate([*THESIS, "full-names"])
}


def frames(height=60, width=80, count=6, names=None):
    random = np.random.default_rng(0)
    ids = np.kron(random.integers(0, 12, (count, 6, 8)), np.ones((height // 6, width // 8)))
    images = random.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    names = names or tuple(f"test/frame_{index}" for index in range(count))
    ids = ids.astype(np.uint8)
    similarities = {"Names": np.full((11, 11), 0.8), "Descriptions": np.eye(11)}
    return FigureData(images, ids, np.minimum(ids, 10), names, similarities)


def write_run(folder, results, data=None):
    folder.mkdir(parents=True)
    write_results(folder / "results.json", results)
    if data:
        write_figures(folder / "figures.npz", data)
    return folder


class Page(HTMLParser):
    """Collects the tables by id, all addresses, the open elements and the text."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding="utf-8")
        self.open, self.tags, self.addresses, self.text, self.styles = [], [], [], "", ""
        self.tables, self.rows, self.cell = {}, None, None
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.addresses += [attrs[key] for key in ("src", "href", "srcset", "data") if key in attrs]
        self.styles += attrs.get("style", "")
        if tag not in ("meta", "img", "br", "link", "input", "hr"):
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id", f"other-{len(self.tables)}"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
            return
        self.text += data
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for place, (name, results) in enumerate(reversed(EVERYTHING.items())):
        write_run(folder / name, results, frames(count=2 if place == 1 else 6))
    chance = {"accuracy": 9.1, "mean_accuracy": 9.2, "miou": 4.9, "miou_train": None}
    write_run(folder / "chance", result("chance", **chance, settings={}, history=[]))
    return Page(report_runs([folder], json_file=folder / "all.json")), folder / "all.json"


def expected(measured, published):
    cells = ["–" if value is None else f"{value:.2f}" for value in (measured, published)]
    if "–" in cells:
        return [*cells, "–"]
    # In whole hundredths, as a reader would subtract what is printed.
    points = round(float(cells[0]) * 100) - round(float(cells[1]) * 100)
    sign = "" if points == 0 else "+" if points > 0 else "−"
    return [*cells, f"{sign}{abs(points) // 100}.{abs(points) % 100:02d}"]


@pytest.mark.parametrize("number", TABLES)
def test_tables_hold_measured_published_and_difference(full_page, number):
    names, places = TABLES[number]
    body = full_page[0].tables[f"table-{number}"][2:]
    for row, name in zip(body, names, strict=True):
        pairs = [(EVERYTHING[name][KEYS[place]], THESIS[name][place]) for place in places]
        assert row[1:] == [cell for pair in pairs for cell in expected(*pair)]


def test_table_7_4_has_the_classes_of_two_runs(full_page):
    body = full_page[0].tables["table-7.4"][2:]
    for row, label, frozen, narrow in zip(body, CLASSES, FROZEN, NARROW, strict=True):
        first = expected(EVERYTHING["frozen-names"]["iou"][label], frozen)
        second = expected(EVERYTHING["full-narrow-descriptions"]["iou"][label], narrow)
        assert row == [label, *first, *second]


def test_rows_outside_the_thesis_have_a_table_of_their_own(full_page):
    extra = next(rows for rows in full_page[0].tables.values() if rows and rows[0][0] == "Run")
    assert [row[0] for row in extra[1:]] == ["chance", "full-names"]
    assert extra[1][1:] == ["9.10", "9.20", "–", "4.90"]
    assert extra[2][1] == f"{EVERYTHING['full-names']['accuracy']:.2f}"


def test_all_results_are_written_to_one_file(full_page):
    written = json.loads(full_page[1].read_text(encoding="utf-8"))
    assert list(written) == [*THESIS, "chance", "full-names"]
    assert written["full-names"] == EVERYTHING["full-names"]


def test_the_page_needs_nothing_from_outside(full_page):
    page = full_page[0]
    for address in page.addresses:
        assert address.startswith(("data:image/", "#")), address[:80]
    assert not re.search(r"url\((?!data:image/)|@import|https?:", page.styles)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    targets = {attrs.get("id") for _, attrs in page.tags}
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= targets


def test_the_page_has_every_part(full_page):
    page = full_page[0]
    headings = re.findall(r"<h2>(.*?)</h2>", page.source)
    assert headings == re.findall(r'<a href="#[a-z]+">(.*?)</a>', page.source)
    assert len(headings) == 9
    assert page.source.count("<details>") == 10
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 2
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    # A few frames, each with every run; the run that has two frames leaves the others empty.
    shown_frames = re.findall(r"<h3.*?>(test/.*?)</h3>", page.source)
    assert shown_frames == [f"test/frame_{index}" for index in range(4)]
    assert page.source.count("<figcaption>") == 4 * (2 + 10)
    assert page.source.count('class="absent"') == 2
    assert page.source.count('class="errors"') == 4 * 10 - 2


def test_a_frame_of_another_data_set_with_the_same_name_is_not_mixed_in(tmp_path):
    own = frames(count=1)
    other = dataclasses.replace(own, labels=(own.labels + 1) % 12)
    write_run(tmp_path / "a", result(), own)
    write_run(tmp_path / "b", result("swiftnet"), other)
    source = report_runs([tmp_path]).read_text()
    assert source.count('class="errors"') == source.count('class="absent"') == 1


def test_the_page_of_one_run_shows_that_run(tmp_path):
    matrix = np.eye(12, dtype=int) * 60
    matrix[9, 10] = 40
    write_run(tmp_path / "run", result(confusion=matrix.tolist()), frames(count=1))
    page = Page(report_runs([tmp_path / "run"]))
    assert "<h1>Semantic segmentation with language embeddings: frozen-names</h1>" in page.source
    assert [rows[2][0] for key, rows in page.tables.items() if key.startswith("table-")] == [
        "Class names"
    ]
    assert "40 % of the pixels of pedestrian are taken for bicyclist" in page.text
    for part in ("1×1 to 48", "24 per level", "to 96", "convnext_base_w_320"):
        assert part in page.text


def test_the_findings_are_those_of_the_results():
    first, second, third, last = findings(EVERYTHING)
    assert first.startswith("The best model with language is full-names: ")
    assert "1.0 points above SwiftNet's" in first
    assert "trained for" not in first
    history = EVERYTHING["swiftnet"]["history"]
    short = {**EVERYTHING["swiftnet"], "history": history[:-1]}
    first = findings({**EVERYTHING, "swiftnet": short})[0]
    assert f"(trained for {len(history)} and {len(history) - 1} epochs)." in first
    assert re.findall(r"([\d.]+) %", second) == [
        f"{max(EVERYTHING[name]['miou'] for name in names):.1f}"
        for names in (
            ("bilinear-descriptions",),
            ("adapter-descriptions",),
            ("frozen-descriptions",),
            ("full-names",),
        )
    ]
    assert "−1.0 points (bilinear)" in third
    assert last.startswith("full-names finds bicyclist best")
    other = result("swiftnet", data=SCENES)
    assert not any("SwiftNet" in text for text in findings({**EVERYTHING, "swiftnet": other}))
    assert findings({}) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"data": SCENES}, "drawn road scenes"), ({"data": PART}, "a copy or part of")],
)
def test_what_is_not_camvid_is_not_compared(changes, where):
    runs = {"frozen-names": result(**changes)}
    assert banner(runs).startswith("These are not CamVid results: ")
    assert where in banner(runs)
    assert all(table.parts == ("measured",) for table in tables(runs))
    assert "| Class names | 31.12 | 41.12 | 51.12 | 61.12 |" in to_markdown(tables(runs)[0])
    mixed = {**runs, "swiftnet": result("swiftnet"), "full-names": result("full-names")}
    assert "results (frozen-names): " in banner(mixed)
    by_number = {table.number: table for table in tables(mixed)}
    assert by_number["7.3"].rows[0][1:4] == (31.125, 91.19, None)
    assert by_number["7.6"].rows[-1][1:4] == (31.125, 89.96, -58.84)


def test_data_and_encoder_are_named():
    runs = {"frozen-names": result()}
    assert banner(runs) == encoder_note(runs) == ""
    assert "233 test frames of CamVid, 480 × 360 pixels (468 training frames)" in measured_on(runs)
    runs["adapter-names"] = result("adapter-names", encoder=TINY)
    assert "is another (adapter-names): convnext_base_w_320" in encoder_note(runs)
    assert "; camvid-tiny, weights tiny.safetensors, " in measured_on(runs)
    assert "/home/me" not in measured_on(runs)
    assert "No run is finished" in measured_on({})


def test_missing_values_are_dashes():
    empty = dict.fromkeys(KEYS)
    empty |= {"iou": dict.fromkeys(CLASSES)}
    runs = {name: result(name, **empty) for name in ("frozen-names", "swiftnet")}
    built = {table.number: to_markdown(table) for table in tables(runs)}
    assert "| Class names | – / 91.19 | – / 75.26 | – / 73.90 | – / 63.16 |" in built["7.3"]
    assert "| sky | – / 89.70 |" in built["7.4"]
    assert "| SwiftNet, single scale | – / 89.96 | – / – | – / 64.52 |" in built["7.6"]
    assert "difference" in tables({})[0].parts


def test_markdown_has_one_cell_per_score_and_escapes_bars():
    table = tables({"bilinear-names": result("bilinear-names")})[0]
    assert "| Class names | 31.12 / 45.71 (−14.59) |" in to_markdown(table)
    assert {line.count("|") for line in to_markdown(table).splitlines()[2:]} == {5}
    assert "a\\|b" in to_markdown(tables({"a|b": result("a|b")})[-1])


@given(st.floats(0, 100))
def test_the_difference_is_that_of_the_numbers_shown(measured):
    row = tables({"frozen-names": result(miou=measured)})[0].rows[0][-3:]
    cells = [shown(value, part) for value, part in zip(row, ("", "", "difference"), strict=True)]
    left, right, points = (float(cell.replace("−", "-")) for cell in cells)
    assert points == pytest.approx(left - right, abs=1e-6)


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&\"')</script>\udcff"
    run = result(evil, command=evil, settings={evil: evil}, versions={evil: evil})
    run["data"] |= {"name": evil, "test_frames": evil, "size": [evil, evil]}
    run["encoder"] = dict.fromkeys(("name", "weights", "text"), evil)
    write_run(tmp_path / "run", run, frames(count=1, names=("<b>&",)))
    page = Page(report_runs([tmp_path]))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "<script" not in page.source
    assert evil[:-1] in page.text
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_folders_without_one_run_each_are_refused(tmp_path):
    one, two = write_run(tmp_path / "one", result()), write_run(tmp_path / "two", result())
    with pytest.raises(InputError, match="are both runs of 'frozen-names'; give one of them"):
        report_runs([one, two])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no finished run"):
        report_runs([one, tmp_path / "empty"])


def test_a_failure_leaves_the_old_page_and_no_litter(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", result(history=[]))
    page = tmp_path / "page.html"
    page.write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        report_runs([run], page)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["page.html", "run"]
    assert page.read_text(encoding="utf-8") == "old"
