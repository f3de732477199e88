"""What a command writes the next one reads, with the same number; runs do not meet."""

import contextlib
import errno
import fcntl
import json
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import camvid_lang as cl
from camvid_lang import results
from camvid_lang.cli import main
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.demo import CARRIED
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.report.html import report_runs
from camvid_lang.results import RunFolder
from camvid_lang.runs import load_run, run
from camvid_lang.training.checkpoint import Checkpoints
from camvid_lang.training.mirror import Mirror

SMOKE = ["--profile", "smoke", "--device", "cpu"]


def rewrite(path, function):
    Image.fromarray(function(np.array(Image.open(path))).astype(np.uint8)).save(path)


# Chains of commands


@pytest.mark.parametrize("card", [None, {"first_id": 1, "void": 0}, {"first_id": 20, "void": 7}])
def test_what_segment_writes_scores_as_evaluate(card, make_dataset, tmp_path, capsys):
    data, out = make_dataset(), tmp_path / "run"
    if card:
        for path in data.glob("*annot/*.png"):
            rewrite(path, lambda x: np.where(x == VOID, card["void"], x + card["first_id"]))
        (data / "dataset.json").write_text(json.dumps(card))
    (data / "labels").symlink_to("testannot")
    expected = run(configure("frozen-names", "smoke"), data, out, device="cpu")
    # Also next to the labels, whose dataset.json is not of the predictions.
    for place in (tmp_path / "segmented", data / "predictedannot"):
        other = ["--classes", ", ".join(reversed(CLASSES)), "--compare", "cosine"]
        for classes in ([], other):
            command = ["segment", str(data / "test"), "--run", str(out), "--out", str(place)]
            assert main([*command, *classes]) == 0
            capsys.readouterr()
            assert main(["score", str(place), str(data / "test" / ".." / "labels"), "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            # In another order cosines are computed, and not their argmax alone: rounding differs.
            assert found["iou"] == pytest.approx(expected["iou"], abs=0.1 if classes else 1e-9)
            assert found["miou"] == pytest.approx(expected["miou"], abs=0.1 if classes else 1e-9)


def test_folders_of_runs_name_the_runs_in_them(finished, tmp_path, capsys):
    with pytest.raises(InputError, match=r"choose one of .*/frozen-names, .*/swiftnet$"):
        cl.load(finished)
    image = sorted((finished / "data" / "test").iterdir())[0]
    assert main(["segment", str(image), "--run", str(finished), "--out", str(tmp_path)]) == 1
    assert "choose one of" in capsys.readouterr().err
    for name in ("frozen-names", "swiftnet", "bilinear-names"):
        with pytest.raises(InputError, match=f"{name} holds results, but no weights: run it again"):
            cl.load(CARRIED / name)


def test_a_bad_image_does_not_stop_the_others(finished, tmp_path, capsys):
    folder, out = shutil.copytree(finished / "data" / "test", tmp_path / "in"), tmp_path / "out"
    (folder / "a.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>")
    (folder / "z.png").write_bytes((folder / "test_000.png").read_bytes()[:500])
    Image.new("RGB", (1200, 100)).save(folder / "large.png")
    run_folder = str(finished / "frozen-names")
    assert main(["segment", str(folder), "--run", run_folder, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    for name in ("a.png", "page.jpg", "z.png"):
        assert f"{name}: cannot be read as an image" in printed.err
    assert printed.err.endswith("the other 4 are done\n")
    assert "1 image(s) reduced to 171 pixels" in printed.out
    assert {x.name for x in out.glob("*[!y].png")} >= {f"test_00{i}.png" for i in range(3)}


# Two of them


def test_a_mirror_belongs_to_one_run_at_a_time(tiny_dataset, tmp_path):
    one, other, drive = (tmp_path / x for x in ("one", "other", "drive"))

    def second(history):
        if len(history) == 1:
            with pytest.raises(InputError, match=f"folder {drive} is in use by another run"):
                run(configure("adapter-names", "smoke"), tiny_dataset, other, mirror=drive)

    entry = configure("frozen-names", "smoke", epochs=2)
    run(entry, tiny_dataset, one, mirror=drive, on_epoch=second)
    assert load_run(drive)[1] == load_run(one)[1] == entry


@pytest.mark.parametrize("finished_before", [True, False])
def test_starting_over_deletes_no_other_experiment(finished_before, tiny_dataset, tmp_path):
    entry, out, drive = configure("frozen-names", "smoke"), tmp_path / "out", tmp_path / "drive"
    run(entry, tiny_dataset, out, mirror=drive)
    if not finished_before:
        for folder in (out, drive):
            RunFolder(folder).results.unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("[!.]*.*") if path.is_file()}
    other = configure("full-names", "smoke")
    for folder, mirror in ((tmp_path / "new", drive), (out, None), (out, drive)):
        with pytest.raises(InputError, match="holds a run of frozen-names, which full-names does"):
            run(other, tiny_dataset, folder, mirror=mirror, fresh=True)
    typo = configure("frozen-names", "smoke", weights=str(tmp_path / "typo.safetensors"))
    with pytest.raises(InputError, match="typo"):  # before anything is deleted
        run(typo, tiny_dataset, out, mirror=drive, fresh=True)
    assert {path: path.read_bytes() for path in before} == before
    wide = configure("frozen-names", "smoke", crop=512)
    with pytest.raises(InputError, match="crop 512x512 does not fit"):
        run(wide, tiny_dataset, out, mirror=drive, fresh=True)
    assert {path: path.read_bytes() for path in before} == before
    again = configure("frozen-names", "smoke", epochs=2)
    run(again, tiny_dataset, out, mirror=drive, fresh=True)
    assert load_run(drive)[1] == again


def read_only(*_args, **_options):
    raise OSError(30, "Read-only file system")


def test_a_finished_run_on_a_disk_without_locks_or_writing_is_read(
    tiny_dataset, tmp_path, monkeypatch
):
    entry, out = configure("frozen-names", "smoke"), tmp_path / "out"

    def without_locks(*_args, **_options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", without_locks)
        expected = run(entry, tiny_dataset, out)
        with RunFolder(out).lock(), RunFolder(out).lock():  # nothing that a lost machine leaves
            pass
    monkeypatch.setattr(results.filelock, "FileLock", read_only)
    monkeypatch.setattr(results, "open", read_only, raising=False)
    assert run(entry, tiny_dataset, out) == expected
    with pytest.raises(InputError, match=r"cannot be written to \(Read-only"):
        run(entry, tiny_dataset, tmp_path / "new")


def save_on(folder, stop):
    saved, epoch = Checkpoints(folder), 2
    state = saved.newest()[1]
    while not stop.is_set():
        epoch += 1
        saved.save({**state, "epoch": epoch, "history": [{}] * epoch})


def test_a_run_can_be_loaded_while_it_trains(finished, tmp_path, capsys):
    out = shutil.copytree(finished / "frozen-names", tmp_path / "run")
    stop = threading.Event()
    writer = threading.Thread(target=save_on, args=(out / "checkpoints", stop))
    writer.start()
    with contextlib.ExitStack() as stack:
        stack.callback(writer.join)
        stack.callback(stop.set)
        epochs = [Checkpoints(out / "checkpoints").newest()[1]["epoch"] for _ in range(60)]
        assert cl.load(out, device="cpu").classes == list(CLASSES)
    assert epochs == sorted(epochs)
    assert "damaged" not in capsys.readouterr().out


def test_no_error_of_reading_advises_to_delete(finished, tmp_path):
    out = shutil.copytree(finished / "frozen-names", tmp_path / "run")
    saved = Checkpoints(out / "checkpoints").files()
    data = shutil.copytree(finished / "data", tmp_path / "data")
    entry, errors = configure("frozen-names", "smoke"), []
    for harmed in (saved, [out / "results.json"], [data / "dataset.json"]):
        contents = [path.read_bytes() if path.exists() else None for path in harmed]
        for path in harmed:
            path.write_bytes(b"{")
        for read in (
            lambda: cl.load(out),
            lambda: run(entry, data, out),
            lambda: report_runs([out]),
            lambda: Mirror(RunFolder(tmp_path / "m"), RunFolder(out)).restore({"name": "x"}),
        ):
            try:
                read()
            except InputError as error:
                errors.append(str(error))
        for path, content in zip(harmed, contents, strict=True):
            path.write_bytes(content) if content is not None else path.unlink()
    assert len(errors) >= 7
    assert not [text for text in errors if re.search("delete|fresh", text)]


# Numbers in wrong company


@pytest.mark.parametrize("profile", ["thesis", "quick"])
@pytest.mark.parametrize("name", ["best", "frozen-names", "full-names"])
def test_resnet_needs_a_text_bank_where_numbers_are_compared(name, profile, tiny_dataset, tmp_path):
    settings = {"encoder": "resnet18", "weights": "random", "limit": 2, "width": 64}
    entry = configure(name, profile, **settings, epochs=1, batch_size=2, crop=32)
    with pytest.raises(InputError, match=f"{name} has no text tower in profile {profile}"):
        run(entry, tiny_dataset, tmp_path / "out")
    assert not RunFolder(tmp_path / "out").is_finished


@pytest.mark.parametrize("split", ["train", "test", "trainval"])
def test_labels_that_are_all_void_are_refused(split, tiny_dataset, tmp_path):
    folders = ["train", "val"] if split == "trainval" else [split]
    for path in (x for folder in folders for x in (tiny_dataset / f"{folder}annot").iterdir()):
        rewrite(path, lambda x: np.full_like(x, VOID))
    entry = configure(
        "frozen-names", "smoke", train_split="train" if split == "train" else "trainval"
    )
    with pytest.raises(InputError, match=f"every pixel of {split} is void"):
        run(entry, tiny_dataset, tmp_path / "out")


@pytest.mark.parametrize("name", ["none of these", "None of These", "NONE OF THESE"])
def test_none_of_these_is_in_a_result_once(name, finished):
    segmenter = cl.load(finished / "frozen-names", device="cpu")
    with pytest.raises(InputError, match="is given twice"):
        segmenter.segment(np.zeros((64, 64, 3), np.uint8), ["car", "road", name], none_below=0.5)
