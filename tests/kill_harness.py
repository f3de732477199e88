"""Kills real training processes with SIGKILL at random moments and restarts them until done.

    python -m pytest -k killed_anywhere --kills 200

Each process is killed after a random time, or while it writes, renames or mirrors a checkpoint,
which is prolonged a little. After each kill the kept checkpoints have to be undamaged and none that
was reported as saved may be missing; each finished run must have the weights of a run that was
never interrupted. Processes are forked from a server that has torch loaded, which saves seconds.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter

import torch
from tqdm import tqdm

from camvid_lang.experiments import configure
from camvid_lang.runs import run
from camvid_lang.training import checkpoint, mirror
from camvid_lang.training.checkpoint import Checkpoints, load_checkpoint

SETTINGS = {"epochs": 12, "batch_size": 4, "limit": 8, "crop": 64}
MOMENTS = ("writing", "renaming", "mirroring")
PROLONGED = 0.003  # seconds before and after each watched call


def train(data, out, copy, pipe, log):
    """The process that is killed; reports through the pipe what it is doing."""
    with open(log, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    tqdm.set_lock(threading.RLock())  # the default is shared between processes
    torch.set_num_threads(1)

    def watch(owner, name, doing):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            pipe.send(("doing", doing))
            time.sleep(PROLONGED)
            original(*args, **kwargs)
            time.sleep(PROLONGED)
            pipe.send(("doing", "step"))

        setattr(owner, name, watched)

    def save(self, state, original=Checkpoints.save):
        original(self, state)
        pipe.send(("saved", state["epoch"]))

    Checkpoints.save = save
    watch(checkpoint.torch, "save", "writing")
    watch(os, "replace", "renaming")
    watch(mirror, "copy", "mirroring")
    pipe.send(("doing", "start"))
    run(configure("frozen-names", "smoke", **SETTINGS), data, out, device="cpu", mirror=copy)
    pipe.send(("done", 0))


class Harness:
    """See the module; `kills` counts by what the process was doing."""

    def __init__(self, work, data, seed):
        self.work, self.random, self.kills = work, random.Random(seed), Counter()
        self.data, self.finished = data, 0
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["camvid_lang.runs"])
        assert self.start(work / "whole", None, after=600, at=None), "the first run did not finish"
        self.expected = self.final_state(work / "whole")

    def until(self, kills):
        """Run again and again until so many kills have been survived."""
        out, copy = self.work / "killed", self.work / "drive" / "killed"
        copy.parent.mkdir(exist_ok=True)
        while self.kills.total() < kills:
            for folder in (out, copy):
                shutil.rmtree(folder, ignore_errors=True)
            done = False
            while not done:
                after, at = self.random.uniform(0.02, 1.5), None
                if self.kills.total() >= kills:
                    after = 600
                elif self.random.random() < 0.5:  # the moment that was hit least
                    kind = min(MOMENTS, key=self.kills.__getitem__)
                    after, at = 600, (kind, self.random.randrange(1, 9))
                done = self.start(out, copy, after, at)
                if not done and self.random.random() < 0.1:
                    shutil.rmtree(out, ignore_errors=True)  # a new machine: the mirror is left
            for folder in (out, copy):
                assert equal(self.final_state(folder), self.expected), f"{folder} differs"
            self.finished += 1

    @staticmethod
    def final_state(folder):
        """The newest checkpoint without the times that the epochs took."""
        state = Checkpoints(folder / "checkpoints").newest()[1]
        for entry in state["history"]:
            del entry["seconds"]
        return state

    def start(self, out, copy, after, at):
        """Kill after a time or at the n-th moment of a kind; True if it finished before."""
        ours, theirs = self.context.Pipe(duplex=False)
        log = self.work / "log"
        process = self.context.Process(target=train, args=(self.data, out, copy, theirs, log))
        process.start()
        theirs.close()
        end, moments, latest = time.monotonic() + after, 0, {"doing": "start", "saved": 0}

        def receive():
            """The next message; None at the end of the pipe."""
            with contextlib.suppress(EOFError):
                kind, latest[kind] = ours.recv()
                return kind, latest[kind]

        while time.monotonic() < end and "done" not in latest and not (at and moments >= at[1]):
            if ours.poll(max(0.0, end - time.monotonic())):
                if not (message := receive()):
                    break
                moments += bool(at) and message == ("doing", at[0])
        if "done" in latest:
            process.join()
            return True
        time.sleep(self.random.uniform(0, 2 * PROLONGED) if at else 0)
        process.kill()
        process.join()
        assert process.exitcode == -9, f"ended without a kill: {log.read_text()[-2000:]}"
        doing = latest["doing"]
        while ours.poll() and receive():
            pass
        self.kills[doing] += 1
        check(out / "checkpoints", latest["saved"])
        check(copy / "checkpoints", 0)
        return "done" in latest


def check(folder, saved):
    """The checkpoints kept are undamaged, and one is as new as what was reported as saved."""
    kept = Checkpoints(folder).files()[-2:]
    newest = max((load_checkpoint(path)["epoch"] for path in kept), default=0)
    assert newest >= saved, f"epoch {saved} was reported as saved, the newest is {newest}"


def equal(a, b):
    """Bit for bit, through nested dictionaries, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
