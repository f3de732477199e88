"""What the notebooks share, without a kernel: choices, runs here and on Drive, live curves."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from camvid_lang import notebook
from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.notebook import LiveCurves, Session, start


@pytest.fixture
def session(tmp_path):
    return Session("smoke", tmp_path / "data", tmp_path / "runs", tmp_path / "drive")


CAMVID = {"name": "CamVid", "train_frames": 468, "test_frames": 233, "size": [360, 480]}
CAMVID["complete"] = True
SCENES = {**CAMVID, "name": "scenes", "train_frames": 200, "test_frames": 60, "size": [192, 256]}
RESULTS = {
    **dict.fromkeys(("accuracy", "mean_accuracy", "seconds"), 1.0),
    **{"miou_train": None, "prompts": None, "device": "cpu", "command": "", "versions": {}},
    **{"history": [], "confusion": [], "iou": dict.fromkeys(CLASSES, 1.0)},
    "data": {
        "name": "scenes",
        "train_frames": 2,
        "test_frames": 2,
        "size": [9, 9],
        "complete": False,
    },
    "encoder": {"name": "camvid-tiny", "weights": "", "text": ""},
}


def finish(folder, name, miou, **more):
    """What a finished run leaves, as far as it is read here."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    results = {**RESULTS, "experiment": name, "settings": {"name": name}, "miou": miou, **more}
    (folder / name / "results.json").write_text(json.dumps(results))


def test_results_are_read_here_and_on_drive(session):
    with pytest.raises(InputError, match="no finished run; run notebook 02 or 03 first"):
        session.finished()
    finish(session.runs, "frozen-names", 30.0)
    finish(session.drive, "frozen-names", 99.0)  # the local one comes first
    finish(session.drive, "Copy of frozen-names", 20.0)  # Google Drive's name of a copy
    finish(session.drive, "swiftnet", 50.0)
    finished = {name: results["miou"] for name, results in session.finished().items()}
    assert finished == {"frozen-names": 30.0, "swiftnet": 50.0, "Copy of frozen-names": 20.0}
    assert [*finished][-1] == "Copy of frozen-names"
    assert [path.name for path in session.runs.iterdir()] == ["frozen-names"]  # nothing is copied
    assert session.best() == "frozen-names"
    assert session.missing().startswith("bilinear-names (notebook 02), ")
    assert session.missing().endswith("full-narrow-descriptions (notebook 04)")
    with pytest.raises(
        InputError, match=r"full-names is not finished: .* frozen-names, swiftnet, Co"
    ):
        session.folder("full-names")


def test_results_saved_again_with_a_byte_order_mark_are_read(session):
    finish(session.runs, "swiftnet", 50.0)
    file = session.runs / "swiftnet" / "results.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert session.finished()["swiftnet"]["miou"] == 50
    file.write_text(file.read_text("utf-8-sig") + "é", encoding="latin-1")
    with pytest.raises(InputError, match=r"results\.json is damaged"):
        session.finished()


TINY = {"name": "camvid-tiny", "weights": "camvid-tiny.safetensors", "text": "camvid-tiny"}


def test_only_scores_on_the_whole_of_camvid_are_compared_with_the_thesis(session):
    scores = {"accuracy": 60.0, "mean_accuracy": 30.0, "encoder": TINY}
    finish(session.runs, "bilinear-names", 23.0, data=CAMVID, **scores)
    assert session.published()["frozen-names"]["iou"]["sky"] == 89.70
    shown = session.tables("7.1").data
    assert "(difference)" in shown
    assert "The thesis's encoder is another" in shown
    assert "Table 7.1" in shown
    finish(session.runs, "adapter-names", 25.0, data=CAMVID, **scores)
    assert "Table 7.2" not in session.tables("7.1").data
    assert "Table 7.2" in session.tables().data
    (session.runs / "adapter-names" / "results.json").unlink()
    for data, note in (
        (SCENES, "drawn road scenes"),
        ({**CAMVID, "complete": False}, "a copy or part of"),
    ):
        finish(session.runs, "bilinear-names", 23.0, data=data, **scores)
        assert session.published() == {}
        shown = session.tables("7.1").data
        assert note in shown
        assert "(difference)" not in shown


def test_start_uses_the_current_folder_or_the_parent_of_notebooks(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    session = start("smoke", "scenes", drive=True, settings="epochs=3, lr=1e-3,")
    assert session.runs == tmp_path / "runs" / "scenes-smoke"
    assert "DRIVE needs Google Colab" in capsys.readouterr().out
    assert session.drive is None
    experiment = session.configure("frozen-names")
    assert (experiment.epochs, experiment.lr) == (3, 1e-3)
    commas = start("smoke", "scenes", fresh="full-names", settings="held_out=tree, car, epochs=3")
    assert "FRESH names full-names, which RUNS does not" in capsys.readouterr().out
    commas = commas.settings
    assert commas == {"held_out": "tree, car", "epochs": "3"}
    assert session.configure("bilinear-names").epochs == 0  # settings are for what is trained
    for folder in ("frozen-names", "frozen-names epochs=3 lr=1e-3", "bilinear-names"):
        finish(session.runs, folder, 30.0)
    names = {"bilinear-names", "frozen-names (no SETTINGS)", "frozen-names"}
    assert set(session.finished()) == names
    assert session.folder("frozen-names").name == "frozen-names epochs=3 lr=1e-3"
    names = {"bilinear-names", "frozen-names epochs=3 lr=1e-3", "frozen-names"}
    assert set(start("smoke", "scenes").finished()) == names
    monkeypatch.chdir(tmp_path / "notebooks")
    assert start("smoke", "scenes").runs == session.runs


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"profile": "fast"}, "unknown profile 'fast'"),
        ({"data": "nowhere/at/all"}, "DATA 'nowhere/at/all' is not a folder"),
        ({"settings": "epochs"}, "epochs"),
        ({"fresh": "frozen-nmes"}, "'frozen-names'"),
        ({"runs": "swiftnet,frozen-nmes"}, "'frozen-names'"),
        ({"settings": "epoch=2"}, "'epochs'"),
    ],
)
def test_wrong_choices_are_reported(choices, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        start(**{"profile": "smoke", "data": "scenes", **choices})


def test_in_colab_data_on_drive_are_copied_to_the_local_disk(tiny_dataset, tmp_path, monkeypatch):
    own = tmp_path / "drive" / "MyDrive" / "own"
    shutil.copytree(tiny_dataset, own)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setitem(sys.modules, "google.colab", Mock())
    session = start("smoke", str(own))
    assert session.data.parent.parent == tmp_path / "work" / "data"
    assert session.runs == tmp_path / "work" / "runs" / "own-smoke"
    assert start("smoke", str(own)).data == session.data
    frames = session.frames("trainval")
    label = own / "trainannot" / "train_000.png"
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(label)
    other = start("smoke", str(own))
    assert not other.frames("trainval").labels[0].any()
    namesake = shutil.copytree(tiny_dataset, tmp_path / "drive" / "MyDrive" / "b" / "own")
    assert len({session.data, other.data, start("smoke", str(namesake)).data}) == 3
    shutil.rmtree(own.parent.parent)
    assert session.frames("trainval").digest == frames.digest


def test_runs_on_another_folder_of_the_same_name_are_not_reused(make_dataset, session):
    first, other = (replace(session, data=make_dataset(f"{n}/own", seed=n)) for n in range(2))
    first.run("bilinear-names")
    with pytest.raises(InputError, match="the test frames differ from those of own"):
        other.run("bilinear-names")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("mount failed"),  # no access, blocked cookies, VS Code
        NotImplementedError("google.colab.drive is unsupported\nin this environment."),
        NotImplementedError(),
        KeyboardInterrupt(),  # it hung
        None,  # it does nothing, as a stand-in for the module may
    ],
)
def test_a_drive_that_cannot_be_mounted_is_one_line_with_a_way_out(error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        sys.modules, "google.colab", Mock(drive=Mock(mount=Mock(side_effect=error)))
    )
    with pytest.raises(InputError, match="set DRIVE to False") as caught:
        start("smoke", "scenes", drive=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "google.colab", object())  # without a module `drive`
    with pytest.raises(InputError, match="set DRIVE to False"):
        start("smoke", "scenes", drive=True)


def test_drive_may_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="DRIVE 'synced' is not a folder"):
        start("smoke", "scenes", drive="synced")
    (tmp_path / "synced").mkdir()
    assert start("smoke", "scenes", drive="synced").drive == Path("synced", "scenes-smoke")


def pack(folder, archive, top):
    """An archive of a data set in the folder `top`, with what macOS and Windows put beside it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    rubbish = [f"{top}train/Thumbs.db", f"{top}.DS_Store", f"{top}trainannot/.DS_Store"]
    rubbish += [f"__MACOSX/{top}{split}/._{split}_000.png" for split in ("train", "trainannot")]
    with zipfile.ZipFile(archive, "w") as opened:
        for path in files:
            opened.write(path, f"{top}{path.relative_to(folder).as_posix()}")
        for name in rubbish:
            opened.writestr(name, b"\0\5\x16\7")


@pytest.mark.parametrize("top", ["", "CamVid/", "SegNet-master/CamVid/", "a/b/c/"])
def test_data_may_be_an_archive_with_the_layout_somewhere_inside(
    top, tiny_dataset, tmp_path, monkeypatch
):
    (tmp_path / "input").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    archive = tmp_path / "input" / "own.data.zip"
    pack(tiny_dataset, archive, top)
    session = start("smoke", str(archive))
    assert session.data.parent == tmp_path / "work" / "data"
    assert len(session.frames("trainval")) == 8
    inode = session.data.stat().st_ino
    assert start("smoke", str(archive)).data.stat().st_ino == inode  # it is not unpacked again
    assert [path.name for path in archive.parent.iterdir()] == ["own.data.zip"]
    next(tiny_dataset.glob("train/*.png")).unlink()
    pack(tiny_dataset, archive, top)  # other content under the same name
    assert start("smoke", str(archive)).data != session.data


def test_a_tar_and_what_is_no_archive(make_dataset, tmp_path, monkeypatch):
    own = make_dataset("input/own")
    monkeypatch.chdir(tmp_path)
    with tarfile.open("own.tar.gz", "w:gz") as archive:
        archive.add(own, "CamVid")
    assert len(start("smoke", "own.tar.gz").frames("test")) == 3
    whole = Path("own.tar.gz").read_bytes()
    for content, message in (
        (b"<!DOCTYPE html>", "a web page"),
        (b"text", "not a zip or tar"),
        (whole[: len(whole) // 2], "cannot be unpacked|cut short"),
    ):
        Path("bad.zip").write_bytes(content)
        with pytest.raises(InputError, match=rf"DATA 'bad\.zip'.*({message})"):
            start("smoke", "bad.zip")
    (left,) = Path("data").iterdir()
    assert left.name.startswith("own-")


def test_the_layout_is_found_in_folders_inside_and_nothing_is_written_there(
    make_dataset, tmp_path, monkeypatch
):
    make_dataset("input/camvid/CamVid")
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")  # as on Kaggle
    before = sorted((tmp_path / "input").rglob("*"))
    session = start("smoke", str(tmp_path / "input" / "camvid"))
    assert session.data == tmp_path / "input" / "camvid" / "CamVid"
    session.run("bilinear-names")
    assert sorted((tmp_path / "input").rglob("*")) == before
    make_dataset("input/other")
    with pytest.raises(
        InputError, match=r"holds 2 data sets \(.*input.camvid.CamVid, .*input.other\)"
    ):
        start("smoke", str(tmp_path / "input"))


def test_scripts_keep_their_line_ends_on_windows():
    root = Path(notebook.__file__).parent.parent
    if not (root / ".git").exists():
        pytest.skip("not a checkout")

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout

    names = git("ls-files").splitlines()
    scripts = [name for name in names if (root / name).read_bytes().startswith(b"#!")]
    assert {"data_download.sh", "benchmarks/gpu.sh"} <= set(scripts)
    shown = git("check-attr", "eol", "--", *scripts, "Makefile").splitlines()
    assert [line for line in shown if not line.endswith("eol: lf")] == []


def test_an_input_error_is_one_line_in_a_notebook(monkeypatch, capsys):
    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
    notebook._one_line_errors()
    shell.run_cell("from camvid_lang.errors import InputError\nraise InputError('what is wrong')")
    output = capsys.readouterr()
    assert (output.out + output.err).strip() == "error: what is wrong"


def test_curves_are_not_drawn_too_often(monkeypatch):
    handle = Mock()
    monkeypatch.setattr(notebook, "display", Mock(return_value=handle))
    live = LiveCurves("frozen-names", seconds=1000)
    for now in (False, False, True):  # the second comes too soon
        live.update([{"epoch": 1, "loss": 2.0, "miou": 10.0}], now)
    assert handle.update.call_count == 2
