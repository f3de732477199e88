"""The command line as a user meets it: results, exit codes, one-line errors."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_manifest
from PIL import Image
from torch import OutOfMemoryError

from camvid_lang import cli
from camvid_lang.cli import main
from camvid_lang.data import camvid
from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, SETTINGS
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.segmenter import load


@pytest.fixture
def done(capsys):
    """`done(*arguments)`: what a command prints, which ends with exit code `code`."""

    def run(*arguments, code=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return run


@pytest.fixture
def error_of(done):
    """`error_of(*arguments)`: the one error line of a command, which ends with exit code 1."""

    def run(*arguments):
        lines = done(*arguments, code=1).err.splitlines()
        (error,) = [line for line in lines if line.startswith("error: ")]
        return error

    return run


@pytest.fixture
def smoke(finished):
    """`smoke(name, out, *more)`: arguments of `run` on the tiny data set."""

    def arguments(name, out, *more):
        return "run", name, "--profile", "smoke", "--data", finished / "data", "--out", out, *more

    return arguments


@pytest.fixture
def frame(finished):
    return next((finished / "data" / "test").iterdir())


def test_a_run_writes_results_and_a_page_and_is_read_back(smoke, done, tmp_path):
    output = done(*smoke("frozen-names", tmp_path)).out
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["iou"]) == set(CLASSES)
    assert results["data"]["train_frames"] == 8
    assert results["command"].startswith("python -m camvid_lang run frozen-names --profile")
    assert output.endswith(f" {results['miou']:.2f} %; {tmp_path / 'report.html'}\n")
    assert "finished before" in done(*smoke("frozen-names", tmp_path)).out


@pytest.mark.parametrize("frames", ["CamVid test", "CamVid val", "streets test", "part test"])
def test_the_thesis_is_quoted_for_all_of_camvid_test_only(frames, smoke, done, monkeypatch):
    name, split = frames.split()
    data = {"name": name.replace("part", "CamVid"), "complete": name != "part"}
    results = {"miou": 61.234, "data": data, "settings": {"test_split": split}}
    results |= {"accuracy": 90.0, "mean_accuracy": 70.0, "iou": {"sky": 80.0, "pole": None}}
    monkeypatch.setattr("camvid_lang.runs.run", lambda *_, **__: results)
    monkeypatch.setattr("camvid_lang.report.html.report_runs", lambda *_, **__: "page.html")
    *_, sky, pole, last = done(*smoke("frozen-names", "out")).out.splitlines()
    assert last.startswith("frozen-names: mIoU 61.23 %")
    assert ("% (thesis: 63.16 %); page.html" in last) == (frames == "CamVid test")
    assert (sky.split()[1:], pole.split()[1:]) == (["sky", "80.00", "%"], ["pole", "-"])


@pytest.mark.slow(10)
@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {*THESIS_ROWS}))  # those: test_notebooks
def test_every_experiment_runs_on_the_smoke_profile(name, smoke, done, tmp_path):
    done(*smoke(name, tmp_path))
    assert json.loads((tmp_path / "results.json").read_text())["experiment"] == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("frozen-nmes", "'frozen-names'"),
        ("frozen-names --set epochs", "--set epochs: write it as key=value"),
        ("frozen-names --weights absent.safetensors", "absent.safetensors"),
        ("frozen-names --text-bank absent.npz", "absent.npz"),
        ("frozen-names --device tpu9", "tpu9"),
        ("frozen-names --set text_set=absent.json", "absent.json"),
        ("frozen-names --data absent", "absent"),
    ],
)
def test_bad_arguments_of_a_run_are_one_line(arguments, message, smoke, tmp_path, error_of):
    name, *rest = arguments.split()
    assert message in error_of(*smoke(name, tmp_path / "out", *rest))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run frozen-nmes --data data --out o", "unknown experiment 'frozen-nmes'"),
        ("run best --data data --out o --profile fast", "unknown profile 'fast'"),
        ("run best --data data --out o --set epoch=3", "did you mean 'epochs'?"),
        ("run best --data absent --out o", "absent: no such data set; download CamVid with"),
        ("run best --data date --out o", "date: no such data set; did you mean 'data'?"),
        ("segment absent.png --out o", "absent.png: no such file"),
        ("segment x.png --out . --run demo", "x.png would be overwritten"),
        ("segment x.png --out o --run dmeo", "dmeo: no such run; did you mean 'demo'?"),
        ("segment x.png --out o --run data --classes car,car", "class 'car' is given twice"),
        ("report absent", "absent: no such folder; give another"),
        ("score data absent", "absent: no such folder"),
        ("vocabulary absent --data data", "absent: no such run; give the folder of a run"),
        ("vocabulary data --data absent", "absent: no such data set"),
    ],
)
def test_wrong_arguments_are_reported_before_torch_is_imported(arguments, message, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "x.png").touch()
    code = "import sys; from camvid_lang.cli import main; main(); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, *arguments.split()]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (found.stdout, found.stderr.startswith("error: ")) == ("False\n", True)
    assert (message in found.stderr, found.stderr.count("\n")) == (True, 1)


def test_errors_name_flags(finished, smoke, frame, error_of):
    run, wrong = finished / "frozen-names", finished / "other.bin"
    wrong.write_bytes(b"other")
    for flag in ("--text-bank", "--weights"):
        error = error_of("segment", frame, "--run", run, "--out", "o", flag, wrong)
        assert error.endswith(f"restore the file, or give its path ({flag} PATH)")
    error = error_of(*smoke("frozen-names", run, "--set", "seed=1"))
    assert error.startswith(f"error: {run} holds another run (seed was 0, now 1): ")
    assert error.endswith("or start over with --fresh")


@pytest.mark.parametrize("name", ["frozen-names", "swiftnet"])
def test_what_segment_writes_of_the_test_frames_has_the_score_of_the_run(
    name, finished, done, error_of, tmp_path
):
    run, data = finished / name, finished / "data"
    expected = json.loads((run / "results.json").read_text())

    def segment(out, *more):
        return done("segment", data / "test", "--run", run, "--out", tmp_path / out, *more)

    def score(out):
        return json.loads(done("score", tmp_path / out, data / "testannot", "--json").out)

    segment("out")
    assert score("out")["iou"] == pytest.approx(expected["iou"], abs=0.05)
    (tmp_path / "out" / "stray_overlay.png").write_bytes(b"")
    assert "stray_overlay.png" in error_of("score", tmp_path / "out", data / "testannot")
    # Classes in words have the ids of their order, which the files name.
    order = CLASSES if name == "swiftnet" else CLASSES[::-1]
    more = ["--classes", ", ".join(order), "--probabilities", "--legend", "--tile", "96"]
    assert "/3 [" in segment("named", *more).err  # the progress bar
    assert score("named")["miou"] == pytest.approx(expected["miou"], abs=0.5)
    stem = tmp_path / "named" / "test_000"
    ids = np.array(Image.open(f"{stem}.png"))
    assert Image.open(f"{stem}_overlay.png").height > ids.shape[0]
    with np.load(f"{stem}_probabilities.npz") as file:
        assert list(file["classes"]) == list(order)
        found = file["probabilities"]
    best = np.take_along_axis(found, ids[None].astype(int), axis=0)[0]
    assert (found.dtype, (found.max(axis=0) - best).max() < 0.02) == (np.float16, True)
    if name == "frozen-names":
        words = ", ".join([*CLASSES, "lorry"])
        output = segment("other", "--classes", words, "--none-below", "0.9")
        legend = [line.split(maxsplit=2)[2] for line in output.out.splitlines()[:13]]
        assert legend == [*CLASSES, "lorry", "none of these"]
        error = error_of("score", tmp_path / "other", data / "testannot")
        assert "was segmented into 'lorry'" in error


def test_score_warns_of_shifted_ids_until_a_card_says_how_they_count(scenes, tmp_path, done):
    for path in (scenes / "testannot").iterdir():
        shifted = (np.array(Image.open(path)) + 1) % 12
        Image.fromarray(shifted).save(tmp_path / path.name)
    warned = done("score", tmp_path, scenes / "testannot")
    assert warned.err.startswith(f"warning: {tmp_path}: ids look shifted by one: if they count ")
    (tmp_path / "dataset.json").write_text('{"first_id": 1, "void": 0}')
    right = done("score", tmp_path, scenes / "testannot")
    assert (right.err, right.out.count("100.00 %")) == ("", 14)


def test_segment_never_overwrites_an_image(finished, frame, tmp_path, error_of):
    for name in ("street.png", "a.png", "a_overlay.png", "B.png", "b.jpg"):
        (tmp_path / name).write_bytes(frame.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path)
    run = ("--run", finished / "frozen-names", "--out")
    for out in (tmp_path, tmp_path / "link"):
        assert "overwritten" in error_of("segment", tmp_path / "street.png", *run, out)
    for pair in (("a.png", "a_overlay.png"), ("B.png", "b.jpg")):
        images = [tmp_path / name for name in pair]
        assert "would both write" in error_of("segment", *images, *run, tmp_path / "o")
    assert (tmp_path / "street.png").read_bytes() == frame.read_bytes()
    assert not (tmp_path / "o").exists()


def test_segment_takes_folders_patterns_and_files(finished, frame, tmp_path, done, error_of):
    photos, run = tmp_path / "photos", ("--run", finished / "frozen-names", "--out")
    (photos / "deeper.png").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "c[1].png", "deeper.png/d.png"):
        Image.open(frame).save(photos / name)
    for name in ("notes.txt", "._a.jpg"):
        (photos / name).write_bytes(b"not an image")
    several = photos / "**" / "d.*", photos / "[ab].*", photos / "a.jpg"
    asked = {"a b c[1]": [photos], "c[1]": [photos / "c[1].png"], "a b d": several}
    for names, images in asked.items():
        out = tmp_path / names
        printed = done("segment", *images, *run, out).out
        assert {path.stem for path in out.iterdir()} == {
            f"{name}{end}" for name in names.split() for end in ("", "_overlay")
        }
        assert ("note: skipped 2 that are not images (first: " in printed) == (images == [photos])
    for wrong in (photos / "*.tif", photos / "absent.png"):
        assert f"{wrong}: no such file" in error_of("segment", photos, wrong, *run, tmp_path / "o")
    assert "no image in" in error_of("segment", photos / "*.txt", *run, tmp_path / "o")
    assert str(photos) in error_of("segment", frame, "--run", photos, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_segment_warns_once_of_words_and_of_the_model_of_drawn_scenes(
    finished, scenes, frame, tmp_path, done
):
    run, bank = finished / "frozen-names", tmp_path / "bank.npz"
    text = load(run, "cpu").model.text.numpy()
    np.savez(bank, phrases=[*CLASSES, "xylophone"], embeddings=[*text, -text.mean(axis=0)])
    asked = "--classes", "road, xylophone", "--out", tmp_path / "o"
    warned = done("segment", frame.parent, "--run", run, "--text-bank", bank, *asked).err
    assert warned.count("warning: ") == 1
    assert "warning: xylophone: not similar to any class of the run (cosine -0." in warned
    images = {"photographs": frame.parent, "drawn scenes": scenes / "test"}
    for kind, folder in images.items():
        warned = done("segment", folder, "--run", "demo", "--out", tmp_path / kind).err
        assert warned.count("warning: the model demo knows") == (kind == "photographs")


def test_list_names_every_experiment(done):
    out = done("list", "--profile", "cpu").out
    assert all(name in out for name in ("21.19", *EXPERIMENTS))
    rows = json.loads(done("list", "--json").out)
    assert rows == [entry.settings() for entry in EXPERIMENTS.values()]


def test_report_of_finished_runs(finished, tmp_path, done, error_of):
    page, file = tmp_path / "page.html", tmp_path / "runs.json"
    runs = [finished / name for name in ("frozen-names", "swiftnet")]
    assert done("report", *runs, "--out", page, "--json", file).out.strip() == str(page)
    assert "63.16" in page.read_text()
    assert set(json.loads(file.read_text())) == {"frozen-names", "swiftnet"}
    assert "absent" in error_of("report", tmp_path / "absent")


def test_data_verify_and_download(tiny_dataset, tmp_path, monkeypatch, done, error_of):
    assert "6 train, 2 val, 3 test" in done("data", "verify", tiny_dataset).out
    write_manifest(tiny_dataset, tmp_path / "manifest")
    monkeypatch.setattr(camvid, "MANIFEST", tmp_path / "manifest")
    copy = ("data", "download", tmp_path / "copy", "--from", tiny_dataset)
    assert "6 train, 2 val, 3 test" in done(*copy).out
    next((tiny_dataset / "train").iterdir()).unlink()
    assert "fix what is listed above" in error_of("data", "verify", tiny_dataset)
    assert "absent" in error_of("data", "download", tmp_path / "x", "--from", tmp_path / "absent")


def test_help_version_and_wrong_usage(capsys):
    def exit_code(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return caught.value.code

    for name in ("", "data", *cli.COMMANDS):
        assert exit_code(*name.split(), "--help") == 0
    assert exit_code("run", "--help") == 0
    settings = capsys.readouterr().out
    assert all(f"  {key}={field.default} " in settings for key, field in SETTINGS.items())
    assert exit_code("segment", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "camvid (default), of streets, or demo, of drawn scenes" in printed
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("camvid-lang 0.")
    for wrong in ("", "run frozen-names", "bench", "predict r", "segment x.png --run demo"):
        assert exit_code(*wrong.split()) == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'"),
        (MemoryError(), 1, "error: out of memory: give smaller images or batches"),
        (OutOfMemoryError(), 1, "error: out of memory: give smaller images or batches"),
        (InputError("two\nlines"), 1, "error: two lines"),
    ],
)
def test_exit_codes(error, code, message, monkeypatch, done):
    def action(_):
        """A command."""
        raise error

    monkeypatch.setitem(cli.COMMANDS, "list", (action, []))
    assert done("list", code=code).err == f"{message}\n"
    with pytest.raises(SystemExit) as caught:  # unwinds
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143


def test_the_module_is_the_command():
    def run(*arguments, **environment):
        command = [sys.executable, "-m", "camvid_lang", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)

    out, error = run("list", "--json", PYTHONWARNINGS="error").communicate()
    assert len(json.loads(out)) == len(EXPERIMENTS), error
    # A terminal that lacks the letters of a path.
    process = run("report", "fehlt-ä-路", PYTHONIOENCODING="ascii")
    assert rb"fehlt-\xe4-\u8def" in process.communicate()[1]
    assert process.returncode == 1
    # A reader that closes the pipe at once, as `head -0`.
    process = run("list", "--json")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
