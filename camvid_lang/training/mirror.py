"""A second copy of a run's folder, on a drive that may be slow, full, or gone for a while.

Training never waits for the mirror and never fails because of it: a thread copies what is new, and
what could not be copied is tried again after the next epoch and at the end. Copies are checked when
they are restored.
"""

import errno
import threading
import time
from pathlib import Path

from tqdm import tqdm

from camvid_lang.errors import InputError
from camvid_lang.results import read_results
from camvid_lang.training.checkpoint import Checkpoints, copy, delete, epoch_of, load_checkpoint

__all__ = ["CHECKPOINTS", "RESULTS", "Mirror"]

# The content of a run's folder.
CHECKPOINTS = "checkpoints"
RESULTS = ("figures.npz", "results.json")

ATTEMPTS = 3  # to read the mirror at the start and to complete it at the end
PAUSE = 5  # seconds between them
PATIENCE = 600  # seconds that the end of a run waits for a drive that does not answer


class Mirror:
    """Copies a run's checkpoints and results from `local` to `remote`, and back to a new machine.

    Raises:
        InputError: `remote` cannot be written to, or is the run's own folder.
    """

    def __init__(self, local: str | Path, remote: str | Path):
        self.local, self.remote = Path(local), Path(remote)
        if self.remote.resolve() == self.local.resolve():
            raise InputError(f"mirror {remote} is the run's own folder: choose another one")
        try:
            (self.remote / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"mirror {remote} cannot be written to ({error.strerror}): mount the drive, or "
                "choose another folder"
            ) from error
        self._copied: dict[str, int] = {}  # name to the time at which the local file was written
        self._thread = threading.Thread()
        self._failure = ""  # of the last update; empty if it succeeded

    def restore(self) -> None:
        """Copy to `local` what it lacks: the newest undamaged checkpoint, the best, the results.

        Raises:
            InputError: the mirror cannot be read. Training without it would start over.
        """
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            try:
                self._restore()
            except OSError as error:
                failure = error
            else:
                return
        raise InputError(
            f"mirror {self.remote} cannot be read ({failure}): mount the drive again and rerun, or "
            "choose another mirror"
        ) from failure

    def _restore(self) -> None:
        own, there = (Checkpoints(root / CHECKPOINTS) for root in (self.local, self.remote))
        (self.remote / CHECKPOINTS).stat()  # an unmounted drive must not look like an empty one
        for kind in ("last", "best"):
            for path in reversed(there.files(kind)):
                if path.name in [held.name for held in own.files(kind)]:
                    self._copied[path.name] = (own.folder / path.name).stat().st_mtime_ns
                elif epoch_of(path) > max(map(epoch_of, own.files(kind)), default=0):
                    self._restore_file(path, own.folder / path.name, load_checkpoint)
        for name in RESULTS:
            if (self.remote / name).exists() and not (self.local / name).exists():
                check = read_results if name == "results.json" else None
                self._restore_file(self.remote / name, self.local / name, check)

    def _restore_file(self, source: Path, target: Path, check) -> None:
        copy(source, target)
        try:
            if check:
                check(target)
        except InputError:
            target.unlink()
            print(f"note: {source} is damaged and is skipped")
            return
        print(f"restored {target.name} from {self.remote}")
        self._copied[target.name] = target.stat().st_mtime_ns

    def clear(self) -> None:
        """Delete the earlier run on the mirror.

        Raises:
            OSError: the drive does not allow it.
        """
        Checkpoints(self.remote / CHECKPOINTS).clear()
        for name in RESULTS:
            delete(self.remote / name)

    def update(self) -> None:
        """Start to copy what is new; does nothing while an earlier update is still copying."""
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._update, daemon=True, name="mirror")
            self._thread.start()

    def finish(self) -> bool:
        """Wait until everything is copied; prints a note and returns False if that fails."""
        deadline = time.monotonic() + PATIENCE
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            self._wait(deadline)  # for one that began before the last files were written
            self.update()
            self._wait(deadline)
            if self._thread.is_alive():
                self._failure = "the drive does not answer"
                break
            if not self._failure:
                return True
        print(f"note: mirror {self.remote} is not complete; the run in {self.local} is")
        return False

    def _wait(self, deadline: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _update(self) -> None:
        try:
            self._copy_new()
        except OSError as error:
            failure = f"mirror {self.remote} could not be updated ({error.strerror or error})"
            if failure != self._failure:
                tqdm.write(f"note: {failure}; it is tried again later")
            self._failure = failure
        else:
            self._failure = ""

    def _copy_new(self) -> None:
        if not self.remote.parent.is_dir():  # nothing is written to where a drive was mounted
            raise FileNotFoundError(errno.ENOENT, "the drive is not mounted", str(self.remote))
        own, there = (Checkpoints(root / CHECKPOINTS) for root in (self.local, self.remote))
        results = [self.local / name for name in RESULTS if (self.local / name).exists()]
        files = [*own.files("last"), *own.files("best"), *results]
        for path in files:
            try:
                written = path.stat().st_mtime_ns
                if self._copied.get(path.name) != written:
                    copy(path, self.remote / path.relative_to(self.local))
                    self._copied[path.name] = written
            except FileNotFoundError:
                if path.exists():
                    raise
                # Otherwise it was deleted, as a newer one was saved.
        newest = max(map(epoch_of, own.files("last")), default=0)
        for kind in ("last", "best"):
            for path in there.files(kind):
                # What is further on than this run is kept, whatever the reason.
                if path.name not in [held.name for held in files] and epoch_of(path) <= newest:
                    delete(path)
