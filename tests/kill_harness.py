"""Kills real training processes with SIGKILL at random moments and lets them go on, until done.

    python tests/kill_harness.py --kills 200

Every life of the process ends after a random time, or at a random one of the moments at which a
checkpoint is written, renamed or mirrored; those moments are drawn out a little so that the kill
falls into them. After each kill every checkpoint has to be readable and none that was said to be
saved may be missing; after each finished run the weights have to equal those of a run that nobody
interrupted. Processes are forked from a server that has torch loaded, which spares seconds a life.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm

from camvid_lang.experiments import configure
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.training import checkpoint, mirror
from camvid_lang.training import checkpoint as files
from camvid_lang.training import loop as training
from camvid_lang.training.checkpoint import Checkpoints, load_checkpoint, step_of

SETTINGS = {"epochs": 10, "batch_size": 2, "limit": 8, "crop": 64}
MOMENTS = ("writing", "renaming", "mirroring")
DRAWN_OUT = 0.003  # seconds that each watched moment takes longer


def experiment():
    return configure("frozen-names", "smoke", **SETTINGS)


def live(data: Path, out: Path, copy: Path | None, pipe: Connection, log: Path) -> None:
    """One life of the training process; tells through the pipe what it is doing."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    tqdm.set_lock(threading.RLock())  # the default is shared between processes, and would leak
    torch.set_num_threads(1)
    training.SAVE_SECONDS = 0.05  # checkpoints within epochs too

    def watched(owner: object, name: str, doing: str) -> None:
        original = getattr(owner, name)

        def replacement(*args, **kwargs):
            pipe.send(("doing", doing))
            time.sleep(DRAWN_OUT)
            result = original(*args, **kwargs)
            time.sleep(DRAWN_OUT)
            pipe.send(("doing", "step"))
            return result

        setattr(owner, name, replacement)

    saving = Checkpoints.save

    def save(self, state, step, best=False):
        path = saving(self, state, step, best)
        pipe.send(("saved", step))
        return path

    Checkpoints.save = save
    mirror.INTERVAL = 0
    watched(checkpoint, "write_verified", "writing")
    watched(files, "_sync_folder", "renaming")
    watched(mirror, "copy_verified", "mirroring")
    pipe.send(("doing", "start"))
    run(experiment(), data, out, "cpu", mirror=copy)
    pipe.send(("done", 0))


class Harness:
    """See the module; `kills` counts by what the process was doing."""

    def __init__(self, work: Path, seed: int):
        self.work, self.random = work, random.Random(seed)
        self.data, self.log = work / "scenes", work / "life.log"
        write_scenes(self.data, counts={"train": 6, "val": 2, "test": 2}, size=(64, 96))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["kill_harness", "camvid_lang.runs"])
        self.kills: Counter[str] = Counter()
        self.lives, self.finished = 0, 0
        out = work / "undisturbed"
        if not self._life(out, None, after=600, at=None):
            raise AssertionError("the undisturbed run did not finish")
        self.expected = load_checkpoint(Checkpoints(out / "checkpoints").files()[-1])

    def until(self, kills: int) -> None:
        """Runs, killed again and again, until so many kills have been survived."""
        while sum(self.kills.values()) < kills:
            out, copy = self.work / "killed", self.work / "drive" / "killed"
            for folder in (out, copy):
                shutil.rmtree(folder, ignore_errors=True)
            copy.parent.mkdir(exist_ok=True)
            done = False
            while not done:
                by_time = self.random.random() < 0.5
                after = self.random.uniform(0.02, 1.5) if by_time else 600
                # The kind of moment that was met least, so that even few kills meet all of them.
                kind = min(MOMENTS, key=self.kills.__getitem__)
                at = None if by_time else (kind, self.random.randrange(1, 9))
                if sum(self.kills.values()) >= kills:
                    after, at = 600, None
                done = self._life(out, copy, after, at)
                if not done and self.random.random() < 0.1:
                    shutil.rmtree(out, ignore_errors=True)  # a new machine: the mirror is left
            self._compare(out / "checkpoints")
            self._compare(copy / "checkpoints")
            self.finished += 1

    def _life(self, out: Path, copy: Path | None, after: float, at: tuple[str, int] | None) -> bool:
        """Start, and kill after a time or at the n-th moment of a kind; True if it finished."""
        self.lives += 1
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=live, args=(self.data, out, copy, theirs, self.log))
        process.start()
        theirs.close()
        end = time.monotonic() + after
        doing, saved, moments, done = "start", -1, 0, False
        while time.monotonic() < end:
            if not ours.poll(max(0.0, min(0.5, end - time.monotonic()))):
                continue
            try:
                kind, value = ours.recv()
            except EOFError:
                break
            if kind == "saved":
                saved = value
            elif kind == "done":
                done = True
            else:
                doing = value
                moments += at is not None and doing == at[0]
                if at is not None and moments >= at[1]:
                    time.sleep(self.random.uniform(0, 2 * DRAWN_OUT))
                    break
        if done:
            process.join()
        else:
            process.kill()
            process.join()
            if process.exitcode != -9:
                told = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"exit code {process.exitcode} without a kill: {told}")
            while ours.poll():
                try:
                    kind, value = ours.recv()
                except (EOFError, OSError):
                    break
                saved = value if kind == "saved" else saved
            self.kills[doing] += 1
            self._check(out / "checkpoints", saved)
            if copy:
                self._check(copy / "checkpoints", -1)
        ours.close()
        return done

    def _check(self, folder: Path, saved: int) -> None:
        """Every checkpoint is readable, and one is as new as what was said to be saved."""
        found = Checkpoints(folder)
        paths = [*found.files("last"), *found.files("best")]
        for path in paths:
            load_checkpoint(path)
        newest = max(map(step_of, found.files("last")), default=-1)
        if newest < saved:
            raise AssertionError(f"step {saved} was said to be saved, the newest is {newest}")

    def _compare(self, folder: Path) -> None:
        """Weights, optimizer and random states equal those of the undisturbed run."""
        state = load_checkpoint(Checkpoints(folder).files()[-1])
        for part in ("model", "optimizer", "random", "order", "epoch", "schedule"):
            if not equal(state[part], self.expected[part]):
                raise AssertionError(f"{folder}: {part} differs from the undisturbed run's")


def equal(a: object, b: object) -> bool:
    """Bit for bit, through nested dictionaries, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        harness = Harness(Path(work), args.seed)
        harness.until(args.kills)
    print(
        f"{sum(harness.kills.values())} kills ({dict(harness.kills)}) in {harness.lives} lives, "
        f"{harness.finished} runs finished with the undisturbed run's weights, "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import kill_harness

    kill_harness.main()  # by its name, so that forked processes find it
