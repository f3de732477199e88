"""The demo's wiring on a handful of scenes: nine rows, chance, and one page."""

import functools
import json

import pytest

from camvid_lang import demo
from camvid_lang.cli import main
from camvid_lang.report.thesis import THESIS_ROWS


@pytest.mark.slow
def test_the_demo_runs_every_row_and_writes_one_page(tmp_path, monkeypatch, capsys):
    few = functools.partial(demo.write_scenes, counts={"train": 6, "val": 2, "test": 8})
    monkeypatch.setattr(demo, "write_scenes", few)
    monkeypatch.setattr(demo, "DEMO_SETTINGS", {"crop": 64, "batch_size": 4, "epochs": 1})
    monkeypatch.setattr(demo, "SWIFTNET_SETTINGS", {})
    assert main(["demo", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["experiments"]) == list(THESIS_ROWS)
    for name, result in results["experiments"].items():
        assert result["experiment"] == name
        assert result["data"]["name"] == "scenes"
        assert result["data"]["test_frames"] == 8
    # Nothing learns in the bilinear rows, so even here they must beat chance.
    for name in ("bilinear-names", "bilinear-descriptions"):
        assert results["experiments"][name]["miou"] > 2 * results["chance"]["miou"]
    page = (tmp_path / "report.html").read_text()
    for number in ("7.1", "7.2", "7.3", "7.4", "7.5", "7.6"):
        assert f"Table {number}" in page
    assert "not CamVid" in page or "not about CamVid" in page
    # A second call reads the finished runs back.
    capsys.readouterr()
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("finished before") == 9
