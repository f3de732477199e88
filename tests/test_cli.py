"""The command line as a user meets it: results, exit codes, one-line errors."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_dataset
from PIL import Image

from camvid_lang.cli import main
from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, configure
from camvid_lang.run import run

RESULT_KEYS = {
    "experiment",
    "accuracy",
    "mean_accuracy",
    "miou",
    "miou_train",
    "iou",
    "thesis",
    "settings",
    "data",
    "encoder",
    "versions",
    "seconds",
}


def smoke(name, data, out, *more):
    return main(["run", name, "--data", str(data), "--out", str(out), "--profile", "smoke", *more])


def one_line_error(capsys):
    error = capsys.readouterr().err.strip().splitlines()
    told = [line for line in error if line.startswith("error: ")]
    assert len(told) == 1
    assert not any("Traceback" in line for line in error)
    return told[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set and a finished smoke run of frozen-names on it."""
    root = tmp_path_factory.mktemp("finished")
    write_dataset(root / "data")
    assert smoke("frozen-names", root / "data", root / "run") == 0
    return root


def test_a_run_leaves_results_and_a_page(finished):
    results = json.loads((finished / "run" / "results.json").read_text())
    assert set(results) >= RESULT_KEYS
    assert set(results["iou"]) == set(CLASSES)
    assert results["thesis"]["miou"] == 63.16
    assert results["data"]["train_frames"] == 8
    assert results["encoder"]["name"] == "camvid-tiny"
    page = (finished / "run" / "report.html").read_text()
    assert "frozen" in page
    assert not list((finished / "run").glob("*.part"))


def test_a_finished_run_is_read_back(finished, capsys):
    before = (finished / "run" / "results.json").stat().st_mtime_ns
    assert smoke("frozen-names", finished / "data", finished / "run") == 0
    assert "finished before" in capsys.readouterr().out
    assert (finished / "run" / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"frozen-names"}))
def test_every_experiment_runs_on_the_smoke_profile(name, finished, tmp_path):
    assert smoke(name, finished / "data", tmp_path / name) == 0
    assert json.loads((tmp_path / name / "results.json").read_text())["experiment"] == name


def test_a_run_of_another_experiment_is_refused_and_nothing_lost(finished, capsys):

    def content():
        return {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()}

    before = content()
    assert any("checkpoints" in path.parts for path in before)
    assert smoke("adapter-names", finished / "data", finished / "run") == 1
    assert "is of experiment 'frozen-names'" in one_line_error(capsys)
    assert smoke("frozen-names", finished / "data", finished / "run", "--set", "lr=0.1") == 1
    assert "lr was 0.0004, now 0.1" in one_line_error(capsys)
    assert content() == before


def test_a_finished_run_of_other_phrases_is_not_read_back(finished, tmp_path, capsys):
    words = tmp_path / "words.json"
    words.write_text(json.dumps({name: name for name in CLASSES}))
    chosen = ("bilinear-names", finished / "data", tmp_path / "run", "--set", f"text_set={words}")
    assert smoke(*chosen) == 0
    assert smoke(*chosen) == 0
    words.write_text(json.dumps({name: f"{name} at night" for name in CLASSES}))
    assert smoke(*chosen) == 1
    assert "words.json" in one_line_error(capsys)
    words.unlink()  # of no use to a run that is finished
    assert smoke(*chosen) == 0


def test_a_finished_run_is_not_shown_for_other_data(finished, tmp_path, capsys):
    other = write_dataset(tmp_path / "data", train=7)
    assert smoke("frozen-names", other, finished / "run") == 1
    assert "was measured on other data" in one_line_error(capsys)


def test_a_notebook_reads_a_finished_run_of_other_settings_back(finished, capsys):
    entry = configure("frozen-names", "smoke", **{"batch_size": 2})
    place = (finished / "data", finished / "run", "cpu")
    with pytest.raises(InputError, match="batch_size was 4, now 2"):
        run(entry, *place)
    assert run(entry, *place, keep_finished=True)["settings"]["batch_size"] == 4
    assert "(batch_size was 4, now 2); it is read back as it is" in capsys.readouterr().out


def test_a_text_set_is_matched_to_the_labels_by_name_not_by_place(finished, tmp_path, capsys):
    for file, names in (("given", CLASSES), ("sorted", sorted(CLASSES))):
        (tmp_path / f"{file}.json").write_text(json.dumps({name: name for name in names}))
        chosen = ("--set", f"text_set={tmp_path / file}.json")
        assert smoke("bilinear-names", finished / "data", tmp_path / file, *chosen) == 0
    given, by_letter = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("given", "sorted")
    )
    assert by_letter["iou"] == given["iou"]
    assert list(by_letter["phrases"]) == list(CLASSES)
    capsys.readouterr()
    for wrong in ({"car": "car", "lorry": "lorry"}, ["car", "tree"]):
        (tmp_path / "few.json").write_text(json.dumps(wrong))
        chosen = ("--set", f"text_set={tmp_path / 'few.json'}")
        assert smoke("adapter-names", finished / "data", tmp_path / "few", *chosen) == 1
        told = one_line_error(capsys)
        assert "few.json" in told
        assert "lacks 'sky'" in told


def test_segment_never_overwrites_a_picture(finished, tmp_path, capsys):
    frame = next((finished / "data" / "test").iterdir())
    for name in ("street.png", "a.png", "a_overlay.png"):
        (tmp_path / name).write_bytes(frame.read_bytes())
    arguments = ["--classes", "car, tree", "--run", str(finished / "run")]
    assert main(["segment", str(tmp_path / "street.png"), *arguments, "--out", str(tmp_path)]) == 1
    assert "would be overwritten" in one_line_error(capsys)
    assert (tmp_path / "street.png").read_bytes() == frame.read_bytes()
    two = [str(tmp_path / "a.png"), str(tmp_path / "a_overlay.png")]
    assert main(["segment", *two, *arguments, "--out", str(tmp_path / "o")]) == 1
    assert "one name" in one_line_error(capsys)
    assert not (tmp_path / "o").exists()


def test_segment_by_the_best_checkpoint(finished, tmp_path):
    frame = next((finished / "data" / "test").iterdir())
    arguments = ["--classes", "car, tree", "--run", str(finished / "run"), "--checkpoint", "best"]
    assert main(["segment", str(frame), *arguments, "--out", str(tmp_path / "o")]) == 0
    assert len(list((tmp_path / "o").iterdir())) == 2


def test_segment_with_any_words(finished, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "street.png")
    out = tmp_path / "out"
    arguments = ["--classes", "car|lorry, tree, the open sky", "--run", str(finished / "run")]
    assert main(["segment", str(tmp_path / "street.png"), *arguments, "--out", str(out)]) == 0
    ids = np.array(Image.open(out / "street.png"))
    assert ids.shape == (70, 90)
    assert ids.max() < 3
    assert Image.open(out / "street_overlay.png").size[0] > 200


@pytest.mark.parametrize(
    ("classes", "told"),
    [("", "empty"), (" , ", "empty"), ("car, " + "road " * 90, "77 tokens"), ("car,car", "twice")],
)
def test_segment_refuses_bad_words(classes, told, finished, tmp_path, capsys):
    frame = next((finished / "data" / "test").iterdir())
    arguments = ["--classes", classes, "--run", str(finished / "run"), "--out", str(tmp_path / "o")]
    assert main(["segment", str(frame), *arguments]) == 1
    assert told in one_line_error(capsys)
    assert not (tmp_path / "o").exists()


def test_segment_refuses_what_is_no_picture_or_no_run(finished, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    words = ["--classes", "car", "--out", str(tmp_path / "o")]
    assert main(["segment", str(tmp_path / "a.png"), *words, "--run", str(finished / "run")]) == 1
    assert "a.png" in one_line_error(capsys)
    frame = str(next((finished / "data" / "test").iterdir()))
    assert main(["segment", frame, *words, "--run", str(tmp_path)]) == 1
    assert "holds no run" in one_line_error(capsys)


def remove_label(data):
    next((data / "trainannot").glob("*.png")).unlink()


def add_label(data):
    shutil.copy(next((data / "testannot").glob("*.png")), data / "testannot" / "extra.png")


def wrong_id(data):
    path = next((data / "testannot").glob("*.png"))
    label = np.array(Image.open(path))
    label[0, 0] = 12
    Image.fromarray(label).save(path)


def other_size(data):
    path = next((data / "train").glob("*.png"))
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(path)


def truncated(data):
    path = next((data / "test").glob("*.png"))
    path.write_bytes(path.read_bytes()[:100])


def empty(data):
    for path in (data / "val").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage", [remove_label, add_label, wrong_id, other_size, truncated, empty]
)
def test_bad_data_is_one_line_and_exit_1(damage, tiny_dataset, tmp_path, capsys):
    damage(tiny_dataset)
    out = tmp_path / "run"
    arguments = ["--set", "limit=0"]
    assert smoke("adapter-names", tiny_dataset, out, *arguments) == 1
    assert str(tiny_dataset) in one_line_error(capsys)
    assert not (out / "results.json").exists()
    assert main(["data", "verify", str(tiny_dataset)]) == 1
    assert "problem" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frozen-nmes"], "did you mean 'frozen-names'"),
        (["frozen-names", "--set", "epoch=1"], "did you mean 'epochs'"),
        (["frozen-names", "--set", "epochs"], "key=value"),
        (["frozen-names", "--profile", "quick"], "unknown profile"),
        (["frozen-names", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["frozen-names", "--text-bank", "absent.npz"], "absent.npz"),
        (["frozen-names", "--device", "tpu9"], "tpu9"),
        (["frozen-names", "--device", "meta"], "meta"),
        (["frozen-names", "--set", "text_set=absent.json"], "absent.json"),
    ],
)
def test_bad_arguments_of_a_run_are_one_line_and_exit_1(
    arguments, told, finished, tmp_path, capsys
):
    name, *rest = arguments
    assert smoke(name, finished / "data", tmp_path / "out", *rest) == 1
    assert told in one_line_error(capsys)


def test_missing_weights_of_the_thesis_are_one_line(finished, tmp_path, capsys):
    arguments = ["run", "frozen-names", "--data", str(finished / "data"), "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "laion_aesthetic_s13b_b82k_augreg" in one_line_error(capsys)


def test_data_verify_says_all_is_well(tiny_dataset, capsys):
    assert main(["data", "verify", str(tiny_dataset)]) == 0
    assert "6 train, 2 val, 3 test" in capsys.readouterr().out


def test_list_names_every_experiment(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(EXPERIMENTS)
    assert rows[0]["thesis"]["miou"] == 21.19


def test_report_of_finished_runs(finished, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(finished / "run"), "--out", str(page)]) == 0
    assert "63.16" in page.read_text()
    assert main(["report", str(tmp_path / "absent")]) == 1
    assert "absent" in one_line_error(capsys)


def test_wrong_usage_is_exit_2_and_help_0():
    with pytest.raises(SystemExit) as caught:
        main(["run", "frozen-names"])
    assert caught.value.code == 2
    for command in ([], ["demo"], ["run"], ["report"], ["score"], ["segment"], ["data", "verify"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0


def test_the_module_is_the_command():
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "camvid_lang", "list", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == len(EXPERIMENTS)
