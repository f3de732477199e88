"""Files the way a small database treats them: written whole or not at all, read back, locked.

Checkpoints: written whole or not at all, verified, and read without running code from a file.

A run's checkpoints lie in one folder as `last-STEP-DIGEST.pt` and `best-STEP-DIGEST.pt`. DIGEST is
the beginning of the content's SHA-256, as in the file names of torch.hub, so that a file can be
checked, here and where it was copied to, without anything beside it."""

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from camvid_lang.errors import InputError

__all__ = [
    "KINDS",
    "Checkpoints",
    "copy_verified",
    "folder_lock",
    "is_intact",
    "load_checkpoint",
    "random_states",
    "refuse_changed_settings",
    "save_checkpoint",
    "set_random_states",
    "sha256",
    "write_verified",
]

try:
    import fcntl
except ImportError:  # Windows; folders are not locked there
    fcntl = None


BLOCK = 1 << 20
LOCK = ".lock"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _Hashing:
    """A file that hashes what is written to it, so that the content is never held twice."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_verified(
    path: str | Path,
    write: Callable[[BinaryIO], object],
    rename: Callable[[str], str] | None = None,
) -> Path:
    """Write a temporary, flush it to the disk, read it back, and only then give it its name.

    Args:
        path: where the file belongs; `path` + ".part" is written first.
        write: puts the content into an open file.
        rename: from the content's SHA-256 to the final name, in place of that of `path`.

    Returns:
        The file's path.

    Raises:
        OSError: it cannot be written, or what is read back differs. The temporary is removed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            hashing = _Hashing(file)
            try:
                write(hashing)
            except RuntimeError as error:  # torch.save's own, which hides that of a full disk
                raise hashing.failure or error from None
            file.flush()
            os.fsync(file.fileno())
        digest = hashing.digest.hexdigest()
        if sha256(temporary) != digest:
            raise OSError(f"{temporary}: what was read back differs from what was written")
        target = path.with_name(rename(digest)) if rename else path
        os.replace(temporary, target)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return target


def copy_verified(source: Path, target: Path) -> None:
    """Copy by way of a temporary, and read back what then bears the name.

    Raises:
        OSError: it cannot be copied, or the copy differs; a copy that differs is removed.
    """
    expected = []

    def write(file: BinaryIO) -> None:
        with open(source, "rb") as original:
            shutil.copyfileobj(original, file, BLOCK)
        expected.append(sha256(source))

    write_verified(target, write)
    if sha256(target) != expected[0]:
        with contextlib.suppress(OSError):
            target.unlink()
        raise OSError(f"{target}: the copy differs from {source}")


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk too, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process alone; made if missing.

    The system lets go of the lock when the process ends, however it ends.

    Raises:
        InputError: another process holds it, or the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / LOCK, "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(
            f"folder {folder} cannot be written to ({error.strerror}): choose another --out"
        ) from error
    with handle:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read(20).strip() or "unknown"
                raise InputError(
                    f"folder {folder} is in use by another run (process {owner}): wait for it, "
                    "or choose another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


# Where things lie may change between two sessions; what is learned does not depend on it.
_PLACES = ("weights", "text_bank")
KINDS = ("last", "best")
_NAME = re.compile(r"(last|best)-(\d+)-([0-9a-f]{16})\.pt")
KEPT = 2


def save_checkpoint(path: str | Path, state: Mapping) -> Path:
    """Write `state` (tensors, numbers, texts, lists, dictionaries), verified, under `path`.

    A reader sees the old file or the new one, never a half.

    Raises:
        OSError: it cannot be written, or reads back otherwise.
    """
    return write_verified(path, lambda file: torch.save(dict(state), file))


def load_checkpoint(path: str | Path) -> dict:
    """Read what was saved; tensors arrive on the CPU. A digest in the name is checked first.

    Raises:
        InputError: no such file, damaged, or holding anything but plain data.
    """
    path = Path(path)
    damaged = (
        f"checkpoint {path} is damaged or no checkpoint: delete it, or start over with --fresh"
    )
    try:
        whole = is_intact(path)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist: run the experiment first") from error
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read ({error.strerror})") from error
    if not whole:
        raise InputError(damaged)
    try:
        with warnings.catch_warnings():  # of a crafted file; what is no tensor is refused anyway
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load answers a damaged file with almost any exception
        raise InputError(damaged) from error
    if not isinstance(state, dict) or not {"settings", "model", "epoch"} <= state.keys():
        raise InputError(f"checkpoint {path} was not written by camvid_lang: choose another --out")
    if not (isinstance(state["settings"], dict) and isinstance(state["model"], dict)):
        raise InputError(damaged)
    return state


def is_intact(path: Path) -> bool:
    """Whether a file's content has the digest that its name tells, if it tells one.

    Raises:
        OSError: it cannot be read, which says nothing about its content.
    """
    content, named = sha256(path), _NAME.fullmatch(path.name)
    return named is None or content.startswith(named[3])


def refuse_changed_settings(path: str | Path, stored: Mapping, wanted: Mapping) -> None:
    """Raise `InputError` naming every setting in which a checkpoint differs from the run."""
    if stored.get("name") != wanted["name"]:
        raise InputError(
            f"{path} is of experiment '{stored.get('name')}', not '{wanted['name']}': "
            "choose another --out, or start afresh with --fresh"
        )
    changed = [
        f"{key} was {stored.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if key not in _PLACES and stored.get(key) != value
    ]
    if changed:
        raise InputError(
            f"{path} was made with other settings ({'; '.join(changed)}): "
            "choose another --out, or start afresh with --fresh"
        )


class Checkpoints:
    """The checkpoints of one run: the last two, and the best by a score that the caller knows.

    Args:
        folder: made when the first is saved.
        on_saved: called after each save (to mirror it, say).
    """

    def __init__(self, folder: str | Path, on_saved: Callable[[], object] | None = None):
        self.folder = Path(folder)
        self.on_saved = on_saved
        self._good: list[Path] = []  # known to be readable, oldest first

    def files(self, kind: str = "last") -> list[Path]:
        """The files of a kind (`last` or `best`), by step, oldest first."""
        found = [path for path in self.folder.glob("*.pt") if _NAME.fullmatch(path.name)]
        return sorted(
            (path for path in found if path.name.startswith(f"{kind}-")),
            key=lambda path: (step_of(path), path.name),
        )

    def newest(self, kind: str = "last") -> tuple[Path, dict] | None:
        """The newest readable checkpoint of a kind and its state; None where there is none.

        Damaged ones are told and passed over.

        Raises:
            InputError: there are checkpoints, and not one can be read.
        """
        candidates = self.files(kind)[::-1]
        for path in candidates:
            try:
                state = load_checkpoint(path)
            except InputError as error:
                print(f"note: {str(error).split(':')[0]}; going back to the one before")
                continue
            self._good = [path]
            return path, state
        if candidates:
            raise InputError(
                f"none of the {len(candidates)} checkpoint(s) in {self.folder} can be read: "
                "start afresh with --fresh"
            )
        return None

    def save(self, state: Mapping, step: int, best: bool = False) -> Path:
        """Save the state after `step` steps; older ones go once this one is safe.

        Raises:
            InputError: it cannot be written. What was saved before stays.
        """
        try:
            path = self._write(state, step)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(self._good) < KEPT:
                raise self._unwritable(step, error) from error
            # Room for the new one is where the oldest lies; one good checkpoint stays all along.
            self._good.pop(0).unlink(missing_ok=True)
            try:
                path = self._write(state, step)
            except OSError as again:
                raise self._unwritable(step, again) from again
        self._good = [*self._good, path][-KEPT:]
        if best:
            self._keep_as_best(path)
        for old in self.files():
            if old not in self._good:
                old.unlink(missing_ok=True)
        if self.on_saved:
            self.on_saved()
        return path

    def clear(self) -> None:
        """Delete all checkpoints."""
        for path in (*self.files("last"), *self.files("best"), *self.folder.glob("*.part")):
            path.unlink(missing_ok=True)
        self._good = []

    def _write(self, state: Mapping, step: int) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        for rest in self.folder.glob("*.part"):  # of a process that was killed
            rest.unlink(missing_ok=True)
        return write_verified(
            self.folder / "last.pt",
            lambda file: torch.save(dict(state), file),
            lambda digest: f"last-{step:08d}-{digest[:16]}.pt",
        )

    def _keep_as_best(self, path: Path) -> None:
        best = path.with_name(path.name.replace("last-", "best-", 1))
        temporary = best.with_name(f"{best.name}.part")
        try:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, temporary)
            os.replace(temporary, best)
        except OSError as error:
            print(f"note: the best checkpoint was not kept ({error.strerror or error})")
            return
        for old in self.files("best"):
            if old != best:
                old.unlink(missing_ok=True)

    def _unwritable(self, step: int, error: OSError) -> InputError:
        free = "unknown"
        with contextlib.suppress(OSError):
            free = f"{shutil.disk_usage(self.folder).free / 1e6:.0f} MB"
        kept = f"goes on from {self._good[-1].name}" if self._good else "starts again"
        reason = error.strerror or str(error)
        return InputError(
            f"checkpoint of step {step} cannot be written to {self.folder} ({reason}; {free} "
            f"free): make room, and the same command {kept}"
        )


def step_of(path: Path) -> int:
    """The number of training steps that a checkpoint's name tells."""
    found = _NAME.fullmatch(path.name)
    return int(found[2]) if found else -1


def random_states(device: torch.device) -> dict:
    """The state of every generator that training could draw from, as plain data."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping, device: torch.device) -> None:
    """Inverse of `random_states`; CUDA's is set where the run goes on on CUDA.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: no such states.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
