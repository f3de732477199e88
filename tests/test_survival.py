"""What was reported as saved is saved: kills, signals, full disks, vanished drives, two at once."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from kill_harness import Harness, check, equal

from camvid_lang.cli import main
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.experiments import configure
from camvid_lang.run import _lock, load_run, run
from camvid_lang.training import mirror
from camvid_lang.training.checkpoint import (
    KEYS,
    Checkpoints,
    atomic_write,
    epoch_of,
    load_checkpoint,
)
from camvid_lang.training.mirror import Mirror

STATE = {**{key: {} for key in KEYS}, "settings": {"name": "x"}, "epoch": 1}


def experiment(**changes):
    return configure("frozen-names", "smoke", **{"epochs": 2, "limit": 0, **changes})


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wait_for(condition):
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def in_process(function, *arguments):
    """A started process, forked from a server that has torch loaded, as the harness's are."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["camvid_lang.run"])
    process = context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def command(arguments, log):
    """The command line, with what it writes to stderr in a file."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(main(arguments))


def hold(folder, held):
    """Hold a run's folder until killed."""
    with _lock(folder):
        held.touch()
        time.sleep(600)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Checkpoints on the disk


def test_the_last_two_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path)
    for epoch, best in ((1, True), (2, True), (3, False), (4, False)):
        kept.save({**STATE, "epoch": epoch}, epoch, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best-0002.pt",
        "last-0003.pt",
        "last-0004.pt",
    ]
    assert load_checkpoint(kept.files()[-1])["epoch"] == 4
    assert kept.newest("best")[1]["epoch"] == 2


def test_files_are_ordered_by_number(tmp_path):
    for epoch in (9999, 10000, 10001):
        Checkpoints(tmp_path).save(STATE, epoch)
    assert [epoch_of(path) for path in Checkpoints(tmp_path).files()] == [10000, 10001]


@pytest.mark.parametrize("harm", ["bit", "half", "empty"])
def test_a_damaged_newest_falls_back_to_the_one_before(harm, tmp_path, capsys):
    kept = Checkpoints(tmp_path)
    state = {**STATE, "model": {"w": torch.rand(999)}}
    kept.save(state, 1)
    newest = kept.save(state, 2)
    if harm == "bit":
        flip(newest)
    else:
        os.truncate(newest, newest.stat().st_size // 2 if harm == "half" else 0)
    path, found = kept.newest()
    assert path.name == "last-0001.pt"
    assert equal(found, state)
    output = capsys.readouterr().out
    assert "last-0002.pt is damaged" in output
    assert "falling back" in output
    kept.save(state, 2)
    assert kept.newest()[0].name == "last-0002.pt"
    for path in kept.files():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"all last checkpoints in .* --fresh"):
        kept.newest()


def test_a_full_disk_leaves_what_was_saved(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save(STATE, 1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"last-0002.pt cannot be written .*No space left"):
        kept.save(STATE, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["last-0001.pt"]
    assert kept.newest()[1] == STATE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_up_inside_torch_save(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "truncate", lambda *_: None)  # not on a device
    (tmp_path / "last-0001.pt.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"last-0001.pt cannot be written .* free disk space"):
        Checkpoints(tmp_path).save({**STATE, "model": {"w": torch.rand(300_000)}}, 1)
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_that_fails_changes_nothing(tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(TypeError), atomic_write(tmp_path / "a") as file:
        file.writelines([b"after", "not bytes"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


# One run a folder, and a folder for one run


def test_a_folder_holds_one_run_and_a_crash_frees_it(tiny_dataset, tmp_path):
    entry = configure("bilinear-names", "smoke")
    other = in_process(hold, tmp_path / "out", tmp_path / "held")
    wait_for((tmp_path / "held").exists)
    with pytest.raises(InputError, match="in use by another run: wait for it"):
        run(entry, tiny_dataset, tmp_path / "out")
    other.kill()
    other.join()
    assert run(entry, tiny_dataset, tmp_path / "out")["experiment"] == "bilinear-names"


def test_a_folder_that_cannot_be_written_to(tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"cannot be written to .*: choose another folder"):
            run(experiment(), tiny_dataset, out)


def test_a_finished_run_is_read_and_another_refused(tiny_dataset, make_dataset, tmp_path, capsys):
    entry, out = experiment(epochs=1), tmp_path / "out"
    results = run(entry, tiny_dataset, out)
    assert run(entry, tiny_dataset, out) == results
    assert "finished before" in capsys.readouterr().out
    same_names = make_dataset("other", seed=1)
    shutil.copytree(tiny_dataset, tmp_path / "mixed")
    for folder in ("train", "trainannot"):
        shutil.copytree(same_names / folder, tmp_path / "mixed" / folder, dirs_exist_ok=True)
    changed_lr = experiment(epochs=1, lr=0.1)
    files = [path for path in out.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    for changed, data, message in (
        (changed_lr, tiny_dataset, r"lr was 0\.0004, now 0\.1\): undo the change, .*--fresh"),
        (experiment(epochs=1, text_set="descriptions"), tiny_dataset, "the prompts differ"),
        (entry, same_names, "the test frames differ"),
        (entry, tmp_path / "mixed", "the training frames differ"),
        (configure("adapter-names", "smoke"), tiny_dataset, "name was 'frozen-names'"),
    ):
        with pytest.raises(InputError, match=message):
            run(changed, data, out)
    assert [path.read_bytes() for path in files] == before
    assert run(changed_lr, tiny_dataset, out, fresh=True)["settings"]["lr"] == 0.1


def test_a_run_is_loaded_as_it_was_trained(tiny_dataset, tmp_path):
    run(experiment(), tiny_dataset, tmp_path)
    model, entry, text_encoder = load_run(tmp_path)
    assert not model.training
    assert entry == experiment()
    assert text_encoder().encode(["road"]).shape == (1, model.text.shape[1])
    saved = Checkpoints(tmp_path / "checkpoints").newest()[1]
    assert equal(dict(model.trained_state()), dict(saved["model"]))
    assert equal(model.text, saved["identity"]["text"])
    (tmp_path / "results.json").unlink()
    assert load_run(tmp_path, "best")[1] == entry
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path / "nothing")


# The mirror


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(mirror, "PAUSE", 0)


@pytest.fixture
def pair(tmp_path):
    """A run's folder with a checkpoint, a mirror that does not have it yet, and the mirror."""
    own = Checkpoints(tmp_path / "local" / "checkpoints")
    own.save({**STATE, "model": {"w": torch.rand(999)}}, 1, best=True)
    (tmp_path / "drive").mkdir()
    remote = tmp_path / "drive" / "run"
    return own, remote, Mirror(tmp_path / "local", remote)


def complete(own, remote):
    """Every checkpoint is there, undamaged, and nothing else."""
    theirs = remote / "checkpoints"
    assert sorted(os.listdir(theirs)) == sorted(os.listdir(own.folder))
    for path in theirs.iterdir():
        assert path.read_bytes() == (own.folder / path.name).read_bytes()


def test_the_mirror_follows(pair):
    own, remote, copies = pair
    assert copies.finish()
    complete(own, remote)
    for epoch in (2, 3, 4):
        own.save(STATE, epoch, best=epoch == 3)
        copies.update()
    assert copies.finish()
    complete(own, remote)
    elsewhere = Checkpoints(own.folder.parents[1] / "new machine" / "run" / "checkpoints")
    Mirror(elsewhere.folder.parent, remote).restore(STATE["settings"]["name"])
    assert [path.name for path in elsewhere.files()] == ["last-0004.pt"]
    assert [path.name for path in elsewhere.files("best")] == ["best-0003.pt"]


def test_a_file_that_was_being_deleted_is_not_mirrored(pair, monkeypatch):
    own, remote, copies = pair
    assert copies.finish()
    own.save(STATE, 2, best=True)
    (own.folder / "best-0001.pt").touch()  # emptied, and then the process was killed
    copied = []
    monkeypatch.setattr(mirror, "copy", lambda source, target: copied.append(source.name))
    Mirror(own.folder.parent, remote).finish()
    assert {*copied} == {"last-0001.pt", "last-0002.pt", "best-0002.pt"}


def test_a_mirror_that_vanishes_is_complete_once_it_is_back(pair, capsys):
    own, remote, copies = pair
    assert copies.finish()
    remote.parent.rename(remote.parent.with_name("unmounted"))
    own.save(STATE, 2)
    assert not copies.finish()
    assert not remote.parent.exists()  # nothing is written to where a drive was mounted
    output = capsys.readouterr().out
    assert output.count("not mounted") == 1  # not at every attempt
    assert "not complete" in output
    remote.parent.with_name("unmounted").rename(remote.parent)
    assert copies.finish()
    complete(own, remote)


def test_a_full_mirror_is_retried_and_leaves_no_parts(pair, monkeypatch, capsys):
    own, remote, copies = pair
    fsync, calls = os.fsync, []

    def sometimes(handle):
        calls.append(handle)
        return full() if len(calls) <= 2 else fsync(handle)

    monkeypatch.setattr(os, "fsync", sometimes)
    assert copies.finish()
    complete(own, remote)
    assert "No space left" in capsys.readouterr().out


def test_a_mirror_never_deletes_what_is_further_on(pair):
    own, remote, copies = pair
    assert copies.finish()
    further = Checkpoints(remote / "checkpoints").save(STATE, 9)
    own.save(STATE, 2)
    assert copies.finish()
    assert further.exists()
    copies.clear()  # as --fresh does
    assert not further.exists()


def test_deleted_files_do_not_fill_the_bin_of_a_drive(pair, monkeypatch):
    own, remote, copies = pair
    assert copies.finish()
    sizes = []
    unlink = Path.unlink

    def watched(path, *args, **options):
        if remote in path.parents:
            sizes.append(path.stat().st_size)
        unlink(path, *args, **options)

    monkeypatch.setattr(Path, "unlink", watched)
    for epoch in (2, 3):
        own.save(STATE, epoch, best=True)
        assert copies.finish()
    assert sizes
    assert set(sizes) == {0}


def test_a_mirror_that_hangs_does_not_hold_the_run(pair, monkeypatch, capsys):
    _, _, copies = pair
    released = threading.Event()
    monkeypatch.setattr(mirror, "PATIENCE", 0.1)
    monkeypatch.setattr(mirror, "copy", lambda *_: released.wait(60))
    assert not copies.finish()
    assert "is not complete" in capsys.readouterr().out
    released.set()


def test_a_new_machine_resumes_from_the_mirror(tiny_dataset, tmp_path, capsys):
    entry, out, drive = experiment(epochs=3), tmp_path / "out", tmp_path / "drive"
    whole = run(entry, tiny_dataset, tmp_path / "whole")
    copied = Checkpoints(drive / "checkpoints")

    class Lost(Exception):
        pass

    def lose(history):
        wait_for(lambda: f"last-{len(history):04d}.pt" in [p.name for p in copied.files()])
        if len(history) == 2:
            raise Lost

    with pytest.raises(Lost):
        run(entry, tiny_dataset, out, mirror=drive, on_epoch=lose)
    shutil.rmtree(out)
    flip(copied.files()[-1])  # and the drive has damaged the newest
    seen = []
    again = run(entry, tiny_dataset, out, mirror=drive, on_epoch=lambda h: seen.append(len(h)))
    assert seen == [2, 3]
    assert again["miou"] == whole["miou"]
    output = capsys.readouterr().out
    assert "last-0002.pt is damaged" in output
    assert "restored last-0001.pt" in output
    complete(Checkpoints(out / "checkpoints"), drive)  # the damaged copy was replaced
    shutil.rmtree(out)
    assert run(entry, tiny_dataset, out, mirror=drive)["miou"] == whole["miou"]  # read
    assert "finished before" in capsys.readouterr().out
    assert len(load_run(out)[1].settings()) > 10
    fresh = run(entry, tiny_dataset, out, mirror=drive, fresh=True, on_epoch=seen.append)
    assert len(seen) == 5
    assert fresh["miou"] == whole["miou"]
    complete(Checkpoints(out / "checkpoints"), drive)


@pytest.mark.parametrize("failures", [1, 99])
def test_a_drive_that_cannot_be_read_never_starts_a_run_over(
    failures, tiny_dataset, tmp_path, monkeypatch
):
    entry, out, drive = experiment(epochs=3), tmp_path / "out", tmp_path / "drive"

    def leave(history):
        if len(history) == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(entry, tiny_dataset, out, mirror=drive, on_epoch=leave)
    complete(Checkpoints(out / "checkpoints"), drive)  # after an interruption too
    there = sorted(path.name for path in drive.rglob("*.pt"))
    shutil.rmtree(out)
    original, failed, seen = mirror.copy, [], []

    def failing(source, target):
        if drive in source.parents and len(failed) < failures:
            failed.append(source)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        original(source, target)

    monkeypatch.setattr(mirror, "copy", failing)
    if failures > 1:
        with pytest.raises(InputError, match=r"mirror .* cannot be read .*mount the drive again"):
            run(entry, tiny_dataset, out, mirror=drive, on_epoch=seen.append)
        assert sorted(path.name for path in drive.rglob("*.pt")) == there
    else:
        run(entry, tiny_dataset, out, mirror=drive, on_epoch=seen.append)
        assert len(seen) == 1


def test_a_drive_that_goes_away_during_a_run_does_not_end_it(tiny_dataset, tmp_path, capsys):
    entry, out, drive = experiment(), tmp_path / "out", tmp_path / "drive"

    def unmount(history):
        if len(history) == 1:
            drive.rename(tmp_path / "unmounted")

    results = run(entry, tiny_dataset, out, mirror=drive / "run", on_epoch=unmount)
    assert len(results["history"]) == 2
    assert "is not complete" in capsys.readouterr().out
    assert not drive.exists()
    (tmp_path / "unmounted").rename(drive)
    run(entry, tiny_dataset, out, mirror=drive / "run")
    complete(Checkpoints(out / "checkpoints"), drive / "run")
    assert (drive / "run" / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_a_mirror_that_makes_no_sense_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the run's own folder"):
        Mirror(tmp_path / "run", tmp_path / "run")
    with pytest.raises(InputError, match="mount the drive"):
        Mirror(tmp_path / "run", tmp_path / "file" / "run")


# Signals and kills


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_one_line(number, code, tiny_dataset, tmp_path):
    out = tmp_path / "out"
    arguments = ["run", "frozen-names", "--profile", "smoke", "--data", str(tiny_dataset)]
    arguments += ["--set", "epochs=100000", "--out", str(out), "--device", "cpu"]
    process = in_process(command, arguments, tmp_path / "log")
    wait_for(lambda: Checkpoints(out / "checkpoints").files() or not process.is_alive())
    os.kill(process.pid, number)
    process.join(timeout=200)
    output = (tmp_path / "log").read_text()
    assert process.exitcode == code
    assert output.strip().endswith("stopped; run again to resume after the last complete epoch")
    assert "Traceback" not in output
    assert Checkpoints(out / "checkpoints").newest()


@pytest.mark.slow(40)
def test_killed_anywhere_nothing_is_lost(tmp_path, pytestconfig):
    kills = pytestconfig.getoption("--kills")
    harness = Harness(tmp_path, seed=0)
    harness.until(kills)
    assert harness.kills.total() >= kills
    assert harness.finished >= 1
    assert {"writing", "renaming", "mirroring"} <= harness.kills.keys()


def test_the_harness_would_notice(tmp_path):
    """A checkpoint that was reported as saved and is missing or damaged."""
    path = Checkpoints(tmp_path).save(STATE, 3)
    check(tmp_path, 3)
    with pytest.raises(AssertionError, match="epoch 4"):
        check(tmp_path, 4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        check(tmp_path, 3)
