"""Checkpoints of a run: complete or absent, checked when read, two of them and the best kept.

A run may be killed at any moment, and disks and drives damage files. So a file gets its name only
once it is complete and on the disk, and a damaged one is replaced by the previous one.
"""

import re
import shutil
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from camvid_lang.errors import START_OVER, InputError
from camvid_lang.results import atomic_write, delete

KINDS = ("last", "best")
KEPT = 2  # of kind `last`
KEYS = {"settings", "identity", "epoch", "history", "model", "optimizer", "scaler", "random"}
_NAME = re.compile(r"(last|best)-(\d+)\.pt")
# Where files are may change from one session to the next; their content is compared instead.
_LOCATIONS = ("text_set", "weights", "text_bank", "also")


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically; the target's folder is made if missing, but not those above it."""
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb") as original, atomic_write(target) as file:
        shutil.copyfileobj(original, file, 1 << 20)


def epoch_of(path: Path) -> int:
    """The number of epochs after which a checkpoint was saved, from its name."""
    return int(path.stem.partition("-")[2])


def load_checkpoint(path: str | Path) -> dict:
    """The state that was saved, with tensors on the CPU; code in the file is never run.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of this package.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not compare the checksums.
            if member := archive.testzip():
                raise zipfile.BadZipFile(f"checksum of {member} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} is missing: run the experiment first") from error
    except Exception as error:  # damaged bytes raise almost any exception
        reason = textwrap.shorten(str(error) or type(error).__name__, 150)
        what = f"{path} is damaged or not a checkpoint ({reason})"
        raise InputError(f"{what}: delete it, or {START_OVER}") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise InputError(f"checkpoint {path} was not written by camvid_lang: choose another folder")
    return state


def changed_settings(stored: Mapping, wanted: Mapping) -> list[str]:
    """Each setting in which a stored run differs from the wanted one, as `lr was 0.1, now 0.2`."""
    return [
        f"{key} was {stored.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if key not in _LOCATIONS and stored.get(key) != value
    ]


class Checkpoints:
    """The checkpoints of one run: `last-EPOCH.pt` (two) and `best-EPOCH.pt` (one).

    `on_saved` is called after each save (to mirror it, say).
    """

    def __init__(self, folder: str | Path, on_saved: Callable[[], object] | None = None):
        self.folder = Path(folder)
        self.on_saved = on_saved

    def files(self, kind: str = "last") -> list[Path]:
        """The files of a kind (`last` or `best`), oldest first."""
        found = [path for path in self.folder.glob(f"{kind}-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=epoch_of)

    def kept(self) -> list[Path]:
        """The last two and the best. A process that is killed may leave older ones, emptied."""
        return [*self.files("last")[-KEPT:], *self.files("best")[-1:]]

    def newest(self, kind: str = "last") -> tuple[Path, dict] | None:
        """The newest undamaged checkpoint of a kind and its state; None where files are missing.

        Raises:
            InputError: all of them are damaged.
        """
        files = self.files(kind)
        for path in reversed(files):
            try:
                return path, load_checkpoint(path)
            except InputError as error:
                print(f"note: {error}; falling back to the one before")
        if files:
            raise InputError(f"all {kind} checkpoints in {self.folder} are damaged: {START_OVER}")
        return None

    def save(self, state: Mapping, epoch: int, best: bool = False) -> Path:
        """Save the state after `epoch` epochs, then delete those it replaces.

        Raises:
            InputError: it cannot be written. What was saved before stays.
        """
        path = self.folder / f"last-{epoch:04d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                torch.save(dict(state), file)
            if best:
                copy(path, self.folder / f"best-{epoch:04d}.pt")
        except (OSError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
            reason = textwrap.shorten(str(error), 150)
            advice = "free disk space and run again to resume"
            raise InputError(f"{path} cannot be written ({reason}): {advice}") from error
        for old in {*self.files("last"), *self.files("best")}.difference(self.kept()):
            delete(old)
        if self.on_saved:
            self.on_saved()
        return path

    def clear(self) -> None:
        """Delete all checkpoints."""
        for path in (*self.files("last"), *self.files("best"), *self.folder.glob("*.part")):
            delete(path)
