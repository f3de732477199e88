"""What was said to be saved is saved: kills, signals, full disks, vanished drives, two at once."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_harness import Harness, equal

from camvid_lang.data.camvid import load_camvid
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.run import build_model, run
from camvid_lang.training import checkpoint, mirror
from camvid_lang.training import checkpoint as files
from camvid_lang.training import loop as learner
from camvid_lang.training import loop as training
from camvid_lang.training.checkpoint import (
    Checkpoints,
    folder_lock,
    load_checkpoint,
    random_states,
    save_checkpoint,
    set_random_states,
)
from camvid_lang.training.loop import EpochMetrics, Interrupted, train
from camvid_lang.training.mirror import Mirror

CPU = torch.device("cpu")
STATE = {"settings": {"name": "x"}, "model": {}, "epoch": 1}


def experiment(**changes):
    return configure("frozen-names", "smoke", **{"epochs": 2, "limit": 0, "batch_size": 2, **changes})


def learn(entry, data, folder):
    model = build_model(entry)
    train(model, load_camvid(data, "trainval"), entry, Checkpoints(folder), CPU)
    return model.state_dict()


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Exact resume


def test_stopped_at_any_step_and_resumed_equals_undisturbed(tiny_dataset, tmp_path, monkeypatch):
    entry = experiment()
    whole = learn(entry, tiny_dataset, tmp_path / "whole")
    add = EpochMetrics.add
    for step in range(1, 9):  # 8 frames in batches of 2, 2 epochs
        taken = 0

        def stop_at(self, *args, step=step):
            nonlocal taken
            add(self, *args)
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGTERM if step % 2 else signal.SIGINT)

        monkeypatch.setattr(EpochMetrics, "add", stop_at)
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Interrupted, match=f"step {step}, which is saved") as caught:
            learn(entry, tiny_dataset, folder)
        assert caught.value.signal == (signal.SIGTERM if step % 2 else signal.SIGINT)
        monkeypatch.setattr(EpochMetrics, "add", add)
        assert f"-{step:08d}-" in Checkpoints(folder).files()[-1].name
        assert equal(learn(entry, tiny_dataset, folder), whole)


def test_a_signal_between_any_two_lines_of_a_step_loses_nothing(tiny_dataset, tmp_path):
    entry = experiment(epochs=1)

    def weights_and_history(folder):
        state = learn(entry, tiny_dataset, folder), Checkpoints(folder).newest()[1]["history"]
        return state[0], [{**entry, "seconds": 0} for entry in state[1]]

    whole, history = weights_and_history(tmp_path / "whole")
    seen = set()

    def trace(frame, _event, _argument):
        return on_line if frame.f_code is train.__code__ else None

    def on_line(frame, event, _argument):
        # Each line of the second step, from the one that counts it on, in its turn.
        tally = frame.f_locals.get("tally")
        if event == "line" and tally and tally.steps == 2 and frame.f_lineno not in seen:
            seen.add(frame.f_lineno)
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGINT)
            return None
        return on_line

    stopped = []
    while len(stopped) < 50:
        folder = tmp_path / f"line-{len(stopped)}"
        sys.settrace(trace)
        try:
            learn(entry, tiny_dataset, folder)
            break  # every line has had its signal
        except Interrupted as interrupt:
            step = int(re.search(r"step (\d+), which is saved", str(interrupt))[1])
            assert f"-{step:08d}-" in Checkpoints(folder).files()[-1].name
            stopped.append(step)
        finally:
            sys.settrace(None)
        resumed, told = weights_and_history(folder)
        assert equal(resumed, whole)
        assert told == history
    assert len(stopped) > 5
    assert set(stopped) == {2, 3}


def test_random_states_come_back(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)

    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()

    save_checkpoint(tmp_path / "c.pt", {**STATE, "random": random_states(CPU)})
    expected = draw()
    draw()
    set_random_states(load_checkpoint(tmp_path / "c.pt")["random"], CPU)
    assert draw() == expected


def test_a_checkpoint_of_other_frames_is_refused(make_dataset, tmp_path):
    learn(experiment(), make_dataset("one"), tmp_path / "c")
    with pytest.raises(InputError, match=r"other frames \(8; --data has 9"):
        learn(experiment(), make_dataset("two", train=7), tmp_path / "c")


@pytest.mark.parametrize(
    "harm",
    [
        {"order": 5},
        {"order": None},
        {"frames": 1.0},
        {"random": 3},
        {"history": "x"},
        {"history": torch.zeros(1)},
        {"model": {1: 2}},
        {"model": "not finite"},
    ],
)
def test_a_checkpoint_with_parts_of_other_kinds_is_refused(harm, tiny_dataset, tmp_path):
    learn(experiment(), tiny_dataset, tmp_path)
    kept = Checkpoints(tmp_path)
    state = load_checkpoint(kept.files()[-1])
    if harm == {"model": "not finite"}:
        harm = {"model": {name: weights * torch.nan for name, weights in state["model"].items()}}
    kept.save({**state, **harm}, 99)
    with pytest.raises(InputError, match="start afresh with --fresh"):
        learn(experiment(), tiny_dataset, tmp_path)


# Checkpoints on the disk


def test_the_last_two_and_the_best_are_kept(tmp_path):
    kept = Checkpoints(tmp_path)
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        kept.save({**STATE, "epoch": step}, step, best)
    assert [load_checkpoint(path)["epoch"] for path in kept.files()] == [3, 4]
    assert [load_checkpoint(path)["epoch"] for path in kept.files("best")] == [2]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("harm", ["bit", "half", "empty"])
def test_a_damaged_newest_gives_way_to_the_one_before(harm, tmp_path, capsys):
    kept = Checkpoints(tmp_path)
    state = {**STATE, "model": {"w": torch.rand(999)}}
    kept.save(state, 1)
    newest = kept.save(state, 2)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {"bit": content, "half": content[: len(content) // 2], "empty": b""}[harm]
    newest.write_bytes(harmed)
    found = Checkpoints(tmp_path)
    path, _ = found.newest()
    assert "last-00000001" in path.name
    told = capsys.readouterr().out
    assert newest.name in told
    assert "going back to the one before" in told
    found.save(state, 2)
    assert all(load_checkpoint(path) for path in found.files())  # the damaged one is gone
    for path in found.files():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 2 .* --fresh"):
        Checkpoints(tmp_path).newest()


def test_a_full_disk_stops_with_what_is_saved(tiny_dataset, tmp_path, monkeypatch):
    entry = experiment()
    whole = learn(entry, tiny_dataset, tmp_path / "whole")
    original, calls = checkpoint.write_verified, []

    def sometimes(*args):
        calls.append(args)
        return original(*args) if len(calls) == 1 else full()

    monkeypatch.setattr(checkpoint, "write_verified", sometimes)
    with pytest.raises(InputError, match=r"step 8 .* MB free\): make room, .* last-00000004"):
        learn(entry, tiny_dataset, tmp_path / "c")
    monkeypatch.undo()
    assert equal(learn(entry, tiny_dataset, tmp_path / "c"), whole)


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pt", STATE)
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "c.pt", {**STATE, "epoch": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert load_checkpoint(tmp_path / "c.pt")["epoch"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_fills_up_inside_torch_save_is_told_as_such(tmp_path):
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "last.pt", {**STATE, "model": {"w": torch.rand(300_000)}})
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_the_oldest_makes_room(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(STATE, step)
    original = checkpoint.write_verified

    def while_three(*args):
        return full() if len(kept.files()) == 2 else original(*args)

    monkeypatch.setattr(checkpoint, "write_verified", while_three)
    kept.save(STATE, 3)
    assert [checkpoint.step_of(path) for path in kept.files()] == [2, 3]


def test_what_reads_back_otherwise_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sha256", lambda _: "0" * 64)
    with pytest.raises(InputError, match="read back"):
        Checkpoints(tmp_path).save(STATE, 1)
    assert list(tmp_path.iterdir()) == []


# One run a folder, and folders that cannot be written


def test_a_folder_holds_one_run_and_a_crash_frees_it(tmp_path):
    code = (
        "import sys, time; from camvid_lang.files import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"in use by another run .process {other.pid}"),
            folder_lock(tmp_path),
        ):
            pass
        other.kill()
    with folder_lock(tmp_path):
        pass


def test_an_output_folder_that_cannot_be_written_is_told_at_once(tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*: choose another --out"):
        run(experiment(), tiny_dataset, tmp_path / "file" / "run")
    if os.getuid() == 0:
        return  # to root no folder is read-only
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        run(experiment(), tiny_dataset, tmp_path / "sealed")


# Memory


def test_out_of_memory_is_answered_with_the_largest_batch_that_fits(
    tiny_dataset, tmp_path, monkeypatch
):
    step = learner.training_step

    def small_memory(model, images, *args):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(model, images, *args)

    monkeypatch.setattr(learner, "training_step", small_memory)
    told = r"batch of 8 crops of 64x64 does not fit .* is 5: --set batch_size=5"
    with pytest.raises(InputError, match=told):
        learn(experiment(batch_size=8), tiny_dataset, tmp_path / "c")


# The mirror


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """A mirror is updated as soon as that is asked for."""
    monkeypatch.setattr(mirror, "INTERVAL", 0)


@pytest.fixture
def pair(tmp_path):
    """A run's folder with checkpoints and results, and a mirror that tries again at once."""
    local = tmp_path / "local"
    own = Checkpoints(local / "checkpoints")
    own.save({**STATE, "model": {"w": torch.rand(999)}}, 1, best=True)
    (tmp_path / "drive").mkdir()
    remote = tmp_path / "drive" / "run"
    return own, remote, Mirror(local, remote, attempts=3, pause=0)


def complete(own, remote):
    """Every checkpoint is there, whole, and nothing else."""
    theirs = Checkpoints(remote / "checkpoints")
    for kind in ("last", "best"):
        assert [path.name for path in theirs.files(kind)] == [p.name for p in own.files(kind)]
        assert all(load_checkpoint(path) for path in theirs.files(kind))
    assert not list(remote.rglob("*.part"))


def test_the_mirror_follows(pair):
    own, remote, copy = pair
    assert copy.finish()
    complete(own, remote)
    for step in (2, 3, 4):
        own.save(STATE, step)
        copy.update()
    assert copy.finish()
    complete(own, remote)


def test_a_mirror_that_vanishes_is_complete_once_it_is_back(pair, capsys):
    own, remote, copy = pair
    assert copy.finish()
    remote.parent.rename(remote.parent.with_name("unmounted"))
    own.save(STATE, 2)
    assert not copy.finish()
    assert not remote.parent.exists()  # an unmounted drive's place is not filled
    told = capsys.readouterr().out
    assert "drive is gone" in told
    assert "not complete" in told
    remote.parent.mkdir()
    assert copy.finish()
    complete(own, remote)


@pytest.mark.parametrize("fault", ["full", "reorders"])
def test_a_faulty_mirror_is_retried(fault, pair, monkeypatch, capsys):
    own, remote, copy = pair
    original, calls = mirror.copy_verified, []

    def faulty(source, target):
        calls.append(target)
        if len(calls) > 2:
            return original(source, target)
        if fault == "full":
            full()
        # The name is there before the content.
        target.write_bytes(bytes(source.stat().st_size))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(mirror, "copy_verified", faulty)
    assert copy.finish()
    complete(own, remote)
    assert "tried again later" in capsys.readouterr().out


def cut_copies(monkeypatch, how_many):
    """Let the first renames below a folder `drive` leave 100 bytes only, and say nothing."""
    replace, cut = os.replace, []

    def cutting(one, other):
        if "drive" in Path(other).parts and len(cut) < how_many:
            cut.append(other)
            os.truncate(one, 100)
        replace(one, other)

    monkeypatch.setattr(files.os, "replace", cutting)
    return cut


def test_a_mirror_that_cuts_and_says_nothing_is_retried(pair, monkeypatch, capsys):
    own, remote, copy = pair
    cut = cut_copies(monkeypatch, 2)
    assert copy.finish()
    assert len(cut) == 2
    complete(own, remote)
    assert "the copy differs" in capsys.readouterr().out


def test_a_copy_that_a_drive_cut_is_found_out(tmp_path, monkeypatch):
    source, target = tmp_path / "source", tmp_path / "drive" / "target"
    source.write_bytes(os.urandom(5000))
    target.parent.mkdir()
    cut_copies(monkeypatch, 1)
    with pytest.raises(OSError, match="differs"):
        files.copy_verified(source, target)
    assert not target.exists()


def test_a_new_machine_goes_on_from_the_mirror(tiny_dataset, tmp_path, monkeypatch, capsys):
    entry = experiment(epochs=3)
    out, copy = tmp_path / "out", tmp_path / "drive"
    whole = run(entry, tiny_dataset, tmp_path / "whole")

    class Lost(Exception):
        pass

    def lose(history):
        if len(history) == 2:
            raise Lost

    with pytest.raises(Lost):
        run(entry, tiny_dataset, out, mirror=copy, on_epoch=lose)
    for _ in range(200):  # the copy is made in the background
        if any("00000008" in path.name for path in Checkpoints(copy / "checkpoints").files()):
            break
        time.sleep(0.05)
    shutil.rmtree(out)
    newest = Checkpoints(copy / "checkpoints").files()[-1]
    newest.write_bytes(newest.read_bytes()[:-1])  # the drive lost the end of the newest
    seen = []
    again = run(entry, tiny_dataset, out, mirror=copy, on_epoch=lambda h: seen.append(len(h)))
    assert seen == [2, 3]
    assert again["miou"] == whole["miou"]
    assert "restored last-00000004" in capsys.readouterr().out
    shutil.rmtree(out)
    assert run(entry, tiny_dataset, out, mirror=copy)["miou"] == whole["miou"]  # read back
    assert "finished before" in capsys.readouterr().out
    fresh = run(entry, tiny_dataset, out, mirror=copy, fresh=True, on_epoch=seen.append)
    assert len(seen) == 5
    assert fresh["miou"] == whole["miou"]
    complete(Checkpoints(out / "checkpoints"), copy)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_drive_that_cannot_be_read_never_starts_a_run_over(
    lasting, tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mirror.time, "sleep", lambda _: None)
    entry, out, drive = experiment(epochs=3), tmp_path / "out", tmp_path / "drive"

    def leave(history):
        if len(history) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(entry, tiny_dataset, out, mirror=drive, on_epoch=leave)
    there = sorted(path.name for path in drive.rglob("*.pt"))
    shutil.rmtree(out)
    original, failures = checkpoint.sha256, []

    def failing(path):
        if drive in Path(path).parents and (lasting or not failures):
            failures.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path)

    monkeypatch.setattr(checkpoint, "sha256", failing)
    seen = []
    if lasting:
        with pytest.raises(InputError, match=r"mirror .* cannot be read .*mount the drive again"):
            run(entry, tiny_dataset, out, mirror=drive, on_epoch=lambda h: seen.append(len(h)))
        assert seen == []
        assert sorted(path.name for path in drive.rglob("*.pt")) == there
    else:
        run(entry, tiny_dataset, out, mirror=drive, on_epoch=lambda h: seen.append(len(h)))
        assert seen == [3]
        assert "damaged" not in capsys.readouterr().out


def test_a_mirror_never_deletes_what_is_further_on(pair):
    own, remote, copy = pair
    assert copy.finish()
    further = Checkpoints(remote / "checkpoints").save(STATE, 9)
    own.save(STATE, 2)
    assert copy.finish()
    assert further.exists()
    copy.clear()  # a fresh start is asked for in so many words
    assert copy.finish()
    assert not further.exists()


def test_a_mirror_waits_between_updates_but_not_at_the_end(pair, monkeypatch):
    own, remote, copy = pair
    monkeypatch.setattr(mirror, "INTERVAL", 600)
    copy.update()
    for _ in range(200):
        if Checkpoints(remote / "checkpoints").files():
            break
        time.sleep(0.05)
    own.save(STATE, 2)
    copy.update()
    time.sleep(0.2)
    assert [checkpoint.step_of(p) for p in Checkpoints(remote / "checkpoints").files()] == [1]
    assert copy.finish()
    complete(own, remote)


def test_a_mirror_that_hangs_does_not_hold_the_run(pair, monkeypatch, capsys):
    _, _, copy = pair
    monkeypatch.setattr(mirror, "PATIENCE", 0.1)
    monkeypatch.setattr(copy, "_synchronise", lambda: time.sleep(60))
    assert not copy.finish()
    assert "is not complete" in capsys.readouterr().out


def test_a_drive_that_goes_away_during_a_run_does_not_end_it(
    tiny_dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(mirror.time, "sleep", lambda _: None)
    entry, out, drive = experiment(epochs=3), tmp_path / "out", tmp_path / "drive"

    def unmount(history):
        if len(history) == 1:
            drive.rename(tmp_path / "unmounted")

    results = run(entry, tiny_dataset, out, mirror=drive / "run", on_epoch=unmount)
    assert len(results["history"]) == 3
    assert "is not complete" in capsys.readouterr().out
    assert not drive.exists()
    (tmp_path / "unmounted").rename(drive)
    run(entry, tiny_dataset, out, mirror=drive / "run")
    complete(Checkpoints(out / "checkpoints"), drive / "run")
    assert (drive / "run" / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_an_interrupted_run_leaves_its_last_state_on_the_drive(tiny_dataset, tmp_path, monkeypatch):
    add = EpochMetrics.add

    def stop(self, *args):
        add(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EpochMetrics, "add", stop)
    with pytest.raises(Interrupted):
        run(experiment(), tiny_dataset, tmp_path / "out", mirror=tmp_path / "drive")
    complete(Checkpoints(tmp_path / "out" / "checkpoints"), tmp_path / "drive")
    assert Checkpoints(tmp_path / "drive" / "checkpoints").files()


# Processes


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(number, code, tiny_dataset, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "camvid_lang", "run", "frozen-names", "--profile", "smoke"]
    command += ["--data", str(tiny_dataset), "--out", str(out), "--set", "epochs=500"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            if Checkpoints(out / "checkpoints").files():
                break
            time.sleep(0.05)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "which is saved: the same command goes on from there" in told
    assert "Traceback" not in told
    step = int(told.split("stopped at step ")[1].split(",")[0])
    assert checkpoint.step_of(Checkpoints(out / "checkpoints").files()[-1]) == step


@pytest.mark.slow
def test_killed_anywhere_nothing_is_lost(tmp_path, pytestconfig):
    kills = pytestconfig.getoption("--kills")
    harness = Harness(tmp_path, seed=0)
    harness.until(kills)
    assert sum(harness.kills.values()) >= kills
    assert harness.finished >= 1
    assert {"writing", "renaming", "mirroring"} <= harness.kills.keys()


def test_the_harness_would_notice(tmp_path):
    """A checkpoint that was said to be saved and is not there is found out."""
    lost = Harness.__new__(Harness)
    Checkpoints(tmp_path).save(STATE, 3)
    lost._check(tmp_path, 3)
    with pytest.raises(AssertionError, match="step 4"):
        lost._check(tmp_path, 4)
    path = Checkpoints(tmp_path).files()[-1]
    Path(path).write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        lost._check(tmp_path, 3)


def test_long_epochs_are_saved_in_between(tiny_dataset, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    saving = Checkpoints.save

    def save(self, state, step, *best):
        steps.append(step)
        return saving(self, state, step, *best)

    monkeypatch.setattr(Checkpoints, "save", save)
    learn(experiment(epochs=1), tiny_dataset, tmp_path / "c")
    assert steps == [1, 2, 3, 4]
