"""What the notebooks share, without a kernel: results here and on Drive, and live curves."""

import json
import shutil
from dataclasses import replace

import pytest

from camvid_lang.errors import InputError
from camvid_lang.notebook import LiveCurves, Session
from camvid_lang.report.thesis import THESIS_ROWS


@pytest.fixture
def session(tmp_path):
    return Session(
        profile="smoke",
        data=tmp_path / "data",
        runs=tmp_path / "runs",
        drive=tmp_path / "drive",
        resume=True,
        settings={},
        drawn=True,
    )


def finish(folder, name, miou, **more):
    """What a finished run leaves, as far as it is read here."""
    (folder / name / "checkpoints").mkdir(parents=True)
    (folder / name / "checkpoints" / "last-1.pt").write_bytes(b"large")
    results = {"experiment": name, "settings": {"name": name}, "miou": miou, "history": [], **more}
    (folder / name / "results.json").write_text(json.dumps(results))


def test_results_are_read_where_they_lie_and_no_weights_are_fetched(session):
    finish(session.runs, "frozen-names", 30.0)
    finish(session.drive, "frozen-names", 99.0)  # what is here comes first
    finish(session.drive, "swiftnet", 50.0)
    finish(session.drive, "adapter-names", 40.0)
    assert {name: found["miou"] for name, found in session.finished().items()} == {
        "adapter-names": 40.0,
        "frozen-names": 30.0,
        "swiftnet": 50.0,
    }
    assert [path.name for path in session.runs.iterdir()] == ["frozen-names"]
    assert session.language_run() == "frozen-names"  # not the best, but CLIP kept its words
    assert session.language_run("adapter-names") == "adapter-names"
    with pytest.raises(InputError, match="RUN 'swiftnet' is no finished run"):  # knows no words
        session.language_run("swiftnet")
    with pytest.raises(InputError, match="full-descriptions is not finished"):
        session.folder("full-descriptions")


def test_runs_of_another_profile_are_told(session):
    assert session.elsewhere() == ""
    on_drive = replace(session, drive=session.drive / "scenes-smoke")
    finish(on_drive.drive.parent / "scenes-thesis", "frozen-names", 60.0)
    assert on_drive.elsewhere() == (
        "1 finished run(s) under profile thesis: choose PROFILE = 'thesis'"
    )


def test_what_is_missing_is_told_with_its_notebook(session):
    every = session.missing().splitlines()
    assert every[0] == (
        "not finished: bilinear-names, bilinear-descriptions, adapter-names, "
        "adapter-descriptions (notebook 02)"
    )
    assert sum(line.count("-") + line.count("swiftnet") for line in every) == 10
    for name in THESIS_ROWS:
        assert any(name in line for line in every)
        if name != "swiftnet":
            finish(session.runs, name, 1.0)
    assert session.missing() == "not finished: swiftnet (notebook 04)"
    finish(session.drive, "swiftnet", 1.0)
    assert session.missing() == "all of the thesis's runs are there"


def test_figures_on_drawn_scenes_are_not_set_against_the_thesis(session, tmp_path):
    scores = {"accuracy": 60.0, "mean_accuracy": 30.0}
    data = {"name": "scenes", "test_frames": 60, "train_frames": 200, "complete": True}
    finish(session.runs, "bilinear-names", 23.0, data=data, **scores)
    assert session.published_iou() == {}
    shown = session.tables("7.1").data
    assert "60 test frames of drawn road scenes" in shown
    assert "These are not CamVid figures" in shown
    assert "(difference)" not in shown
    own = replace(session, runs=tmp_path / "own", drive=None, drawn=False)
    data = {"name": "CamVid", "test_frames": 233, "train_frames": 468, "complete": True}
    encoder = {"name": "camvid-tiny", "weights": "camvid-tiny.safetensors", "text": "camvid-tiny"}
    finish(own.runs, "bilinear-names", 23.0, data=data, encoder=encoder, **scores)
    assert own.published_iou()["frozen-names"]["sky"] == 89.70
    shown = own.tables("7.1").data
    assert "(difference)" in shown
    assert "The thesis's numbers are for another encoder" in shown
    data["complete"] = False  # eight frames of CamVid are not CamVid
    shutil.rmtree(own.runs)
    finish(own.runs, "bilinear-names", 23.0, data=data, encoder=encoder, **scores)
    assert "measured on a part of CamVid" in own.tables("7.1").data
    assert own.published_iou() == {}


def test_curves_are_drawn_in_one_place_and_not_too_often(monkeypatch):
    shown, updates = [], []

    class Handle:
        update = staticmethod(updates.append)

    import IPython.display

    def display(what, display_id=None):
        shown.append(what)
        return Handle

    monkeypatch.setattr(IPython.display, "display", display)
    history = [{"epoch": 1, "loss": 2.0, "miou": 10.0, "lr": 1e-3, "seconds": 1.0}]
    live = LiveCurves("frozen-names", seconds=1000)
    assert not live.drawn
    live.update(history)
    live.update(history * 2)  # too soon
    live.update(history * 3, now=True)
    assert len(shown) == 1
    assert len(updates) == 2
    assert live.drawn
    assert updates[-1].get_suptitle() == "frozen-names while learning"
