"""The demo on a handful of scenes: rows, chance, other words, and one page."""

import json
import re

import pytest

from benchmarks.carry import carry
from camvid_lang import demo
from camvid_lang.cli import main
from camvid_lang.data.classes import VOID
from camvid_lang.demo import CARRIED
from camvid_lang.experiments import EXPERIMENTS, configure
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_figures, read_results
from camvid_lang.run import run
from camvid_lang.scenes.dataset import draw_scene, scene_seed
from camvid_lang.segmenter import load

LIKE_OTHERS = ("adapter-descriptions", "frozen-descriptions", "full-descriptions")


@pytest.mark.slow(100)
def test_the_demo_runs_its_rows_and_writes_one_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "COUNTS", {"train": 6, "val": 2, "test": 8})
    monkeypatch.setattr(demo, "SETTINGS", {"crop": 64, "batch_size": 4})
    # One of each kind: each trained row is a process of its own, which takes seconds to start.
    rows = [name for name in demo.ROWS if name not in LIKE_OTHERS]
    monkeypatch.setattr(demo, "ROWS", rows)
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    results = {name: read_results(tmp_path / name / "results.json") for name in rows}
    chance = read_results(tmp_path / "chance" / "results.json")
    for name, result in results.items():
        assert result["experiment"] == name
        assert result["data"]["name"] == "scenes"
        assert result["data"]["test_frames"] == 8
    # The bilinear rows are not trained, so even here they must beat chance.
    for name in ("bilinear-names", "bilinear-descriptions"):
        assert results[name]["miou"] > 2 * chance["miou"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for number in ("7.1", "7.2", "7.3", "7.4", "7.5", "7.6"):
        assert f"Table {number}" in page
    assert {*demo.ASKED, "swiftnet", "bilinear-names"} <= {*rows} < {*THESIS_ROWS, "held-out"}
    assert "These are not CamVid results" in page
    assert ">chance<" in page
    # A second call reads the finished runs.
    capsys.readouterr()
    assert main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    assert capsys.readouterr().out.count("finished before") == len(rows)
    assert main(["demo", "--out", str(tmp_path), "--epochs", "2"]) == 1
    assert re.search(
        r"error: frozen-names: \S+ holds another run \(epochs was.*: undo the change.*--fresh",
        capsys.readouterr().err,
    )
    assert "Other words" in page
    words = json.loads((tmp_path / "held-out" / "vocabulary.json").read_text())
    assert words["held_out_scores"]["anchored"]["seen"] > 0


def test_rows_train_in_the_proportion_of_the_thesis():
    for epochs, expected in ((None, (6, 18, 30, 3, 9)), (1, (1, 1, 1, 1, 1))):
        names = ("adapter-names", "frozen-names", "full-descriptions", "swiftnet", "held-out")
        found = [demo.demo_settings(name, *[epochs] * bool(epochs))["epochs"] for name in names]
        assert tuple(found) == expected
    assert EXPERIMENTS["full-descriptions"].epochs / EXPERIMENTS["frozen-names"].epochs == 5 / 3


def test_carried_runs_are_small_and_segment_as_before(finished, tmp_path, monkeypatch):
    name = "full-narrow-descriptions"
    run(configure(name, "smoke"), finished / "data", tmp_path / "run", device="cpu")
    carry([tmp_path / "run", finished / "swiftnet"], tmp_path / "carried")
    assert not list((tmp_path / "carried" / "swiftnet" / "checkpoints").iterdir())
    assert len(read_figures(tmp_path / "carried" / "swiftnet" / "figures.npz").images) == 1
    image = next((finished / "data" / "test").iterdir())
    first, again = (load(folder) for folder in (tmp_path / "run", tmp_path / "carried" / name))
    difference = first.cosines(image) - again.cosines(image)
    assert abs(difference).max() < 0.02  # weights in float16


def test_the_package_carries_a_segmenter_and_its_results():
    files = [path for path in CARRIED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3 * 2**20
    scene, label = draw_scene(scene_seed(0, "test", 33))
    ids = load("demo").segment(scene).ids
    assert (ids == label)[label != VOID].mean() > 0.85
    other = load("demo").segment(scene, "sky, house, lamp post, road, sidewalk, bush, lorry").ids
    assert ((other == 5) & (label == 5)).sum() > 0.6 * (label == 5).sum()
