"""What was reported as saved is saved: kills, signals, full disks, vanished drives, two at once."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_harness import Faults, walk
from kill_harness import Harness, check, equal

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import ASSETS, TINY
from camvid_lang.results import RunFolder
from camvid_lang.runs import load_run, run
from camvid_lang.training import mirror
from camvid_lang.training.checkpoint import KEYS, Checkpoints
from camvid_lang.training.mirror import Mirror


def experiment(**changes):
    return configure("frozen-names", "smoke", **{"epochs": 2, "limit": 0, **changes})


STATE = {**{key: {} for key in KEYS}, "settings": experiment().settings()}


def state(epoch):
    return {**STATE, "epoch": epoch, "model": {"w": torch.full((999,), float(epoch))}}


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wait_for(condition):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def names(checkpoints):
    return [path.name for path in checkpoints.files()]


def start(*code, **options):
    """A started Python process."""
    return subprocess.Popen([sys.executable, *code], stderr=subprocess.PIPE, text=True, **options)


# Checkpoints on the disk


def test_the_last_two_are_kept_by_number(tmp_path):
    kept = Checkpoints(tmp_path)
    assert (kept.epoch, kept.newest()) == (-1, None)
    for epoch in (9998, 9999, 10000, 10001):
        kept.save(state(epoch))
    assert names(kept) == sorted(os.listdir(tmp_path)) == ["last-10000.pt", "last-10001.pt"]
    (tmp_path / "last-0001.pt").touch()  # emptied, and then the process was killed
    assert names(kept)[-2:] == ["last-10000.pt", "last-10001.pt"]
    assert (kept.epoch, kept.newest()[1]["epoch"]) == (10001, 10001)


@pytest.mark.parametrize("harm", ["bit", "half", "empty"])
def test_a_damaged_newest_falls_back_to_the_one_before(harm, tmp_path, capsys):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    newest = kept.save(state(2))
    if harm == "bit":
        flip(newest)
    else:
        os.truncate(newest, newest.stat().st_size // 2 if harm == "half" else 0)
    assert equal(kept.newest()[1], state(1))
    assert re.search("last-0002.pt is damaged .* falling back", capsys.readouterr().out)
    kept.save(state(2))
    assert equal(kept.newest()[1], state(2))
    for path in kept.files():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint is left: .*last-0002.pt .*last-0001.pt"):
        kept.newest()


@pytest.mark.parametrize("function", ["fsync", "truncate"])
def test_a_full_disk_leaves_what_was_saved(function, tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    if function == "truncate":  # which a device refuses; torch.save fails
        (tmp_path / "last-0002.pt.part").symlink_to("/dev/full")
    monkeypatch.setattr(os, function, full if function == "fsync" else print)
    with pytest.raises(InputError, match=r"last-0002.pt cannot be written .* free disk space"):
        kept.save({**state(2), "model": {"w": torch.rand(300_000)}})
    assert os.listdir(tmp_path) == ["last-0001.pt"]
    assert equal(kept.newest()[1], state(1))


# One run a folder, and a folder for one run


def test_a_folder_holds_one_run_and_a_crash_frees_it(tiny_dataset, tmp_path):
    entry, out = configure("bilinear-names", "smoke"), tmp_path / "out"
    code = "import sys, camvid_lang.results as r; held = r.RunFolder(sys.argv[1]).lock(); input()"
    other = start("-c", code, str(out), stdin=subprocess.PIPE)
    wait_for((out / ".lock").exists)
    (tmp_path / "file").write_text("")
    for folder, drive, message in (
        (out, None, "in use by another run: wait for it"),
        (tmp_path / "file", None, "cannot be written to .*: choose another"),
        (tmp_path / "file" / "run", None, "cannot be written to .*: choose another"),
        (tmp_path / "new", tmp_path / "new", "is the folder of the run"),
        (tmp_path / "new", tmp_path / "file" / "run", "mount the drive"),
    ):
        with pytest.raises(InputError, match=message):
            run(entry, tiny_dataset, folder, mirror=drive)
    other.kill()
    other.communicate()
    assert run(entry, tiny_dataset, out)["experiment"] == "bilinear-names"


def test_a_finished_run_is_read_and_another_refused(make_dataset, tmp_path, capsys):
    others = {name: f"a {name}" for name in CLASSES}
    for folder, words in (("one", CLASSES), ("moved", CLASSES), ("new", others)):
        (tmp_path / folder).mkdir()
        shutil.copy(ASSETS / f"{TINY}.safetensors", tmp_path / folder / "w.safetensors")
        (tmp_path / folder / "set.json").write_text(json.dumps(words))
    bank = {"phrases": CLASSES, "embeddings": np.random.default_rng(0).normal(size=(11, 64))}
    np.savez(tmp_path / "bank.npz", **bank)

    def entry(folder="one", **changes):
        files = {"weights": f"{tmp_path}/{folder}/w.safetensors"}
        files |= {"text_set": f"{tmp_path}/{folder}/set.json", "encoder": TINY}
        return experiment(**{"epochs": 1, "text_bank": f"{tmp_path}/bank.npz", **files, **changes})

    data, other, out = make_dataset(), make_dataset("other", seed=1), tmp_path / "out"
    results = run(entry(), data, out)
    assert run(entry(), data, out) == run(entry("moved"), data, out) == results
    assert capsys.readouterr().out.count("finished before") == 2
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for changed, folder, message in (
        (entry(lr=0.1), data, r"lr was 0\.0004, now 0\.1\): undo the change, .*fresh=True"),
        (entry(weights=""), data, r"weights was '.*w\.safetensors', now ''"),
        (entry(text_bank=""), data, r"text_bank was '.*bank\.npz', now ''"),
        (entry("new"), data, "the prompts differ"),
        (entry(), other, "the test frames differ .*the training frames differ"),
        (configure("adapter-names", "smoke"), data, "name was 'frozen-names', now 'adapter"),
    ):
        with pytest.raises(InputError, match=message):
            run(changed, folder, out)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert run(entry(lr=0.1), data, out, fresh=True)["settings"]["lr"] == 0.1


# The mirror


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A run's folder with a checkpoint, a mirror that does not have it yet, and the mirror."""
    monkeypatch.setattr(mirror, "PAUSES", (0, 0, 0))
    local, remote = tmp_path / "local", tmp_path / "drive" / "run"
    saved = Checkpoints(local / "checkpoints")
    saved.save(state(1))
    remote.parent.mkdir()
    return saved, remote, mirrored(local, remote)


def mirrored(local, remote):
    return Mirror(RunFolder(local), RunFolder(remote))


def complete(saved, remote):
    """Every checkpoint is there, undamaged, and nothing else."""
    copies = {path.name: path.read_bytes() for path in (remote / "checkpoints").iterdir()}
    assert copies == {path.name: path.read_bytes() for path in saved.folder.iterdir()}


def test_the_mirror_follows_and_is_restored(pair, tmp_path, monkeypatch):
    """What is deleted is emptied first: a file that is only unlinked fills Google Drive's bin."""
    saved, remote, copies = pair
    sizes, unlink = [], Path.unlink

    def watched(path, *args, **options):
        if remote in path.parents:
            sizes.append(path.stat().st_size)
        unlink(path, *args, **options)

    monkeypatch.setattr(Path, "unlink", watched)
    assert copies.finish()
    complete(saved, remote)
    for epoch in (2, 3, 4):
        saved.save(state(epoch))
        copies.update()
    assert copies.finish()
    complete(saved, remote)
    elsewhere = tmp_path / "new machine" / "run"
    with pytest.raises(
        InputError, match=r"another run \(name was 'frozen-names', now 'swiftnet'\)"
    ):
        mirrored(elsewhere, remote).restore({"name": "swiftnet"})
    copy = Checkpoints(elsewhere / "checkpoints")
    assert names(copy) == []
    for _ in range(2):  # also in place of a damaged file
        mirrored(elsewhere, remote).restore(STATE["settings"])
        assert names(copy) == ["last-0004.pt"]
        assert equal(copy.newest()[1], saved.newest()[1])
        flip(copy.files()[0])
    kept = Checkpoints(remote / "checkpoints")
    further = kept.save(state(9))
    assert copies.finish()
    assert names(kept) == ["last-0004.pt", "last-0009.pt"]
    copies.remote.clear()  # as fresh=True does
    assert not further.exists()
    assert set(sizes) == {0}


def test_a_copy_that_takes_longer_than_two_epochs_is_whole(pair, monkeypatch):
    """The checkpoint that is copied is deleted meanwhile and stays readable for it."""
    saved, remote, copies = pair
    saved = Checkpoints(saved.folder, on_saved=copies.update)
    begun, go_on, read = threading.Event(), threading.Event(), shutil.copyfileobj

    def slowly(source, target, _length):
        target.write(source.read(100))
        begun.set()
        go_on.wait(60)
        read(source, target)

    monkeypatch.setattr(mirror.shutil, "copyfileobj", slowly)
    copies.update()
    begun.wait(60)
    for epoch in (2, 3, 4):
        saved.save(state(epoch))
    assert names(saved) == ["last-0003.pt", "last-0004.pt"]
    go_on.set()
    kept, deadline = Checkpoints(remote / "checkpoints"), time.monotonic() + 60
    while not kept.files() and time.monotonic() < deadline:
        time.sleep(0.01)
    path, found = kept.newest()
    assert equal(found, state(int(path.stem[5:])))
    assert copies.finish()
    complete(saved, remote)


def test_a_mirror_that_is_full_or_hangs_does_not_hold_the_run(pair, monkeypatch, capsys):
    saved, remote, copies = pair
    fsync, calls, released = os.fsync, [], threading.Event()

    def sometimes(handle):
        calls.append(handle)
        return full() if len(calls) <= 2 else fsync(handle)

    monkeypatch.setattr(os, "fsync", sometimes)
    assert copies.finish()  # it is tried again
    complete(saved, remote)
    assert "No space left" in capsys.readouterr().out
    monkeypatch.setattr(mirror, "PATIENCE", 0.1)
    monkeypatch.setattr(mirror, "copy", lambda *_: released.wait(60))
    saved.save(state(2))
    assert not copies.finish()
    assert "is not complete" in capsys.readouterr().out
    released.set()


def test_a_new_machine_resumes_from_the_mirror(tiny_dataset, tmp_path, capsys):
    entry, out, drive = experiment(epochs=3), tmp_path / "out", tmp_path / "drive"
    whole = run(entry, tiny_dataset, tmp_path / "whole")
    (saved, copied), seen = (Checkpoints(x / "checkpoints") for x in (out, drive)), []

    def again(**options):
        return run(entry, tiny_dataset, out, mirror=drive, **options)

    def lose(history):
        wait_for(lambda: f"last-{len(history):04d}.pt" in names(copied))
        if len(history) == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        again(on_epoch=lose)
    complete(saved, drive)  # after an interruption too
    shutil.rmtree(out)
    flip(copied.files()[-1])  # and the drive has damaged the newest
    assert again(on_epoch=lambda h: seen.append(len(h)))["miou"] == whole["miou"]
    assert seen == [2, 3]
    output = capsys.readouterr().out
    assert "last-0002.pt is damaged" in output
    assert "restored last-0001.pt" in output
    complete(saved, drive)  # the damaged copy was replaced
    shutil.rmtree(out)
    assert again()["miou"] == whole["miou"]
    assert "finished before" in capsys.readouterr().out
    assert load_run(out)[1] == entry
    again(fresh=True, on_epoch=seen.append)
    assert len(seen) == 5
    complete(saved, drive)


def test_a_drive_that_cannot_be_read_never_starts_a_run_over(
    pair, tiny_dataset, tmp_path, monkeypatch
):
    _, remote, copies = pair
    assert copies.finish()
    original, calls, new = mirror.copy, [], tmp_path / "new"

    def failing(source, target):
        calls.append(source)
        return full() if len(calls) <= 4 else original(source, target)

    monkeypatch.setattr(mirror, "copy", failing)
    before = sorted(remote.rglob("[!.]*"))
    with pytest.raises(InputError, match=r"mirror .* cannot be read.*mount the drive again"):
        run(experiment(), tiny_dataset, new, mirror=remote)  # tries three times
    assert sorted(remote.rglob("[!.]*")) == before
    mirrored(new, remote).restore(experiment().settings())
    assert Checkpoints(new / "checkpoints").epoch == 1


def test_a_drive_that_goes_away_does_not_end_a_run(tiny_dataset, tmp_path, monkeypatch, capsys):
    entry, out, drive = experiment(), tmp_path / "out", tmp_path / "drive"
    monkeypatch.setattr(mirror, "PAUSES", (0, 0, 0))
    with pytest.raises(InputError, match=f"mount the drive, or create {drive}"):
        run(entry, tiny_dataset, out, mirror=drive / "run")
    drive.mkdir()

    def unmount(history):
        if len(history) == 1:
            drive.rename(tmp_path / "unmounted")

    run(entry, tiny_dataset, out, mirror=drive / "run", on_epoch=unmount)
    assert capsys.readouterr().out.count("could not be updated") == 1  # not at every attempt
    assert not drive.exists()  # nothing is written to where a drive was mounted
    (tmp_path / "unmounted").rename(drive)
    run(entry, tiny_dataset, out, mirror=drive / "run")
    assert (drive / "run" / "results.json").read_bytes() == (out / "results.json").read_bytes()


# Signals and kills


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_one_line(number, tiny_dataset, tmp_path):
    arguments = ["run", "frozen-names", "--profile", "smoke", "--data", str(tiny_dataset)]
    arguments += ["--set", "epochs=100000", "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = start("-m", "camvid_lang", *arguments)
    saved = Checkpoints(tmp_path / "out" / "checkpoints")
    wait_for(lambda: saved.files() or process.poll() is not None)
    process.send_signal(number)
    output = process.communicate(timeout=200)[1]
    assert process.returncode == 128 + number
    assert output.strip().endswith("stopped; run again to resume after the last complete epoch")
    assert "Traceback" not in output
    assert saved.newest()


@pytest.mark.slow(40)
def test_killed_anywhere_nothing_is_lost(make_dataset, tmp_path, pytestconfig):
    kills = pytestconfig.getoption("--kills")
    harness = Harness(tmp_path, make_dataset(test=2, size=(64, 96)), seed=0)
    harness.until(kills)
    assert harness.finished >= 1
    assert {"writing", "renaming", "mirroring"} <= harness.kills.keys()


def test_the_harness_would_notice(tmp_path):
    """A checkpoint that was reported as saved and is missing or damaged."""
    path = Checkpoints(tmp_path).save(state(3))
    with pytest.raises(AssertionError, match="epoch 4"):
        check(tmp_path, 4)
    flip(path)
    with pytest.raises(InputError, match="damaged"):
        check(tmp_path, 3)


@pytest.mark.slow(20)
@pytest.mark.timeout(7200)
def test_a_fault_in_any_file_operation_changes_nothing(
    make_dataset, tmp_path, monkeypatch, pytestconfig
):
    folders = tmp_path / "out", tmp_path / "drive"
    entry = experiment(epochs=3, crop=32)
    data = make_dataset(train=2, test=2, size=(32, 32))
    step = pytestconfig.getoption("--faults")
    problems, hits = walk(Faults(monkeypatch, *folders), step, entry, data, *folders)
    print(hits)
    assert problems == []
    assert hits.total() > 300 / step
