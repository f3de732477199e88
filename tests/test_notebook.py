"""What the notebooks share, without a kernel: choices, runs here and on Drive, live curves."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from IPython.core.interactiveshell import InteractiveShell

from camvid_lang import MODELS, notebook
from camvid_lang.errors import InputError
from camvid_lang.models.encoder import ASSETS
from camvid_lang.notebook import Session, live_curves, start


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """The current folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return Path.cwd()


@pytest.fixture
def finish(finished):
    """`finish(folder, name, miou, {key: value of the data})` writes results.json of a run."""
    original = json.loads((finished / "frozen-names" / "results.json").read_bytes())

    def write(folder, name, miou, data=()):
        results = {**original, "experiment": name, "data": {**original["data"], **dict(data)}}
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "results.json").write_text(json.dumps({**results, "miou": miou}))

    return write


def test_results_are_read_here_and_on_drive(work, finish):
    session = Session("smoke", work / "data", work / "runs", work / "drive")
    with pytest.raises(InputError, match="no finished run; run notebook 02, 03 or 04 first"):
        session.finished()
    finish(session.runs, "frozen-names", 30.0)
    finish(session.drive, "frozen-names", 99.0)  # the local one comes first
    finish(session.drive, "Copy of frozen-names", 20.0)  # Google Drive's name of a copy
    finish(session.drive, "swiftnet", 50.0)
    found = [(name, results["miou"]) for name, results in session.finished().items()]
    assert found == [("frozen-names", 30.0), ("swiftnet", 50.0), ("Copy of frozen-names", 20.0)]
    assert [path.name for path in session.runs.iterdir()] == ["frozen-names"]  # nothing is copied
    assert session.best() == "frozen-names"
    assert "None of the runs of this table" in session.tables("7.2").data
    with pytest.raises(InputError, match=r"full-names is not finished: run it \(.*04\)$"):
        session.folder("full-names")


def test_without_a_run_of_words_the_model_of_the_package_answers(work, finished, capsys):
    for data, model in (("scenes", "demo"), ("scenes-smoke", "demo"), ("own", "camvid")):
        session = Session("smoke", work / data, work / data / "runs")
        assert "None of the runs" in session.tables("7.1").data
        assert session.segmenter().folder == ASSETS / MODELS[model]
        shutil.copytree(finished / "swiftnet", session.runs / "swiftnet")  # which has no words
        assert session.segmenter().folder == ASSETS / MODELS[model]
        shutil.copytree(finished / "frozen-names", session.runs / "frozen-names")
        assert session.segmenter().folder == session.runs / "frozen-names"
        assert session.segmenter("bilinear-names").experiment.epochs == 0


@pytest.mark.parametrize("compared", [True, False])
def test_only_scores_on_the_whole_of_camvid_are_compared(compared, work, finish):
    session = Session("smoke", work / "data", work / "runs")
    for name in ("bilinear-names", "adapter-names"):
        finish(session.runs, name, 23.0, {"name": "CamVid", "complete": compared})
    shown = session.tables("7.1").data
    assert ("Table 7.1" in shown, "Table 7.2" in shown) == (True, False)
    assert "Table 7.2" in session.tables().data
    assert ("(difference)" in shown) == compared
    assert ("splits, a copy or a part of CamVid" in shown) == (not compared)


def test_start_uses_the_current_folder_or_that_of_notebooks(work, finish, monkeypatch, capsys):
    session = start("smoke", "scenes", drive=True, fresh="swiftnet", settings="epochs=3, lr=1e-3,")
    notes = r"FRESH names swiftnet, which RUNS does not(.|\n)*DRIVE needs Google Colab"
    assert re.search(notes, capsys.readouterr().out)
    assert (session.runs, session.drive) == (work / "runs" / "scenes-smoke", None)
    assert session.configure("frozen-names").epochs == 3
    assert session.configure("bilinear-names").epochs == 0  # settings are for what is trained
    chosen = "frozen-names epochs=3 lr=1e-3"
    for folder in ("frozen-names", chosen, "bilinear-names"):
        finish(session.runs, folder, 30.0)
    assert [*session.finished()] == ["bilinear-names", "frozen-names (no SETTINGS)", "frozen-names"]
    assert session.folder("frozen-names").name == chosen
    assert {*start("smoke", "scenes").finished()} == {"bilinear-names", "frozen-names", chosen}
    assert start("smoke", "scenes", drive=str(work)).drive == work / "scenes-smoke"
    (work / "notebooks").mkdir()
    monkeypatch.chdir(work / "notebooks")
    assert start("smoke", "scenes").runs == session.runs


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"profile": "fast"}, "unknown profile 'fast'"),
        ({"data": "nowhere/at/all"}, "DATA 'nowhere/at/all' is not a folder"),
        ({"settings": "epoch=2"}, "did you mean 'epochs'"),
        ({"fresh": "frozen-nmes"}, "did you mean 'frozen-names'"),
        ({"runs": "swiftnet,frozen-nmes"}, "did you mean 'frozen-names'"),
        ({"drive": "synced"}, "DRIVE 'synced' is not a folder"),
    ],
)
def test_wrong_choices_are_reported(choices, message, work):
    with pytest.raises(InputError, match=message):
        start(**{"profile": "smoke", "data": "scenes", **choices})
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("google.colab.drive is unsupported\nin this environment."),
        KeyboardInterrupt(),  # it hung
        None,  # it does nothing, as a stand-in for the module may
    ],
)
def test_a_drive_that_cannot_be_mounted_is_one_line_with_a_way_out(error, work, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", Mock(**{"drive.mount.side_effect": error}))
    with pytest.raises(InputError, match="set DRIVE to False") as caught:
        start("smoke", "scenes", drive=True)
    assert "\n" not in str(caught.value)
    assert not list(work.iterdir())


@pytest.mark.parametrize("top", ["", "a/b/c/"])
def test_data_may_be_an_archive_with_the_layout_somewhere_inside(top, tiny_dataset, work):
    archive = tiny_dataset.parent / "my.data.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in filter(Path.is_file, tiny_dataset.rglob("*")):
            opened.write(path, f"{top}{path.relative_to(tiny_dataset).as_posix()}")
        # What macOS and Windows put next to it.
        for name in ("train/Thumbs.db", ".DS_Store", "trainannot/.DS_Store"):
            opened.writestr(f"{top}{name}", b"\0\5\x16\7")
        opened.writestr(f"__MACOSX/{top}train/._train_000.png", b"\0\5\x16\7")
    session = start("smoke", str(archive))
    assert session.data.parent == work / "data"
    assert len(session.frames("trainval")) == 8
    inode = session.data.stat().st_ino
    assert start("smoke", str(archive)).data.stat().st_ino == inode  # it is not unpacked again
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("other", b"content under the same name")
    assert start("smoke", str(archive)).data != session.data


def test_a_damaged_archive_leaves_nothing(work):
    Path("bad.zip").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match=r"DATA 'bad\.zip'.*(cannot be unpacked|cut short)"):
        start("smoke", "bad.zip")
    assert not list((work / "data").iterdir())


def test_data_in_a_folder_are_read_in_place(make_dataset, tmp_path, monkeypatch, capsys):
    layout = make_dataset("drive/camvid/CamVid")
    before = sorted((tmp_path / "drive").rglob("*"))
    session = start("smoke", str(layout.parent))
    session.run("bilinear-names")
    assert sorted((tmp_path / "drive").rglob("*")) == before
    assert "slow to read" not in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "google.colab", Mock())
    assert start("smoke", str(layout.parent)).data == layout
    assert "a folder on Google Drive is slow to read: give a zip" in capsys.readouterr().out
    make_dataset("drive/other")
    with pytest.raises(InputError, match=r"holds 2 data sets \(.*camvid.CamVid, .*other\)"):
        start("smoke", str(tmp_path / "drive"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("InputError('what is wrong')", "error: what is wrong"),
        ("InputError('set fresh=True')", "error: set fresh=True (here: name the run in FRESH)"),
        ("Interrupted(2, 'after epoch 3')", "stopped: after epoch 3"),
    ],
)
def test_an_input_error_is_one_line_in_a_notebook(error, line, monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    start("smoke", "scenes")
    capsys.readouterr()
    shell.run_cell(f"from camvid_lang.errors import InputError, Interrupted\nraise {error}")
    output = capsys.readouterr()
    assert (output.out + output.err).strip() == line


def test_curves_are_not_drawn_too_often(monkeypatch):
    monkeypatch.setattr(notebook, "display", display := Mock())
    draw = live_curves("frozen-names", seconds=1000)
    for now in (False, False, True):  # the second comes too soon
        draw([{"epoch": 1, "loss": 2.0, "miou": 10.0}], now)
    assert display().update.call_count == 2
