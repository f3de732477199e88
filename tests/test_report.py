"""The report: right numbers in all tables, honest about its data, self-contained and safe."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.report import tables as tables_module
from camvid_lang.report.html import Samples, write_report
from camvid_lang.report.tables import banner, shown, tables, to_compact_markdown, to_markdown

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
ROWS = {name: dict(zip(KEYS, values, strict=True)) for name, values in THESIS.items()}
ROWS["frozen-names"]["iou"] = dict(zip(CLASSES, FROZEN, strict=True))
ROWS["full-narrow-descriptions"]["iou"] = dict(zip(CLASSES, NARROW, strict=True))
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


def result(name, shift=1.0, data="scenes", complete=True, encoder="camvid-tiny", weights="tiny"):
    return {
        "experiment": name,
        **{key: 30.125 + shift + 10 * place for place, key in enumerate(KEYS)},
        "iou": {label: 7.0 * place + shift for place, label in enumerate(CLASSES)},
        "thesis": ROWS.get(name, {}),
        "settings": {"epochs": 3, "limit": 0},
        "data": {
            "name": data,
            "train_frames": 468,
            "test_frames": 233,
            "size": [360, 480],
            "complete": complete,
        },
        "encoder": {"name": encoder, "weights": weights, "text": "words"},
        "versions": {"torch": "2.15"},
        "seconds": 90.0,
        "history": [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "miou": 40.0}],
    }


def real(name="frozen-names", **changes):
    weights = "laion_aesthetic_s13b_b82k_augreg"
    return {**result(name, 1.0, "CamVid", True, "convnext_base_w_320", weights), **changes}


def everything():
    names = [*THESIS, "full-names"]
    runs = {name: result(name, place * 1.003) for place, name in enumerate(names)}
    runs["bilinear-names"]["history"] = []
    chance = {"accuracy": 9.1, "mean_accuracy": 9.2, "miou": 4.9, "iou": {}}
    return {"chance": chance, "experiments": runs}


def samples(height=60, width=80, frames=6, offset=0):
    random = np.random.default_rng(offset)
    ids = np.kron(random.integers(0, 12, (frames, 6, 8)), np.ones((height // 6, width // 8)))
    images = random.integers(0, 256, (frames, 3, height, width), dtype=np.uint8)
    names = tuple(f"test/frame_{index}" for index in range(frames))
    return Samples(images, ids.astype(np.uint8), np.minimum(ids, 10).astype(np.uint8), names)


class Page(HTMLParser):
    """Collects the tables by id, all addresses, the open elements and the text."""

    EMPTY = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.text, self.styles = [], [], [], "", ""
        self.tables, self.rows, self.cell = {}, None, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.addresses += [attrs[key] for key in ("src", "href", "srcset", "data") if key in attrs]
        self.styles += attrs.get("style", "")
        if tag not in self.EMPTY:
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


def page_of(folder, *arguments, **named):
    path = write_report(folder / "report.html", *arguments, **named)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    page.source = text
    return page


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    names = [*THESIS, "full-names"]
    frames = {name: samples(offset=place) for place, name in enumerate(names)}
    similar = {"Names": np.full((11, 11), 0.8), "Descriptions": np.eye(11)}
    folder = tmp_path_factory.mktemp("page")
    return page_of(folder, everything(), frames, similar, ROWS, note="a note")


def expected(measured, published):
    cells = []
    for value in (measured, published):
        cells.append("–" if value is None else f"{value:.2f}")
    if measured is None or published is None:
        return [*cells, "–"]
    # In whole hundredths, as a reader would subtract what stands there.
    points = round(float(cells[0]) * 100) - round(float(cells[1]) * 100)
    sign = "" if points == 0 else "+" if points > 0 else "−"
    return [*cells, f"{sign}{abs(points) // 100}.{abs(points) % 100:02d}"]


@pytest.mark.parametrize("number", TABLES)
def test_tables_hold_measured_published_and_difference(full_page, number):
    names, places = TABLES[number]
    runs = everything()["experiments"]
    body = full_page.tables[f"table-{number}"][2:]
    assert len(body) == len(names)
    for row, name in zip(body, names, strict=True):
        wanted = []
        for place in places:
            wanted += expected(runs[name][KEYS[place]], THESIS[name][place])
        assert row[1:] == wanted


def test_table_7_4_sets_the_classes_of_two_runs_side_by_side(full_page):
    runs = everything()["experiments"]
    body = full_page.tables["table-7.4"][2:]
    assert [row[0] for row in body] == list(CLASSES)
    for row, label, frozen, narrow in zip(body, CLASSES, FROZEN, NARROW, strict=True):
        first = expected(runs["frozen-names"]["iou"][label], frozen)
        second = expected(runs["full-narrow-descriptions"]["iou"][label], narrow)
        assert row[1:] == first + second


def test_rows_outside_the_thesis_have_a_table_of_their_own(full_page):
    extra = next(
        rows for key, rows in full_page.tables.items() if rows and rows[0][0] == "Run" and key
    )
    assert extra[1] == ["Chance", "9.10", "9.20", "–", "4.90"]
    assert extra[2][0] == "full-names"
    assert extra[2][1] == f"{everything()['experiments']['full-names']['accuracy']:.2f}"


def test_the_page_needs_nothing_from_outside(full_page):
    assert full_page.addresses
    for address in full_page.addresses:
        assert address.startswith(("data:image/", "#")), address[:80]
    assert not re.search(r"url\(|@import|https?:", full_page.styles)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in full_page.tags}
    targets = {attrs.get("id") for _, attrs in full_page.tags}
    assert {a[1:] for a in full_page.addresses if a.startswith("#")} <= targets


def test_the_page_has_every_part(full_page):
    headings = re.findall(r"<h2>(.*?)</h2>", full_page.source)
    assert headings == [
        "Approaches",
        "Tables",
        "Classes",
        "Frames",
        "Texts",
        "Learning",
        "Model",
        "What IoU is",
        "Protocol and settings",
    ]
    assert "a note" in full_page.text
    assert full_page.source.count("<details>") == 10
    for _, attrs in (tag for tag in full_page.tags if tag[0] == "img"):
        assert attrs["alt"]


def test_only_a_few_frames_are_shown_each_with_every_run(full_page):
    frames = re.findall(r"<h3>(test/.*?)</h3>", full_page.source)
    assert frames == [f"test/frame_{index}" for index in range(4)]
    assert full_page.source.count("<figure>") == 4 * (2 + 10)


def test_a_run_without_a_frame_leaves_its_place_empty(tmp_path):
    one, two = samples(frames=1), samples(frames=2)
    runs = {"frozen-names": {"miou": 1.0}, "swiftnet": {"miou": 2.0}}
    frames = {"frozen-names": one, "swiftnet": two}
    page = page_of(tmp_path, {"chance": None, "experiments": runs}, frames)
    assert page.source.count("<figure>") == 8
    assert page.source.count('class="absent"') == 1


def test_the_page_stays_small_with_noisy_frames(tmp_path):
    random = np.random.default_rng(0)
    noise = random.integers(0, 11, (4, 360, 480)).astype(np.uint8)
    images = random.integers(0, 256, (4, 3, 360, 480), dtype=np.uint8)
    frame = Samples(images, noise, noise, ("a", "b", "c", "d"))
    runs = {name: {"miou": 1.0} for name in everything()["experiments"]}
    frames = dict.fromkeys(runs, frame)
    path = write_report(tmp_path / "r.html", {"experiments": runs}, frames)
    assert path.stat().st_size < 3_000_000


def test_other_data_and_another_encoder_are_told_at_the_top(full_page):
    head = full_page.text[: full_page.text.index("CLIP's coarse map")]  # the approaches
    assert head.index("Semantic segmentation gives every pixel") < head.index("Measured on")
    assert "Measured on 233 test frames of drawn road scenes, 480 × 360 pixels" in head
    assert "with the encoder camvid-tiny" in head
    assert "These are not CamVid figures" in head
    assert "The thesis's numbers are for another encoder" in head


def test_complete_camvid_and_the_thesis_encoder_need_no_warning(tmp_path):
    page = page_of(tmp_path, {"chance": None, "experiments": {"frozen-names": real()}})
    assert "not CamVid figures" not in page.text
    assert "another encoder" not in page.text
    assert "test frames of CamVid, 480 × 360 pixels" in page.text
    assert "convnext_base_w_320" in page.text
    assert "Chance" not in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"name": "CamVid", "test_frames": 40, "complete": False}},
        {"settings": {"limit": 8}},
        {"data": {}},
    ],
)
def test_a_part_of_camvid_is_not_camvid(changes):
    assert "These are not CamVid figures" in banner({"frozen-names": real(**changes)})
    assert banner({"frozen-names": real()}) == ""


def test_the_banner_names_the_runs_it_concerns(tmp_path):
    other = result("swiftnet", encoder="resnet18")
    runs = {"frozen-names": real(), "swiftnet": {**other, "iou": {}, "history": []}}
    page = page_of(tmp_path, {"experiments": runs})
    assert "not CamVid figures (swiftnet)" in page.text
    assert "another encoder" not in page.text


def test_rows_that_were_not_run_show_the_published_number_and_a_dash(tmp_path):
    page = page_of(tmp_path, {"experiments": {"frozen-names": real()}}, thesis_rows=ROWS)
    assert page.tables["table-7.6"][-1] == [
        "SwiftNet, single scale",
        *("–", "89.96", "–"),
        *("–", "–", "–"),
        *("–", "64.52", "–"),
    ]
    assert page.tables["table-7.4"][2][4:] == ["–", "90.22", "–"]
    assert page.tables["table-7.3"][2][1] == "31.12"


def test_missing_scores_are_dashes(tmp_path):
    empty = dict.fromkeys(KEYS)
    scores = {**dict.fromkeys(CLASSES), "sky": float("nan")}
    run = real("frozen-names", **empty, iou=scores, history=[], seconds=None)
    page = page_of(tmp_path, {"chance": None, "experiments": {"frozen-names": run}})
    assert page.tables["table-7.3"][2][1:4] == ["–", "91.19", "–"]
    assert page.tables["table-7.4"][2][1:4] == ["–", "89.70", "–"]
    assert "nan" not in re.sub(r"data:image[^\"]*", "", page.source).lower()


def test_nothing_measured_still_gives_the_published_tables(tmp_path):
    page = page_of(tmp_path, {"chance": None, "experiments": {}}, thesis_rows=ROWS)
    assert "Nothing was measured" in page.text
    assert page.tables["table-7.1"][2][1:4] == ["–", "45.71", "–"]


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&\"')</script>"
    run = real(evil, command=evil, settings={evil: evil}, versions={evil: evil})
    run["data"] = {"name": evil, "test_frames": evil, "train_frames": evil, "size": [evil, evil]}
    run["encoder"] = {"name": evil, "weights": evil, "text": evil}
    frame = samples(frames=1)._replace(names=(evil,))
    similar = {evil: np.eye(11)}
    runs = {"chance": None, "experiments": {evil: run}}
    page = page_of(tmp_path, runs, {evil: frame}, similar, ROWS, title=evil, note=evil)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in page.source
    assert evil in page.text
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


@pytest.mark.parametrize(
    "results",
    [
        [],
        {},
        {"experiments": [1]},
        {"experiments": {"x": 3}},
        {"experiments": {"x": {"miou": "high"}}},
        {"experiments": {"x": {"iou": {"sky": "blue"}}}},
        {"experiments": {"x": {"data": "CamVid"}}},
    ],
)
def test_results_of_another_form_are_refused_in_one_line(tmp_path, results):
    with pytest.raises(InputError, match="results: ") as caught:
        write_report(tmp_path / "report.html", results)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_page_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match="No space left"):
        write_report(path, {"experiments": {}})
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == "old"


def test_a_path_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", {"experiments": {}})


def test_markdown_has_a_line_for_each_row_and_escapes_bars():
    built = tables(everything(), ROWS)
    assert [table.number for table in built] == ["7.1", "7.2", "7.3", "7.4", "7.5", "7.6", ""]
    for table in built:
        lines = to_markdown(table).splitlines()
        assert len(lines) == 4 + len(table.rows)
        assert {line.count("|") for line in lines[2:]} == {len(table.columns) + 1}
    runs = {"experiments": {"a|b": result("a|b")}}
    assert "a\\|b" in to_markdown(tables(runs)[-1])


def test_compact_markdown_puts_measured_and_published_into_one_cell():
    table = tables({"experiments": {"bilinear-names": result("bilinear-names")}}, ROWS)[0]
    _, measured, published, difference, *_ = table.rows[0]
    full = to_compact_markdown(table)
    texts = shown(measured), shown(published), shown(difference, "difference")
    assert "| {} / {} ({}) |".format(*texts) in full
    assert "(" not in to_compact_markdown(table, differences=False).splitlines()[4]
    assert {line.count("|") for line in full.splitlines()[2:]} == {len(table.groups) + 2}
    assert f"{shown(None)} / {shown(table.rows[1][2])} |" in full  # not run: no difference


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_difference_is_that_of_the_numbers_shown(measured, published):
    measured_, published_, difference = tables_module._triple(measured, published)
    cells = [shown(measured_), shown(published_), shown(difference, "difference")]
    left, right, points = (float(cell.replace("−", "-")) for cell in cells)
    assert points == pytest.approx(left - right, abs=1e-6)
