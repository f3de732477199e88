"""The demo on a handful of scenes: rows, other words, one page; stopped and resumed."""

import json
import re
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

import camvid_lang as cl
from camvid_lang import demo
from camvid_lang.cli import main
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.evaluation import chance_scores
from camvid_lang.report.html import report_runs
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import RunFolder, read_results

SMALL = """if True:
    from functools import partial
    from camvid_lang import demo
    demo.unpack_scenes = partial(demo.unpack_scenes, limit=4)
    demo.run_demo({out!r}, epochs=1, fresh=True, every_row=True)
"""


@pytest.mark.slow(40)
def test_rows_are_run_once_whatever_stops_them_and_shown_on_one_page(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "unpack_scenes", partial(demo.unpack_scenes, limit=4))
    call = ["demo", "--all", "--out", str(tmp_path), "--device", "cpu", "--epochs", "1"]
    rows = demo.demo_experiments(THESIS_ROWS, 1)
    folders = [RunFolder(tmp_path / row.name) for row in rows]
    first = folders[2]  # after two that are not trained
    first.path.mkdir()
    first.results.write_text("{")
    assert main(call) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: {first.path.name}: \S+ is damaged .*: restore a copy", error)
    assert not any(folder.is_finished for folder in folders[4:])  # the other process has ended
    # The workers inherit standard error: its end is theirs.
    command = [sys.executable, "-c", SMALL.format(out=str(tmp_path))]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not any(folder.is_finished for folder in folders[3:]):
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.communicate(timeout=60)
    kept = {f: f.results.read_bytes() for f in folders if f.is_finished}
    assert 0 < len(kept) < len(folders)
    pages = []

    def report(folders, **options):
        pages.append(report_runs(folders, **options).read_text(encoding="utf-8"))
        return tmp_path / "report.html"

    monkeypatch.setattr(demo, "report_runs", report)
    assert main(call) == 0
    assert kept == {folder: folder.results.read_bytes() for folder in kept}
    results = {f.path.name: json.loads(f.results.read_bytes()) for f in folders}
    assert results.keys() == THESIS_ROWS.keys()
    assert {row["data"]["test_frames"] for row in results.values()} == {4}
    chance = chance_scores(results["swiftnet"]["confusion"])
    # The bilinear rows are not trained, so even here they must beat chance.
    for name in ("bilinear-names", "bilinear-descriptions"):
        assert results[name]["miou"] > 2 * chance["miou"]
    assert {f.path.name for f in folders if f.vocabulary.exists()} == {*demo.ASKED}
    page = pages[-1]
    assert "Missing: " not in page
    assert f"{chance['miou']:.1f}</td>" in page
    missing = [f.path.name for f in folders if f not in kept]
    assert re.search(rf"Missing: .*{missing[-1]}\. This page", pages[0])
    shown = ["not CamVid results", "in other words", *(f"Table 7.{n}" for n in range(1, 7))]
    assert [text for text in shown if text not in page] == []


def test_rows_train_in_the_proportion_of_the_thesis():
    names = ("adapter-names", "frozen-names", "full-descriptions", "swiftnet")
    rows = ((demo.ALL_EPOCHS, [6, 18, 30, 3]), (demo.EPOCHS, [6, 12, 20, 2]), (1, [1, 1, 1, 1]))
    for epochs, expected in rows:
        assert [demo.demo_settings(name, epochs)["epochs"] for name in names] == expected


def test_the_package_carries_a_segmenter_and_its_results(scenes):
    files = [path for path in demo.CARRIED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3 * 2**20
    assert {path.parent.name for path in files if path.name == "results.json"} == {*THESIS_ROWS}
    for name in THESIS_ROWS:  # as the notebooks would run them, which read them instead
        settings = cl.experiment(name, "cpu", **demo.demo_settings(name)).settings()
        assert read_results(demo.CARRIED / name / "results.json")["settings"] == settings
    segmenter, ids, labels = cl.load("demo"), [], []
    for label in sorted(scenes.glob("testannot/*.png")):
        (scene,) = scenes.glob(f"test/{label.stem}.*")
        labels.append(np.array(Image.open(label)))
        other = segmenter.segment(scene, "sky, house, lamp post, road, sidewalk, bush, lorry").ids
        ids.append((segmenter.segment(scene).ids, other))
    ids, labels = np.stack(ids, axis=1), np.stack(labels)
    assert (ids[0] == labels)[labels != VOID].mean() > 0.85
    assert (ids[1] == CLASSES.index("tree"))[labels == CLASSES.index("tree")].mean() > 0.6
