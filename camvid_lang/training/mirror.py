"""A second copy of a run's folder, on a drive that may be slow, full or gone for a while.

Training never waits for the mirror and never ends because of it: copies are made by a thread, each
is read back, and what failed is tried again with the next checkpoint and at the end.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

from tqdm import tqdm

from camvid_lang.errors import InputError
from camvid_lang.results import read_figures, read_results
from camvid_lang.training.checkpoint import (
    KINDS,
    Checkpoints,
    copy_verified,
    is_intact,
    sha256,
    step_of,
)

__all__ = [
    "Mirror",
]

CHECKPOINTS = "checkpoints"
# What a run writes besides its checkpoints, in the order in which it is copied.
RESULTS = ("figures.npz", "results.json")
PATIENCE = 600  # seconds that the end of a run waits for copies under way
INTERVAL = 60  # seconds from one update to the next: a drive is slow, and epochs may be short


class Mirror:
    """Keeps `remote` equal to what matters in `local`: checkpoints, results, figures.

    Args:
        local: a run's folder.
        remote: its copy. Its parent has to exist when a copy is made: where a drive has been
            unmounted, its place on the local disk must not be filled instead.
        attempts, pause: how often `restore` and `finish` try, and the seconds in between.

    Raises:
        InputError: `remote` cannot be made at the start, when someone is there to mend it.
    """

    def __init__(self, local: Path, remote: Path, attempts: int = 3, pause: float = 5.0):
        self.local, self.remote = Path(local), Path(remote)
        self.attempts, self.pause = attempts, pause
        if self.remote.resolve() == self.local.resolve():
            raise InputError(f"mirror {remote} is the run's own folder: choose another one")
        try:
            (self.remote / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"mirror {remote} cannot be written to ({error.strerror}): is the drive mounted?"
            ) from error
        self._verified: dict[Path, tuple] = {}
        self._unwanted: set[Path] = set()
        self._told = ""
        # Updates are numbered; those asked for while one is under way are done together.
        self._change = threading.Condition()
        self._asked = self._done = 0
        self._complete = self._hurry = False
        self._thread: threading.Thread | None = None

    def restore(self) -> None:
        """Bring here what the mirror has and this folder lacks; damaged copies are passed over.

        Raises:
            InputError: the mirror cannot be read. To go on without it would start the run over.
        """
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause)
            try:
                self._restore()
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return
        raise InputError(
            f"mirror {self.remote} cannot be read ({reason}), so a run that is kept there cannot "
            "go on: mount the drive again and repeat, or choose another mirror"
        )

    def _restore(self) -> None:
        here = self.local / CHECKPOINTS
        held = max(map(step_of, Checkpoints(here).files()), default=-1)
        there = Checkpoints(self.remote / CHECKPOINTS)
        for path in (*there.files()[::-1], *there.files("best")):
            newest = path.name.startswith("last")
            if (newest and step_of(path) <= held) or (here / path.name).exists():
                continue
            if not is_intact(path):
                print(f"note: {path} is damaged; it is passed over")
                continue
            here.mkdir(parents=True, exist_ok=True)
            copy_verified(path, here / path.name)
            if newest:
                print(f"restored {path.name} from {self.remote}")
                held = step_of(path)
        for name in RESULTS:
            if not (self.local / name).exists() and _usable(self.remote / name):
                self.local.mkdir(parents=True, exist_ok=True)
                copy_verified(self.remote / name, self.local / name)

    def clear(self) -> None:
        """Forget the mirror's earlier run: what is there and not here goes with the next update."""
        there = Checkpoints(self.remote / CHECKPOINTS)
        self._unwanted = {
            *(self.remote / name for name in RESULTS),
            *there.files("last"),
            *there.files("best"),
        }
        self.update()

    def update(self) -> int:
        """Have the mirror brought up to date, in the background; returns the update's number."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="mirror")
            self._thread.start()
        with self._change:
            self._asked += 1
            self._change.notify_all()
            return self._asked

    def finish(self) -> bool:
        """Bring the mirror up to date now; tells and returns False where that does not succeed."""
        with self._change:
            self._hurry = True
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause)
            number = self.update()
            with self._change:
                # A drive that hangs must not hold the run for ever.
                if not self._change.wait_for(lambda n=number: self._done >= n, PATIENCE):
                    break
                if self._complete:
                    self._hurry = False
                    return True
        print(f"note: mirror {self.remote} is not complete; the run is, in {self.local}")
        return False

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._asked > self._done)
                number = self._asked
            complete = self._synchronise()
            with self._change:
                self._done, self._complete = number, complete
                self._change.notify_all()
                self._change.wait_for(lambda: self._hurry, INTERVAL)

    def _synchronise(self) -> bool:
        with self._tell_failures() as outcome:
            if not self.remote.parent.is_dir():
                raise FileNotFoundError(2, "the drive is gone", str(self.remote.parent))
            (self.remote / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            wanted = self._wanted()
            for path in wanted:
                self._copy(path)
            kept = {self.remote / path.relative_to(self.local) for path in wanted}
            held = max(map(step_of, wanted), default=-1)
            there = Checkpoints(self.remote / CHECKPOINTS)
            # What is further on than this folder is not older, whatever the reason.
            older = [path for kind in KINDS for path in there.files(kind) if step_of(path) <= held]
            for old in {*older, *self._unwanted} - kept:
                _discard(old)
            for rest in self.remote.rglob("*.part"):
                rest.unlink(missing_ok=True)
            self._unwanted = set()
            if self._told:
                tqdm.write(f"note: mirror {self.remote} is complete again")
                self._told = ""
            outcome.append(True)
        return bool(outcome)

    def _wanted(self) -> list[Path]:
        own = Checkpoints(self.local / CHECKPOINTS)
        results = [self.local / name for name in RESULTS if (self.local / name).exists()]
        return [*own.files("last"), *own.files("best"), *results]

    def _copy(self, path: Path) -> None:
        target = self.remote / path.relative_to(self.local)
        try:
            here = _stamp(path)
        except FileNotFoundError:  # replaced by a newer checkpoint meanwhile
            return
        if target.exists() and self._verified.get(target) == (here, _stamp(target)):
            return
        try:
            if not (target.exists() and sha256(target) == sha256(path)):
                copy_verified(path, target)
        except FileNotFoundError:
            if path.exists():
                raise
            return
        self._verified[target] = (here, _stamp(target))

    @contextlib.contextmanager
    def _tell_failures(self):
        """Turn a failure into a note, told once until it changes."""
        outcome: list[bool] = []
        try:
            yield outcome
        except OSError as error:
            told = f"mirror {self.remote} could not be updated ({error.strerror or error})"
            if told != self._told:
                tqdm.write(f"note: {told}; it is tried again later")
                self._told = told


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _discard(path: Path) -> None:
    """Delete a file, if it is there.

    What is deleted from Google Drive goes to its bin and counts against the quota, so it is
    emptied first; and renamed before that, so that a name never stands for less than it says.
    """
    rest = path.with_name(f"{path.name}.part")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, rest)
        os.truncate(rest, 0)
        rest.unlink()


def _usable(path: Path) -> bool:
    """Whether the file is there and whole, as far as it can tell."""
    if path.suffix == ".json":
        try:
            read_results(path)
        except InputError:
            return False
        return True
    return read_figures(path) is not None
