"""A second copy of a run's folder, on a drive that may be slow, full, or gone for a while.

Training never waits for the mirror and never fails because of it: a thread copies what is new, and
tries again after the next epoch and at the end. Copies are checked when they are restored.
"""

import contextlib
import errno
import threading
import time
from pathlib import Path

from tqdm import tqdm

from camvid_lang.errors import InputError
from camvid_lang.results import read_results
from camvid_lang.training.checkpoint import Checkpoints, copy, delete, epoch_of, load_checkpoint

# The content of a run's folder.
CHECKPOINTS = "checkpoints"
RESULTS = ("figures.npz", "results.json")

ATTEMPTS = 3  # to read the mirror at the start, and to complete it at the end
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
        self.own, self.there = (Checkpoints(Path(root) / CHECKPOINTS) for root in (local, remote))
        try:
            self.there.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
            raise InputError(f"mirror {remote} {reason}: mount the drive") from error
        self._copied: dict[str, int] = {}  # name: modification time of the local file
        self._thread: threading.Thread | None = None
        self._failure = ""  # of the latest update

    @property
    def active(self) -> bool:
        """Whether anything was given to copy."""
        return self._thread is not None

    def restore(self, name: str) -> None:
        """Copy to `local` what it lacks: the newest undamaged checkpoint, the best, the results.

        Args:
            name: of the experiment.

        Raises:
            InputError: the mirror holds another experiment, or cannot be read. Without it, training
                would start over.
        """
        self.own.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            try:
                return self._restore(name)
            except OSError as error:
                failure = error
        raise InputError(
            f"mirror {self.remote} cannot be read ({failure}): mount the drive again and rerun, or "
            "choose another mirror"
        ) from failure

    def _held(self) -> str | None:
        """The experiment of which the mirror holds a run; None if it holds nothing readable."""
        with contextlib.suppress(InputError):
            return read_results(self.remote / "results.json")["experiment"]
        for path in reversed(self.there.files()):
            with contextlib.suppress(InputError):
                return load_checkpoint(path)["settings"].get("name")
        return None

    def _restore(self, name: str) -> None:
        self.there.folder.stat()  # an unmounted drive must not look like an empty one
        if (held := self._held()) not in (None, name):
            raise InputError(f"mirror {self.remote} holds a run of {held}: choose another mirror")
        for kind in ("last", "best"):
            for path in reversed(self.there.files(kind)):
                own = self.own.files(kind)
                if (target := self.own.folder / path.name) in own:
                    self._copied[path.name] = target.stat().st_mtime_ns
                elif epoch_of(path) > max(map(epoch_of, own), default=-1):
                    self._restore_file(path, target)
        for name in RESULTS:
            if (self.remote / name).exists() and not (self.local / name).exists():
                self._restore_file(self.remote / name, self.local / name)

    def _restore_file(self, source: Path, target: Path) -> None:
        check = {".pt": load_checkpoint, ".json": read_results}.get(source.suffix)
        copy(source, target)
        try:
            if check:
                check(target)
        except InputError as error:
            target.unlink()
            print(f"note: {source} is skipped: {error}")
        else:
            print(f"restored {target.name} from {self.remote}")
            self._copied[target.name] = target.stat().st_mtime_ns

    def clear(self) -> None:
        """Delete the earlier run on the mirror; `InputError` if the drive refuses."""
        try:
            self.there.clear()
            for name in RESULTS:
                delete(self.remote / name)
        except OSError as error:
            raise InputError(f"mirror {self.remote} cannot be cleared ({error})") from error

    def update(self) -> None:
        """Start to copy what is new, unless an earlier update is still copying."""
        if not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._update, daemon=True)
            self._thread.start()

    def finish(self) -> bool:
        """Wait until everything is copied; prints a note and returns False if that fails."""
        deadline = time.monotonic() + PATIENCE
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            for _ in range(2):  # an update under way may have begun before the last files came
                self.update()
                self._thread.join(max(0.0, deadline - time.monotonic()))
            if not (self._failure or self._thread.is_alive()):
                return True
        print(f"note: mirror {self.remote} is not complete; the run in {self.local} is")
        return False

    def _update(self) -> None:
        failure = ""
        try:
            self._copy_new()
        except OSError as error:
            failure = f"mirror {self.remote} could not be updated ({error.strerror or error})"
            if failure != self._failure:
                tqdm.write(f"note: {failure}; it is tried again later")
        self._failure = failure

    def _copy_new(self) -> None:
        if not self.remote.parent.is_dir():  # nothing is written to where a drive was mounted
            raise FileNotFoundError(errno.ENOENT, "the drive is not mounted", str(self.remote))
        # Without parents: a drive that goes away now does not become a local folder.
        for folder in (self.remote, self.there.folder):
            folder.mkdir(exist_ok=True)
        results = [self.local / name for name in RESULTS if (self.local / name).exists()]
        files = [*self.own.kept(), *results]
        for path in files:
            try:
                written = path.stat().st_mtime_ns
                if self._copied.get(path.name) != written:
                    copy(path, self.remote / path.relative_to(self.local))
                    self._copied[path.name] = written
            except FileNotFoundError:
                if path.exists():  # otherwise a newer checkpoint has replaced it
                    raise
        names = [path.name for path in files]
        newest = max(map(epoch_of, self.own.files()), default=-1)
        for path in (*self.there.files("last"), *self.there.files("best")):
            # Checkpoints of later epochs than this run has are kept, whatever the reason.
            if path.name not in names and epoch_of(path) <= newest:
                delete(path)
        for folder in (self.remote, self.there.folder):
            for leftover in folder.glob("*.part"):  # of a process that was killed
                delete(leftover)
