"""A second copy of a run's folder, on a drive that may be slow, full, or gone for a while.

Training never waits for the mirror and never fails because of it: a thread copies what is new, and
tries again after the next epoch and at the end. Copies are checked when they are restored.
"""

import contextlib
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from camvid_lang.errors import START_OVER, InputError
from camvid_lang.results import RunFolder, atomic_write, delete, read_results
from camvid_lang.training.checkpoint import Checkpoints, changed_settings, epoch_of, load_checkpoint

PAUSES = (0, 5, 5)  # seconds before each attempt to read the mirror, and to complete it
PATIENCE = 600  # seconds that the end of a run waits for a drive that does not answer


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically; the target's folder is made if missing, but not those above it."""
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file, 1 << 20)


class Mirror:
    """Copies a run's checkpoints and results from `local` to `remote`, and back to a new machine.

    It is `active` once anything was given to copy. `InputError`: `remote` cannot be written to, or
    is the folder of the run.
    """

    def __init__(self, local: RunFolder, remote: RunFolder):
        self.local, self.remote = local, remote
        if remote.path.resolve() == local.path.resolve():
            raise InputError(f"mirror {remote.path} is the folder of the run: choose another one")
        self._saved, self._copies = (Checkpoints(x.checkpoints) for x in (local, remote))
        try:
            remote.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
            raise InputError(f"mirror {remote.path} {reason}: mount the drive") from error
        self._copied: dict[str, int] = {}  # name: modification time of the local file
        self._thread: threading.Thread | None = None
        self._failure, self.active = "", False  # failure of the latest update

    def restore(self, settings: Mapping) -> None:
        """Copy to `local` what it lacks: the newest undamaged checkpoint and the results.

        `InputError`: the mirror is of a run with other `settings`, or cannot be read.
        """
        self.local.checkpoints.mkdir(parents=True, exist_ok=True)
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._restore(settings)
            except OSError as error:
                failure = error
        what = f"mirror {self.remote.path} cannot be read ({failure})"
        advice = "mount the drive again and rerun, or choose another mirror"
        raise InputError(f"{what}: {advice}") from failure

    def _restore(self, settings: Mapping) -> None:
        self.remote.checkpoints.stat()  # an unmounted drive must not look like an empty one
        held, local = None, _newest(self._saved)
        with contextlib.suppress(InputError):
            held = read_results(self.remote.results)
        held = held or _newest(self._copies)  # many megabytes
        if held and (changed := changed_settings(held["settings"], settings)):
            what = f"mirror {self.remote.path} holds another run ({'; '.join(changed)})"
            raise InputError(f"{what}: choose another mirror, or {START_OVER}")
        for path in reversed(self._copies.files()):
            if epoch_of(path) > (local["epoch"] if local else -1) and self._restore_file(
                path, self.local.checkpoints / path.name
            ):
                break
        for path in self.remote.finished_files():
            if not (target := self.local.path / path.name).exists():
                self._restore_file(path, target)

    def _restore_file(self, source: Path, target: Path) -> bool:
        check = {".pt": load_checkpoint, ".json": read_results}.get(source.suffix, Path.stat)
        copy(source, target)
        try:
            check(target)
        except InputError as error:
            target.unlink()
            print(f"note: {source} is skipped: {error}")
            return False
        print(f"restored {target.name} from {self.remote.path}")
        self._copied[target.name] = target.stat().st_mtime_ns
        return True

    def update(self) -> None:
        """Start to copy what is new, unless an earlier update is still copying."""
        self.active = True
        if not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._update, daemon=True)
            self._thread.start()

    def finish(self) -> bool:
        """Wait until everything is copied; prints a note and returns False if that fails."""
        deadline = time.monotonic() + PATIENCE
        for pause in PAUSES:
            time.sleep(pause)
            for _ in range(2):  # an update under way may have begun before the last files came
                self.update()
                self._thread.join(max(0.0, deadline - time.monotonic()))
            if not (self._failure or self._thread.is_alive()):
                return True
        print(
            f"note: mirror {self.remote.path} is not complete; the files in {self.local.path} are"
        )
        return False

    def _update(self) -> None:
        try:
            self._copy_new()
            self._failure = ""
        except OSError as error:
            failure = f"mirror {self.remote.path} could not be updated ({error.strerror or error})"
            if failure != self._failure:
                tqdm.write(f"note: {failure}; it is tried again later")
            self._failure = failure

    def _copy_new(self) -> None:
        # Without parents: a drive that has gone away does not become a local folder.
        self.remote.path.mkdir(exist_ok=True)
        files = [*self._saved.kept(), *self.local.finished_files()]
        for path in files:
            self._copy_file(path)
        names = {path.name for path in files}
        stale = [path for path in self._copies.files() if path.name not in names]
        # Later epochs than this run has are kept, whatever the reason; a kill leaves parts.
        old = [path for path in stale if epoch_of(path) <= self._saved.epoch]
        for path in (*old, *self.remote.path.rglob("*.part")):
            delete(path)

    def _copy_file(self, path: Path) -> None:
        try:
            written = path.stat().st_mtime_ns
            if self._copied.get(path.name) != written:
                copy(path, self.remote.path / path.relative_to(self.local.path))
                self._copied[path.name] = written
        except FileNotFoundError:
            if path.exists():  # otherwise a newer checkpoint has replaced it
                raise


def _newest(checkpoints: Checkpoints) -> dict | None:
    """The newest undamaged state; None without one."""
    for path in reversed(checkpoints.files()):
        with contextlib.suppress(InputError):
            return load_checkpoint(path)
    return None
