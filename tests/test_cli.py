"""The command line as a user meets it: results, exit codes, one-line errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from conftest import write_manifest
from PIL import Image

import camvid_lang
from camvid_lang import cli
from camvid_lang.cli import main
from camvid_lang.data import camvid
from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.experiments import EXPERIMENTS, Experiment
from camvid_lang.report.thesis import THESIS_ROWS


def smoke(name, data, out, *more):
    return main(["run", name, "--data", str(data), "--out", str(out), "--profile", "smoke", *more])


@pytest.fixture
def error_of(capsys):
    """`error_of(code, *arguments)`: the one error line of a command that ends with exit code 1."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines)
        (error,) = [line for line in lines if line.startswith("error: ")]
        return error

    return run


@pytest.fixture
def frame(finished):
    return next((finished / "data" / "test").iterdir())


# run


def test_a_run_writes_results_and_a_page_and_is_read_back(finished, tmp_path, capsys):
    assert smoke("frozen-names", finished / "data", tmp_path) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["iou"]) == set(CLASSES)
    assert results["data"]["train_frames"] == 8
    assert results["command"].startswith("python -m camvid_lang run frozen-names --data")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"frozen-names: mIoU {results['miou']:.2f} %; {tmp_path / 'report.html'}"
    assert "frozen" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.part"))
    before = (tmp_path / "results.json").stat().st_mtime_ns
    assert smoke("frozen-names", finished / "data", tmp_path) == 0
    assert "finished before" in capsys.readouterr().out
    assert (tmp_path / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "complete", "split", "published"),
    [
        ("CamVid", True, "test", True),
        ("CamVid", False, "test", False),
        ("CamVid", True, "val", False),
        ("streets", True, "test", False),
    ],
)
def test_the_thesis_is_quoted_for_all_of_camvid_test_only(
    name, complete, split, published, monkeypatch, capsys
):
    import camvid_lang.report.html
    import camvid_lang.segmenter

    data = {"name": name, "complete": complete}
    results = {"miou": 61.234, "data": data, "settings": {"test_split": split}}
    results |= {"accuracy": 90.0, "mean_accuracy": 70.0, "iou": {"sky": 80.0, "pole": None}}
    monkeypatch.setattr(sys.modules["camvid_lang.run"], "run", lambda *a, **k: results)
    monkeypatch.setattr(camvid_lang.report.html, "report_runs", lambda *a, **k: "page.html")
    assert smoke("frozen-names", "data", "out", "--set", f"test_split={split}") == 0
    quoted = " (thesis: 63.16 %)" if published else ""
    *table, last = capsys.readouterr().out.splitlines()
    assert last == f"frozen-names: mIoU 61.23 %{quoted}; page.html"
    assert [line.split() for line in table[-2:]] == [
        ["IoU", "sky", "80.00", "%"],
        ["IoU", "pole", "-"],
    ]


@pytest.mark.parametrize("name", ["frozen-names", "swiftnet"])
def test_what_predict_writes_has_the_score_of_the_run(name, finished, tmp_path, capsys, error_of):
    run, data = finished / name, finished / "data"
    assert main(["predict", str(run), "--data", str(data), "--out", str(tmp_path / "ids")]) == 0
    assert len(list((tmp_path / "ids").iterdir())) == 3
    capsys.readouterr()
    assert main(["score", str(tmp_path / "ids"), str(data / "testannot"), "--json"]) == 0
    expected = json.loads((run / "results.json").read_text())
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in ("miou", "accuracy", "iou")} == {
        key: expected[key] for key in ("miou", "accuracy", "iou")
    }
    again = error_of("predict", run, "--data", data, "--out", tmp_path / "ids")
    assert "is not empty" in again


@pytest.mark.slow(10)
@pytest.mark.parametrize("name", sorted({*EXPERIMENTS} - {*THESIS_ROWS}))  # those: test_notebooks
def test_every_experiment_runs_on_the_smoke_profile(name, finished, tmp_path):
    assert smoke(name, finished / "data", tmp_path / name) == 0
    assert json.loads((tmp_path / name / "results.json").read_text())["experiment"] == name


def test_a_run_notes_how_its_data_differ_from_camvid(tmp_path, tiny_dataset, monkeypatch, capsys):
    write_manifest(tiny_dataset, tmp_path / "manifest")
    monkeypatch.setattr(camvid, "MANIFEST", tmp_path / "manifest")
    monkeypatch.setattr(camvid, "SIZE", (96, 128))
    assert smoke("bilinear-names", tiny_dataset, tmp_path / "whole") == 0
    assert "note: " not in capsys.readouterr().out
    for path in (tiny_dataset / "testannot").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray((ids + 1) % 12).save(path)
    image = tiny_dataset / "train" / "train_000.png"
    Image.open(image).rotate(180).save(image)
    assert smoke("bilinear-names", tiny_dataset, tmp_path / "whole") == 0  # of the same ids
    output = capsys.readouterr()
    start = f"note: {tiny_dataset}: not the CamVid release: "
    assert f"{start}3 labels shifted by one (void is 0; they are read as such), such" in output.out
    assert "1 images that differ, such as train/train_000" in output.out
    assert "warning" not in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frozen-nmes"], "'frozen-names'"),
        (["frozen-names", "--set", "epoch=1"], "'epochs'"),
        (["frozen-names", "--set", "epochs"], "--set epochs: write it as key=value"),
        (["frozen-names", "--profile", "fast"], "profile"),
        (["frozen-names", "--weights", "absent.safetensors"], "absent.safetensors"),
        (["frozen-names", "--text-bank", "absent.npz"], "absent.npz"),
        (["frozen-names", "--device", "tpu9"], "tpu9"),
        (["frozen-names", "--device", "meta"], "meta"),
        (["frozen-names", "--set", "text_set=absent.json"], "absent.json"),
        (["frozen-names", "--data", "absent"], "absent"),
    ],
)
def test_bad_arguments_of_a_run_are_one_line(arguments, message, finished, tmp_path, error_of):
    name, *rest = arguments
    common = ("--data", finished / "data", "--out", tmp_path / "out", "--profile", "smoke")
    assert message in error_of("run", name, *common, *rest)


# segment


def test_segment_any_words(finished, frame, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "street.jpg")
    out = tmp_path / "out"
    common = ("--run", finished / "frozen-names", "--out", out, "--checkpoint", "best")
    words = ("--classes", "car|lorry, tree, the open sky")
    arguments = ("segment", tmp_path / "street.jpg", finished / "data" / "val", *common, *words)
    assert main([str(argument) for argument in arguments]) == 0
    stems = ["street", *(path.stem for path in (finished / "data" / "val").iterdir())]
    ids = np.array(Image.open(out / "street.png"))
    assert ids.shape == (70, 90)
    assert ids.max() < 3
    overlay = Image.open(out / "street_overlay.png")
    assert (overlay.mode, overlay.size) == ("RGB", (90, 70))
    expected = {f"{stem}{end}.png" for stem in stems for end in ("", "_overlay")}
    assert {path.name for path in out.iterdir()} == expected
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("the open sky")
    assert len(lines) == 3 + len(stems)


def test_segment_writes_probabilities_and_legends_that_score_skips(finished, tmp_path, capsys):
    data, own = finished / "data", ", ".join(CLASSES)
    names = [path.stem for path in sorted((data / "test").iterdir())]
    options = ["--run", finished / "swiftnet", "--out", tmp_path, "--classes", own]
    options += ["--probabilities", "--legend", "--tile", "96"]
    assert main(list(map(str, ["segment", data / "test", *options]))) == 0
    output = capsys.readouterr()
    assert output.out.count("_overlay.png") == len(names)
    assert "/3 [" in output.err  # the progress bar
    assert main(["score", str(tmp_path), str(data / "testannot")]) == 0
    ids = np.array(Image.open(tmp_path / f"{names[0]}.png"))
    assert Image.open(tmp_path / f"{names[0]}_overlay.png").height > ids.shape[0]
    with np.load(tmp_path / f"{names[0]}_probabilities.npz") as file:
        assert list(file["classes"]) == list(CLASSES)
        found = file["probabilities"]
    assert found.dtype == np.float16
    assert (found.argmax(axis=0) == ids).mean() > 0.99


def test_segment_never_overwrites_an_image(finished, frame, tmp_path, error_of):
    for name in ("street.png", "a.png", "a_overlay.png", "B.png", "b.jpg"):
        (tmp_path / name).write_bytes(frame.read_bytes())
    (tmp_path / "empty").mkdir()
    end = ("--classes", "car, tree", "--run", finished / "frozen-names", "--out")
    assert "overwritten" in error_of("segment", tmp_path / "street.png", *end, tmp_path)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "street.png").symlink_to(tmp_path / "street.png")
    assert "overwritten" in error_of("segment", tmp_path / "street.png", *end, tmp_path / "link")
    for pair in (("a.png", "a_overlay.png"), ("B.png", "b.jpg")):
        images = [tmp_path / name for name in pair]
        assert "would both write" in error_of("segment", *images, *end, tmp_path / "o")
    assert "no image in" in error_of("segment", tmp_path / "empty", *end, tmp_path / "o")
    assert (tmp_path / "street.png").read_bytes() == frame.read_bytes()
    assert not (tmp_path / "o").exists()


def test_segment_takes_folders_patterns_and_files(finished, frame, tmp_path, capsys, error_of):
    photos = tmp_path / "photos"
    (photos / "deeper.png").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "c[1].png", "notes.txt", "._a.jpg", "deeper.png/d.png"):
        if name.endswith(("txt", "_a.jpg")):
            (photos / name).write_bytes(b"not an image")
        else:
            Image.open(frame).save(photos / name)
    end = ["--run", str(finished / "frozen-names"), "--classes", "car, tree", "--out"]

    def segmented(*arguments):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert main(["segment", *map(str, arguments), *end, str(out)]) == 0
        return sorted(p.stem for p in out.iterdir() if not p.stem.endswith("_overlay"))

    assert segmented(photos) == ["a", "b", "c[1]"]
    assert "note: skipped 2 that are not images (first: " in capsys.readouterr().out
    assert segmented(photos / "*.jpg") == ["a"]
    assert segmented(photos / "c[1].png") == ["c[1]"]  # a file, not a pattern
    assert segmented(photos / "**" / "d.*", photos / "[ab].*", photos / "a.jpg") == ["a", "b", "d"]
    for wrong in (photos / "*.tif", photos / "absent.png"):
        assert f"{wrong}: no such file" in error_of("segment", photos, wrong, *end, tmp_path / "o")
    assert "no image in" in error_of("segment", photos / "*.txt", *end, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_score_takes_what_segment_wrote(finished, tmp_path, capsys, error_of):
    data, run = finished / "data", finished / "frozen-names"
    expected = json.loads((run / "results.json").read_text())["miou"]

    def score(name, *classes):
        out = str(tmp_path / name)
        common = ["--run", str(run), "--out", out, "--device", "cpu"]
        assert main(["segment", str(data / "test"), *common, *classes]) == 0
        capsys.readouterr()
        assert main(["score", out, str(data / "testannot"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["miou"]

    assert score("own") == pytest.approx(expected)
    assert score("named", "--classes", ", ".join(CLASSES)) == pytest.approx(expected)
    assert score("turned", "--classes", ", ".join(CLASSES[::-1])) == pytest.approx(expected)
    arguments = ("--run", run, "--out", tmp_path / "other", "--classes", "car, lorry")
    assert main(list(map(str, ("segment", data / "test", *arguments)))) == 0
    error = error_of("score", tmp_path / "other", data / "testannot")
    assert "was segmented into 'lorry': leave out --classes" in error
    # What names its classes needs no options; the labels may.
    (tmp_path / "ones").mkdir()
    for path in (data / "testannot").iterdir():
        ids = np.array(Image.open(path)).astype(int)
        ones = np.where(ids == VOID, 0, ids + 1).astype(np.uint8)
        Image.fromarray(ones).save(tmp_path / "ones" / path.name)
    score_ones = ["score", str(tmp_path / "turned"), str(tmp_path / "ones"), "--json"]
    assert main([*score_ones, "--first-id", "1", "--void", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(expected)
    # More classes than CamVid has.
    frame, label = (next((data / folder).iterdir()) for folder in ("test", "testannot"))
    words = [*CLASSES, "a", "b", "c"]
    found = camvid_lang.load(run, device="cpu").segment(frame, words)
    found.save(tmp_path / "many" / "x")
    (tmp_path / "one").mkdir()
    shutil.copy(label, tmp_path / "one" / "x.png")
    error = error_of("score", tmp_path / "many", tmp_path / "one")
    assert "was segmented into 'a': leave out --classes" in error
    (tmp_path / "own" / "stray_overlay.png").write_bytes(b"")
    assert "stray_overlay.png" in error_of("score", tmp_path / "own", data / "testannot")


def test_segment_needs_a_run(frame, tmp_path, error_of):
    assert str(tmp_path) in error_of("segment", frame, "--run", tmp_path, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("option", "message"),
    [("--text-bank", "other.bin is not an .npz"), ("--weights", "other.bin: not a state dict")],
)
def test_segment_takes_no_other_files_than_those_of_the_run(
    option, message, finished, frame, tmp_path, error_of
):
    (tmp_path / "other.bin").write_bytes(b"other")
    command = ("segment", frame, "--run", finished / "frozen-names", "--out", tmp_path / "o")
    assert message in error_of(*command, option, tmp_path / "other.bin")


# The other commands


def test_list_names_every_experiment(capsys):
    assert main(["list", "--profile", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(EXPERIMENTS)
    assert rows[0]["thesis"]["miou"] == 21.19


def test_report_of_finished_runs(finished, tmp_path, capsys, error_of):
    page, file = tmp_path / "page.html", tmp_path / "runs.json"
    runs = [str(finished / name) for name in ("frozen-names", "swiftnet")]
    assert main(["report", *runs, "--out", str(page), "--json", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "63.16" in page.read_text()
    assert set(json.loads(file.read_text())) == {"frozen-names", "swiftnet"}
    assert "absent" in error_of("report", tmp_path / "absent")


def test_segment_finds_a_file_in_the_other_unicode_form(finished, tmp_path, capsys):
    composed, apart = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    Image.new("RGB", (40, 32)).save(tmp_path / apart)
    command = ["segment", str(tmp_path / composed), "--run", str(finished / "frozen-names")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    Image.new("RGB", (40, 32)).save(tmp_path / composed)
    both = ["segment", str(tmp_path / composed), str(tmp_path / apart), *command[2:]]
    assert main([*both, "--out", str(tmp_path / "out")]) == 1
    assert "would both write" in capsys.readouterr().err


def test_score_of_a_folder(finished, tmp_path, capsys, error_of):
    labels = finished / "data" / "testannot"
    assert main(["score", str(labels), str(labels)]) == 0
    assert capsys.readouterr().out.count("100.00 %") == 14
    assert main(["score", str(labels), str(labels), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == 100
    assert "absent" in error_of("score", tmp_path / "absent", labels)


def test_score_says_where_ids_look_shifted(finished, tmp_path, capsys):
    labels, shifted = finished / "data" / "testannot", tmp_path / "shifted"
    shifted.mkdir()
    for path in labels.iterdir():
        ids = (np.array(Image.open(path)) + 1) % 12
        Image.fromarray(ids).save(shifted / path.name)
    for folders, own in (((shifted, labels), "predictions"), ((labels, shifted), "labels")):
        command = ["score", *map(str, folders)]
        options = ["--first-id", "1", "--void", "0", "--ids-of", own]
        assert main(command) == 0
        output = capsys.readouterr()
        assert f"warning: ids look shifted by one: if those of the {own} count" in output.err
        assert " ".join(options) in output.err
        assert main([*command, *options]) == 0
        output = capsys.readouterr()
        assert (output.err, output.out.count("100.00 %")) == ("", 14)
    assert main(["score", str(shifted), str(shifted), "--first-id", "1", "--void", "0"]) == 0
    assert capsys.readouterr().err == ""
    for path in labels.iterdir():
        ids = np.array(Image.open(path)) % 11  # a model never predicts void
        one_low = np.where(ids == 0, 255, ids - 1).astype(np.uint8)
        Image.fromarray(one_low).save(shifted / path.name)
    assert main(["score", str(shifted), str(labels)]) == 0
    hint = "if those of the predictions are one too low, mIoU is 100.00 %"
    assert hint in capsys.readouterr().err


def test_score_says_where_ids_of_both_look_counted_from_one(finished, tmp_path, capsys):
    for path in (finished / "data" / "testannot").iterdir():
        ids = (np.array(Image.open(path)) + 1) % 12
        for folder, content in (("labels", ids), ("predictions", ids.clip(min=1))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / folder / path.name)
    command = ["score", str(tmp_path / "predictions"), str(tmp_path / "labels")]
    assert main(command) == 0
    assert "give --first-id 1 --void 0" in capsys.readouterr().err
    assert main([*command, "--first-id", "1", "--void", "0", "--json"]) == 0
    output = capsys.readouterr()
    assert (output.err, json.loads(output.out)["miou"]) == ("", 100)


def test_score_takes_colours_and_counts_unknown_ones(finished, tmp_path, capsys, error_of):
    labels = finished / "data" / "testannot"
    for path in labels.iterdir():
        colours = np.array(PALETTE, np.uint8)[np.array(Image.open(path))]
        Image.fromarray(colours).save(tmp_path / path.name)
    assert main(["score", str(tmp_path), str(labels)]) == 0
    assert capsys.readouterr().out.count("100.00 %") == 14
    colours[-1, -3:] = 1, 2, 3
    Image.fromarray(colours).save(tmp_path / path.name)
    assert "(1, 2, 3) at row 95, column 125" in error_of("score", tmp_path, labels)
    assert main(["score", str(tmp_path), str(labels), "--unknown-void"]) == 0
    assert "warning: 3 pixels of unknown ids or colours are" in capsys.readouterr().err
    assert "void 0 is the id of sky" in error_of("score", tmp_path, labels, "--void", "0")


def test_data_verify_and_download(tiny_dataset, tmp_path, capsys, error_of):
    assert main(["data", "verify", str(tiny_dataset)]) == 0
    assert "6 train, 2 val, 3 test" in capsys.readouterr().out
    assert "absent" in error_of("data", "download", tmp_path / "x", "--from", tmp_path / "absent")


@pytest.mark.camvid
@pytest.mark.slow(10)
def test_data_download_from_a_folder(camvid, tmp_path, capsys):
    assert main(["data", "download", str(tmp_path / "camvid"), "--from", str(camvid)]) == 0
    assert "367 train, 101 val, 233 test" in capsys.readouterr().out


# Any command


def test_help_version_and_wrong_usage(capsys):
    def exit_code(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return caught.value.code

    for name in ("", "data", *cli.COMMANDS):
        assert exit_code(*name.split(), "--help") == 0
    capsys.readouterr()
    assert exit_code("run", "--help") == 0
    settings = capsys.readouterr().out
    for key, field in Experiment.__dataclass_fields__.items():
        assert (f" {key}={field.default} " in settings.replace("\n", " \n")) == (
            key not in ("name", "model", "profile")
        )
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("camvid-lang 0.")
    for wrong in ([], ["run", "frozen-names"], ["bench"], ["segment", "x.png", "--run", "r"]):
        assert exit_code(*wrong) == 2


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [
        (lambda _: fail(KeyboardInterrupt()), 130, "interrupted\n"),
        (lambda _: fail(FileNotFoundError(2, "No such file", "x")), 1, "error: x: No such file\n"),
        (lambda _: fail(OSError("disk full")), 1, "error: disk full\n"),
        (
            lambda _: fail(MemoryError()),
            1,
            "error: out of memory: give smaller images or batches\n",
        ),
    ],
)
def test_exit_codes(action, code, message, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "list", (action, []))
    action.__doc__ = "A command."
    assert main(["list"]) == code
    assert capsys.readouterr().err == message


def test_sigterm_unwinds_with_143(monkeypatch):
    def action(_):
        """A command."""
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(cli.COMMANDS, "list", (action, []))
    with pytest.raises(SystemExit) as caught:
        main(["list"])
    assert caught.value.code == 143


def test_the_module_is_the_command():
    def run(*arguments, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "camvid_lang", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )

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
