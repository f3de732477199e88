"""Reading a picture collection out of a folder, a zip or a tar, without trusting it.

Nothing is ever extracted under an archive's own names: `members` hands out names and bytes, and
the caller decides where the bytes go. Links, devices, absolute names and names with `..` are
passed over, and neither the number of members nor the size of one can exhaust the machine.
"""

import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from camvid_lang.errors import InputError
from camvid_lang.pictures import one_line

__all__ = ["MAX_MEMBERS", "MAX_MEMBER_BYTES", "Member", "members"]

MAX_MEMBERS = 100_000
MAX_MEMBER_BYTES = 8 * 1024 * 1024

# What the standard library raises on damaged, encrypted or unsupported archives.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


@dataclass(frozen=True)
class Member:
    """A file in a collection: the parts of its path, and a function that reads its bytes.

    `read` raises `InputError` for damage, and for more bytes than `MAX_MEMBER_BYTES`.
    """

    parts: tuple[str, ...]
    read: Callable[[], bytes]


def _member(source: Path, name: str, opener: Callable[[], IO[bytes] | None]) -> Member | None:
    """None for a name that points outside the collection."""
    name = name.replace("\\", "/")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not parts or ".." in parts or name.startswith("/") or ":" in parts[0]:
        return None

    def read() -> bytes:
        try:
            stream = opener()
            if stream is None:
                raise InputError(one_line(f"{source}: {name}: not a plain file"))
            with stream:
                # The size an archive declares may be a lie, so what counts is what comes out.
                content = stream.read(MAX_MEMBER_BYTES + 1)
        except DAMAGE as error:
            raise InputError(one_line(f"{source}: {name}: damaged ({error})")) from None
        if len(content) > MAX_MEMBER_BYTES:
            limit = MAX_MEMBER_BYTES // 2**20
            raise InputError(one_line(f"{source}: {name}: larger than {limit} MiB"))
        return content

    return Member(parts, read)


def _in_folder(source: Path) -> Iterator[Member | None]:
    for folder, inner, names in os.walk(source):
        inner.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                name = path.relative_to(source).as_posix()
                yield _member(source, name, partial(path.open, "rb"))


def _in_zip(source: Path) -> Iterator[Member | None]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = not info.is_dir() and kind in (0, stat.S_IFREG)
            opener = partial(archive.open, info)
            yield _member(source, info.filename, opener) if plain else None


def _in_tar(source: Path) -> Iterator[Member | None]:
    with tarfile.open(source) as archive:
        for info in archive:
            opener = partial(archive.extractfile, info)
            yield _member(source, info.name, opener) if info.isreg() else None


def members(source: str | Path) -> Iterator[Member]:
    """The plain files of a folder, or of a zip or tar archive (compressed or not), one by one.

    Read a member before asking for the next one: a tar is read from front to back. Raises
    `InputError` for a source that is absent, no archive, damaged, or has over `MAX_MEMBERS` files.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(one_line(f"{source}: no such folder or archive"))
    try:
        if source.is_dir():
            found = _in_folder(source)
        elif zipfile.is_zipfile(source):
            found = _in_zip(source)
        elif tarfile.is_tarfile(source):
            found = _in_tar(source)
        else:
            raise InputError(one_line(f"{source}: not a zip or tar archive, or a damaged one"))
        for count, member in enumerate(found):
            if count >= MAX_MEMBERS:
                raise InputError(one_line(f"{source}: over {MAX_MEMBERS} files; is this CamVid?"))
            if member:
                yield member
    except DAMAGE as error:
        raise InputError(one_line(f"{source}: damaged archive ({error})")) from None
