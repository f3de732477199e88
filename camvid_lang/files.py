"""Files the way a small database treats them: written whole or not at all, read back, locked."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from camvid_lang.errors import InputError

try:
    import fcntl
except ImportError:  # Windows; folders are not locked there
    fcntl = None

__all__ = ["copy_verified", "folder_lock", "sha256", "write_verified"]

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
