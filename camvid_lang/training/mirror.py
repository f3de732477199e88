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

from camvid_lang.errors import InputError
from camvid_lang.results import RunFolder, atomic_write, delete, read_results
from camvid_lang.training import checkpoint
from camvid_lang.training.checkpoint import Checkpoints, changed_settings, epoch_of, raise_changed

PAUSES = (0, 5, 5)  # seconds before each attempt to read the mirror, and to complete it
PATIENCE = 600  # seconds that the end of a run waits for a drive that does not answer


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically; the target's folder is made if missing, but not those above it."""
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file, 1 << 20)


def held_settings(folder: RunFolder) -> Mapping | None:
    """The settings of the run in a folder; None where there is none, or all is damaged."""
    with contextlib.suppress(InputError):
        return read_results(folder.results)["settings"]
    found = Checkpoints(folder.checkpoints).newest(strict=False)  # many megabytes
    return found and found[1]["settings"]


class Mirror:
    """Copies a run's checkpoints and results from `local` to `remote`, and back to a new machine.

    It is `active` once anything was given to copy. `InputError`: `remote` cannot be written to, is
    the folder of the run, or is in a folder that is missing, as on a drive that is not mounted.
    """

    def __init__(self, local: RunFolder, remote: RunFolder):
        self.local, self.remote = local, remote
        if remote.path.resolve() == local.path.resolve():
            raise InputError(f"mirror {remote.path} is the folder of the run: choose another one")
        self._saved, self._copies = (Checkpoints(x.checkpoints) for x in (local, remote))
        try:
            remote.path.mkdir(exist_ok=True)
            remote.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            reason = f"cannot be written to ({error.strerror})"
            advice = f"mount the drive, or create {remote.path.parent}"
            raise InputError(f"mirror {remote.path} {reason}: {advice}") from error
        self._copied: dict[str, int] = {}  # name: modification time of the local file
        self._thread: threading.Thread | None = None
        self._failure, self.active = "", False  # failure of the latest update

    def restore(self, settings: Mapping) -> None:
        """Copy to `local` what it lacks: the newest undamaged checkpoint and the results.

        `InputError`: the mirror is of a run with other `settings`, or cannot be read.
        """
        for pause in PAUSES:
            time.sleep(pause)
            try:
                return self._restore(settings)
            except OSError as error:
                failure = error
        what = f"mirror {self.remote.path} cannot be read, or its copies not written ({failure})"
        advice = "mount the drive again and rerun, or choose another mirror"
        raise InputError(f"{what}: {advice}") from failure

    def _restore(self, settings: Mapping) -> None:
        self.remote.checkpoints.stat()  # an unmounted drive must not look like an empty one
        if held := held_settings(self.remote):
            what = f"mirror {self.remote.path} holds another run"
            raise_changed(what, changed_settings(held, settings))
        saved = self._saved.newest(strict=False)
        epoch = epoch_of(saved[0]) if saved else -1
        for path in reversed(self._copies.files()):
            target = self.local.checkpoints / path.name
            if epoch_of(path) <= epoch or self._restore_file(path, target):
                break
        for path in self.remote.finished_files():
            if not (target := self.local.path / path.name).exists():
                self._restore_file(path, target)

    def _restore_file(self, source: Path, target: Path) -> bool:
        checks = {".pt": checkpoint.load_checkpoint, ".json": read_results}
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy(source, target)
        except InputError as error:
            raise OSError(str(error)) from error  # for another attempt
        try:
            checks.get(source.suffix, Path.stat)(target)
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
        print(f"note: mirror {self.remote.path} is not complete; {self.local.path} is")
        return False

    def _update(self) -> None:
        try:
            self._copy_new()
            self._failure = ""
        except (OSError, InputError) as error:
            if not self._failure:  # once, not at every attempt
                what = f"mirror {self.remote.path} could not be updated ({error})"
                tqdm.write(f"note: {what}; it is tried again later")
            self._failure = str(error)

    def _copy_new(self) -> None:
        # Without parents: a drive that has gone away does not become a local folder.
        self.remote.path.mkdir(exist_ok=True)
        files = [*self._saved.files()[-checkpoint.KEPT :], *self.local.finished_files()]
        for path in files:
            self._copy_file(path)
        # Later epochs than this run has are kept, whatever the reason; a kill leaves parts.
        copies = [path for path in self._copies.files() if epoch_of(path) <= self._saved.epoch]
        for path in (*copies[: -checkpoint.KEPT], *self.remote.path.rglob("*.part")):
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
