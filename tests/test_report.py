"""The report: right numbers in all tables, honest about its data, self-contained and safe."""

import base64
import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.report import figures, tables
from camvid_lang.report.html import report_runs
from camvid_lang.results import FigureData, RunFolder, write_figures, write_json

# Typed in from the thesis again.
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
# Rows of each table (places in THESIS), and its columns (places in KEYS).
TABLES = {
    "7.1": ((0, 1), (0, 1, 3)),
    "7.2": ((2, 3), (0, 1, 3)),
    "7.3": ((4, 5), (0, 1, 2, 3)),
    "7.5": ((6, 7), (0, 1, 2, 3)),
    "7.6": ((1, 3, 4, 7, 8), (0, 1, 3)),
}
WHOLE = {"name": "CamVid", "train_frames": 468, "test_frames": 233, "size": [360, 480]}
WHOLE |= {"complete": True, "digest": "d"}
SCENES = {**WHOLE, "name": "scenes", "size": [192, 256], "test_frames": 60}
PART = {**WHOLE, "test_frames": 40, "complete": False}
CLIP = {"name": "convnext_base_w_320", "weights": "laion_aesthetic_s13b_b82k_augreg"}
CLIP |= {"text": "tower", "channels": {"stages": [128, 256, 512, 1024], "head": 640, "text": 640}}
RESNET = {"name": "resnet18", "weights": "ImageNet-1k (timm)", "text": "none"}
TINY = {"name": "camvid-tiny", "weights": "/home/me/tiny.safetensors", "text": "words"}


def result(name="frozen-names", shift=1.0, **changes):
    """Results as a run on the whole of CamVid with the thesis's encoder writes them."""
    return {
        "experiment": name,
        **{key: 30.125 + shift + 10 * place for place, key in enumerate(KEYS)},
        "iou": {label: 7.0 * place + shift for place, label in enumerate(CLASSES)},
        "confusion": [],
        "history": [{"epoch": 1, "loss": 2.0, "miou": 40.0}] * 2,
        "seconds": 90.0,
        "settings": {"weights": "", "width": 96, "spp_bottleneck": 48, "spp_width": 24},
        "prompts": None,
        "data": dict(WHOLE),
        "encoder": RESNET if name == "swiftnet" else CLIP,
        "device": "cpu",
        "versions": {"torch": "2.15"},
        "command": "python -m camvid_lang run",
        **changes,
    }


NAMES = (*THESIS, "full-names")
EVERYTHING = {name: result(name, place * 1.003) for place, name in enumerate(NAMES)}


def frames(count=6, names=None):
    ids = np.random.default_rng(0).integers(0, 12, (count, 60, 80), dtype=np.uint8)
    images = np.stack([ids * 20] * 3, axis=1)
    names = names or tuple(f"test/frame_{index}" for index in range(count))
    similarities = {"Names": np.full((11, 11), 0.8), "Descriptions": np.eye(11)}
    return FigureData(images, ids, np.minimum(ids, 10), names, similarities)


def write_run(path, results, data=None):
    path.mkdir(parents=True)
    write_json(RunFolder(path).results, results)
    if data:
        write_figures(RunFolder(path).figures, data)
    return path


class Page(HTMLParser):
    """The tags of a page, its text, and the rows of its tables by id."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], "", {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []
        self.images = {attrs["alt"]: attrs["src"] for tag, attrs in self.tags if tag == "img"}

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id", len(self.tables)), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for place, (name, results) in enumerate(reversed(EVERYTHING.items())):
        write_run(folder / name, results, frames(count=2 if place == 1 else 6))
    return Page(report_runs([folder]))


def expected(measured, published):
    cells = ["–" if value is None else f"{value:.2f}" for value in (measured, published)]
    if "–" in cells:
        return [*cells, "–"]
    points = Decimal(cells[0]) - Decimal(cells[1])  # of what is printed
    return [*cells, f"{points:+}".replace("-", "−") if points else "0.00"]


def test_tables_hold_measured_published_and_difference(full_page):
    for number, (names, columns) in TABLES.items():
        for row, index in zip(full_page.tables[f"table-{number}"][2:], names, strict=True):
            name = [*THESIS][index]
            pairs = [(EVERYTHING[name][KEYS[column]], THESIS[name][column]) for column in columns]
            assert row[1:] == [cell for pair in pairs for cell in expected(*pair)]
    published = {"frozen-names": FROZEN, "full-narrow-descriptions": NARROW}
    for index, (label, *cells) in enumerate(full_page.tables["table-7.4"][2:]):
        pairs = [(EVERYTHING[n]["iou"][label], values[index]) for n, values in published.items()]
        assert label == CLASSES[index]
        assert cells == [cell for pair in pairs for cell in expected(*pair)]
    (_, others) = next(rows for rows in full_page.tables.values() if rows[0][0] == "Run")
    assert others[:2] == ["full-names", f"{EVERYTHING['full-names']['accuracy']:.2f}"]


def test_the_page_needs_nothing_from_outside(full_page):
    attributes = [attrs for _, attrs in full_page.tags]
    addresses = [a[k] for a in attributes for k in ("src", "href", "srcset", "data") if k in a]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    styles = full_page.text + "".join(a.get("style", "") for a in attributes)  # with the CSS
    assert not re.search(r"url\((?!data:image/)|@import", styles)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in full_page.tags}


def test_the_page_has_every_part(full_page):
    source = full_page.source
    headings = re.findall(r"<h2>(.*?)</h2>", source)
    assert headings == re.findall(r'<a href="#[a-z]+">(.*?)</a>', source)
    assert [len(headings), source.count("<svg")] == [4, 2]
    # A few frames; the first is split into a few runs, and the others among what is folded.
    frames = [f"test/frame_{index}" for index in range(4)]
    assert re.findall(r"<h3>(.*?)</h3>", source) == [frames[0], *frames]
    assert source.count("<figcaption>") == 4 * 11
    assert source.count('class="absent"') == 2
    assert source.index("mIoU of each run") < source.index("<details>")
    shown = re.findall("<figcaption>(.*?)[:<]", source.partition("<details>")[0])
    assert shown == [
        "frame and label",
        *NAMES[:-3:-1],
        "frozen-descriptions",
        "adapter-descriptions",
    ]


def test_the_page_of_one_run_shows_that_run(tmp_path):
    data, counts = frames(count=1), np.eye(12)
    counts[10] = 0  # no bicyclist is labelled, so its IoU says nothing
    write_run(tmp_path / "run", result(confusion=counts.tolist()), data)
    page = Page(report_runs([tmp_path / "run"]))
    assert "<h1>Semantic segmentation with language embeddings: frozen-names</h1>" in page.source
    assert page.text.index("mIoU 61.1\u00a0%") < page.text.index("Results")
    assert "Highest IoU: pedestrian, 64.0\u00a0%; lowest: sky, 1.0\u00a0%." in page.text
    rows = [[label, "", f"{7 * place + 1:.1f}"] for place, label in enumerate(CLASSES)][-2::-1]
    assert page.tables[0] == rows
    assert "IoU of each class" not in page.images  # compares runs
    assert [key for key in page.tables if "table" in str(key)] == ["table-7.3"]
    assert all(part in page.text for part in ("1×1 to 48", "24 per level", "convnext_base_w_320"))
    _, errors = figures.errors(data.labels[0], data.predictions[0])
    for alt, drawn in {
        "label": figures.colour_labels(data.labels[0]),
        "frozen-names, errors": errors,
    }.items():
        png = base64.b64decode(page.images[f"{alt}: test/frame_0"].partition(",")[2])
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)).convert("RGB"), drawn)
    write_run(tmp_path / "scenes", result(data=SCENES))
    page = Page(report_runs([tmp_path / "scenes"]))
    assert not [key for key in page.tables if "table" in str(key)]  # nothing to compare with


def vocabulary(*ways, **miou):
    wordings = {}
    for name, value in {"own": 50.0, **miou}.items():
        found = {way: {"miou": value, "iou": dict.fromkeys(CLASSES, value)} for way in ways}
        wordings[name] = {"reason": "why", "trained": 50.0, **found}
    return {"test_frames": 233, "digest": "d", "wordings": wordings}


def test_scores_with_other_words_are_shown_for_the_frames_of_the_scores(tmp_path):
    asked, few = vocabulary("anchored", "cosine", "clip", far=20.0), vocabulary("cosine")
    table = tables.word_table({"a": asked, "b": few})
    ways = ("a, through its classes", "a, by cosine", "a, with CLIP's map", "b, by cosine")
    assert table.groups == ways
    assert table.rows == (("own: why", *[50.0] * 4), ("far: why", *[20.0] * 3, None))
    more = {"finer": 45.0, "near": 40.0, "far": 20.0, "coarser": 60.0, "unrelated": 2.0}
    asked = vocabulary("anchored", "cosine", "clip", **more)
    other = result("adapter-names", data={**WHOLE, "digest": "another"})
    for name, run in {"b": result(), "a": other}.items():
        write_json(RunFolder(write_run(tmp_path / name, run)).vocabulary, asked)
    page = Page(report_runs([tmp_path], json_file=tmp_path / "all.json"))
    shown, every, iou = (rows for rows in page.tables.values() if rows[0][0] == "Words")
    far = ["far: why", "20.00", "20.00", "20.00"]
    assert [row[0] for row in shown[1:]] == ["own: why", "near: why", "far: why", "unrelated: why"]
    assert shown[3] == far
    assert len(every) == 7
    assert far in every
    assert iou[-1] == ["unrelated", *["2.00"] * 11]
    assert "20.00\u00a0% with why (far)" in page.text
    assert "IoU of each class by frozen-names, through its classes" in page.text
    written = json.loads((tmp_path / "all.json").read_text())
    assert written == {"adapter-names": other, "frozen-names": result() | {"vocabulary": asked}}


@pytest.mark.parametrize(
    ("swiftnet", "ending"),
    [
        ({"miou": 60.0}, ", 1.1 points above SwiftNet's 60.0 %."),
        ({"miou": 61.16}, ", 0.1 points below SwiftNet's 61.2 %."),
        ({"history": []}, ". SwiftNet is not compared (other frames or epochs)."),
        ({"miou": None}, "."),
        ({"data": SCENES}, ". SwiftNet is not compared (other frames or epochs)."),
    ],
)
def test_the_finding_compares_the_best_language_model_with_swiftnet(swiftnet, ending):
    runs = {"frozen-names": result(), "full-names": result("full-names", shift=0)}
    sentence = tables.finding({**runs, "swiftnet": result("swiftnet", **swiftnet)})
    assert sentence == f"The best language model is frozen-names: mIoU 61.1 %{ending}"


def test_a_run_of_fewer_epochs_is_marked_and_not_compared(tmp_path):
    whole = {**result()["settings"], "train_encoder": True}
    history = result()["history"] * 15
    runs = {"full-names": result("full-names", settings=whole, history=history)}
    runs["full-descriptions"] = result("full-descriptions", 3.0, settings=whole)  # 2 epochs only
    runs["swiftnet"] = result("swiftnet", 2.0, settings=whole)
    runs["frozen-names"] = result("frozen-names", -1.0)  # trains another part of the network
    assert tables.short_runs({**runs, "full-names": result(data=SCENES, history=history)}) == {}
    best = "The best language model is full-names: mIoU 61.1 %"
    note = "2 epochs, others up to 30"
    assert tables.finding(runs) == f"{best}. SwiftNet is not compared ({note})."
    assert tables.short_runs(runs) == dict.fromkeys(("full-descriptions", "swiftnet"), note)
    for name, run in runs.items():
        write_run(tmp_path / name, run)
    page = Page(report_runs([tmp_path]))
    assert not re.search("points (above|below)|A fair comparison", page.text)
    hatched = re.findall(r'<th scope="row">([\w-]+)[^\n]*\n[^\n]*<i class="short">', page.source)
    assert hatched == ["full-descriptions", "swiftnet"]
    rows = [row[0] for row in page.tables["table-7.6"][2:]]
    assert rows == ["Frozen encoder, names", f"SwiftNet, single scale ({note})"]
    # The best of a column is bold, but not what was trained for fewer epochs.
    bold = re.findall(r'<td class="measured best"[^>]*>(.*?)</td>', page.source)
    assert bold == []
    runs["swiftnet"]["history"] = history
    assert tables.finding(runs) == f"{best}, 1.0 points below SwiftNet's 62.1 %."
    for name in ("swiftnet", "frozen-names"):
        runs[name]["history"] = history
        write_json(RunFolder(tmp_path / name).results, runs[name])
    page = Page(report_runs([tmp_path]))
    fair = "full-names 61.1\u00a0%, swiftnet 62.1\u00a0%, frozen-names 59.1\u00a0%."
    assert f"same frames and number of epochs (30): {fair}" in page.text
    data = {**runs["frozen-names"]["data"], "train_digest": "other"}
    others = {**runs, "frozen-names": {**runs["frozen-names"], "data": data}}
    assert tables.fair_runs(others, "full-names") == ["swiftnet"]
    bold = re.findall(r'<td class="measured best"[^>]*>(.*?)</td>', page.source)
    assert bold[:3] == ["32.12", "42.12", "62.12"]


def test_a_page_without_a_run_that_can_be_best_is_written(tmp_path):
    whole = {**result()["settings"], "train_encoder": True}
    short = result("full-names", settings=whole)
    longer = result("swiftnet", settings=whole, history=short["history"] * 2)
    for name, run in {"full-names": short, "swiftnet": longer}.items():
        write_run(tmp_path / name, run)
    assert "2 epochs, others up to 4" in Page(report_runs([tmp_path])).text


def test_seeds_of_one_experiment_are_one_row_with_their_mean_and_each_value(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        settings = {**result()["settings"], "seed": seed}
        iou = {**result()["iou"], "sky": None}
        run = result(settings=settings, miou=60.0 + seed * seed, iou=iou)
        write_run(tmp_path / name, run, frames(count=1))
        write_run(tmp_path / f"wide-{name}", result(settings={**settings, "width": 128}))
    write_run(tmp_path / "wider", result(settings={**settings, "width": 256}))
    page = Page(report_runs([tmp_path], json_file=tmp_path / "all.json"))
    rows = {row[0]: row for row in page.tables["table-7.3"][2:]}
    assert rows.keys() == {
        "Class names (3 seeds)",
        "Class names (wide-a, 3 seeds)",
        "Class names (wider)",
    }
    mean = ["61.6760.00, 61.00, 64.00", "63.16", "−1.49"]
    assert rows["Class names (3 seeds)"][-3:] == mean
    assert page.tables[0][0] == ["frozen-names (3 seeds) (60.0, 61.0, 64.0)", "", "61.7"]
    assert "The best language model is frozen-names (3 seeds): mIoU 61.7\u00a0%" in page.text
    assert "frozen-names (3 seeds): " in page.text  # its frames
    assert len(json.loads((tmp_path / "all.json").read_text())) == 7  # each run


@pytest.mark.parametrize(
    ("data", "where"),
    [(SCENES, "drawn road scenes"), (PART, "splits, a copy or a part of CamVid")],
)
def test_what_is_not_camvid_is_not_compared(data, where):
    runs = {"frozen-names": result(data=data)}
    assert re.match(f"These are not CamVid results: .*{where}", tables.banner(runs))
    first = tables.tables(runs)[0]
    assert first.parts == ("measured",)
    assert "| Class names | 31.12 | 41.12 | 51.12 | 61.12 |" in tables.to_markdown(first)
    mixed = {**runs, "swiftnet": result("swiftnet"), "full-names": result("full-names")}
    assert "results (frozen-names): " in tables.banner(mixed)
    by_number = {table.number: table for table in tables.tables(mixed)}
    assert by_number["7.3"].rows[0][1:4] == (31.125, 91.19, None)
    assert by_number["7.6"].rows[-1][1:4] == (31.125, 89.96, -58.84)


def test_text_names_data_and_encoder_and_has_one_cell_per_score():
    runs = {"bilinear-names": result("bilinear-names"), "adapter-names": result(encoder=TINY)}
    text = tables.measured_on(runs)
    assert "233 test frames of CamVid, 480 × 360 pixels (468 training frames)" in text
    assert "; camvid-tiny, weights tiny.safetensors, " in text
    table = tables.to_markdown(tables.tables(runs)[0])
    assert "| Class names | 31.12 / 45.71 (−14.59) |" in table
    assert "a\\|b" in tables.to_markdown(tables.tables({"a|b": result("a|b")})[-1])
    empty = dict.fromkeys(KEYS) | {"iou": dict.fromkeys(CLASSES)}
    runs = {name: result(name, **empty) for name in ("frozen-names", "swiftnet")}
    built = "".join(map(tables.to_markdown, tables.tables(runs)))
    assert "| SwiftNet, single scale | – / 89.96 | – / – | – / 64.52 |" in built


@given(st.floats(0, 100))
def test_the_difference_is_that_of_the_numbers_shown(measured):
    row = tables.tables({"frozen-names": result(miou=measured)})[0].rows[0][-3:]
    cells = map(tables.shown, row, ("", "", "difference"))
    left, right, points = (float(cell.replace("−", "-")) for cell in cells)
    assert points == pytest.approx(left - right, abs=1e-6)


def test_runs_without_scores_have_a_page(tmp_path):
    empty = dict.fromkeys(KEYS) | {"iou": dict.fromkeys(CLASSES), "history": []}
    write_run(tmp_path / "run", result(**empty))
    assert "mIoU of each run" not in Page(report_runs([tmp_path / "run"])).text
    write_run(tmp_path / "other", result("swiftnet", history=[]))
    page = Page(report_runs([tmp_path]))
    assert page.tables[0] == [["frozen-names", "", "–"], ["swiftnet", "", "61.1"]]
    assert "fair comparison" not in page.text


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('&\"')</script>\udcff"
    run = result(evil, command=evil, settings={evil: evil}, versions={evil: evil})
    run["data"] |= {"name": evil, "test_frames": evil, "size": [evil, evil]}
    run["encoder"] = dict.fromkeys(("name", "weights", "text"), evil)
    write_run(tmp_path / "run", run, frames(count=1, names=("<b>&",)))
    page = Page(report_runs([tmp_path]))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert evil[:-1] in page.text


def test_several_runs_of_an_experiment_are_labelled_by_folder(tmp_path):
    for place, name in enumerate(("a/seed", "b/seed", "b/other")):
        kind = "swiftnet" if name == "b/other" else "frozen-names"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_run(tmp_path / name, result(kind, shift=place))
    page = Page(report_runs([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "seed"]))
    for text in (
        "frozen-names (a/seed)",
        "Class names (b/seed)",
        "The best language model is",
    ):
        assert text in page.text
    assert "swiftnet (" not in page.text
    trained = {"settings": {**result()["settings"], "train_split": "train"}}
    assert "difference" not in tables.to_markdown(
        tables.tables({"frozen-names": result(**trained)})[0]
    )
    assert tables.finding({"swiftnet": result("swiftnet")}) == "mIoU 61.1 %."
    with pytest.raises(InputError, match="empty holds no finished run"):
        report_runs([tmp_path / "a", tmp_path / "empty"])
