"""Convert other copies of CamVid to the package's layout and the ids of its 11 classes.

A copy is recognised by the folders and files in it, at most two folders deep:

    Kaggle's      train/N.png, train_labels/N_L.png, ...; class_dict.csv
    fastai's      images/N.png, labels/N_P.png with ids, named by codes.txt; valid.txt
    the original  701_StillsRaw_full/N.png, LabeledApproved_full/N_L.png; label_colors.txt
    SegNet's      train/N.png, trainannot/N.png, ...: the package's own layout
"""

import json
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from camvid_lang.data.camvid import (
    FOLDERS,
    SHOWN,
    SUFFIXES,
    DataReport,
    _files,
    _read,
    _read_card,
    _shifted_labels,
    read_image,
    read_manifest,
    verify,
)
from camvid_lang.data.classes import CLASSES, GROUPS, VOID
from camvid_lang.data.download import _fetch
from camvid_lang.data.labels import COLOURS, PLAIN, SHIFTED, LabelIds, parse_label
from camvid_lang.errors import InputError

__all__ = ["convert", "group_labels", "recognise"]

UNKNOWN = 255
KNOWN = (
    "train/ and train_labels/ (Kaggle), images/, labels/ and codes.txt (fastai), "
    "701_StillsRaw_full/ and LabeledApproved_full/ (the original), or train/ and trainannot/"
)


def _word(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


# Ids by the names of the 32 original classes and of the 11.
IDS = {_word(name): CLASSES.index(group) for group in CLASSES for name in (group, *GROUPS[group])}
IDS |= {"void": VOID, "unlabelled": VOID, "unlabeled": VOID}


class _Colours(NamedTuple):
    """Ids by 24-bit colour, `UNKNOWN` elsewhere, and where the colours are from."""

    table: np.ndarray
    origin: str

    @classmethod
    def of(cls, ids: dict[tuple[int, ...], int], origin: str) -> "_Colours":
        table = np.full(1 << 24, UNKNOWN, np.uint8)
        for (red, green, blue), class_id in ids.items():
            table[red << 16 | green << 8 | blue] = class_id
        return cls(table, origin)

    def ids(self, rgb: np.ndarray) -> tuple[np.ndarray, int, str]:
        """Ids, void where the colour is unknown; how many those are, and a text on the first."""
        red, green, blue = np.moveaxis(rgb.astype(np.intp), -1, 0)
        ids = self.table[red << 16 | green << 8 | blue]
        unknown = np.argwhere(ids == UNKNOWN)
        if not len(unknown):
            return ids, 0, ""
        row, column = unknown[0]
        ids[ids == UNKNOWN] = VOID
        text = f"{tuple(rgb[row, column].tolist())} at row {row}, column {column} is not one of "
        return ids, len(unknown), f"{text}{self.origin} ({len(unknown)} such pixels)"


@cache
def _original_colours() -> _Colours:
    return _Colours.of(COLOURS, "the release's 32 colours")


def group_labels(rgb: np.ndarray) -> np.ndarray:
    """Colour label of the original release with 32 classes -> uint8 (H, W) of ids 0..11.

    Args:
        rgb: uint8 (H, W, 3), 720x960 in the release.

    Returns:
        Ids as in `classes.GROUPS`; a colour of no group is void.

    Raises:
        InputError: a colour that is not one of the release's 32.

    Example:
        >>> road, void = (128, 64, 128), (0, 0, 0)
        >>> group_labels(np.array([[road, void]], dtype=np.uint8))
        array([[ 3, 11]], dtype=uint8)
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"colour label: uint8 (H, W, 3) is needed, not {rgb.dtype} {rgb.shape}")
    ids, _, unknown = _original_colours().ids(rgb)
    if unknown:
        raise InputError(f"colour label: {unknown}; use the PNG labels of the release, not resized")
    return ids


class Layout(NamedTuple):
    """A copy of CamVid.

    Attributes:
        name: whose it is.
        root: folder of the copy.
        folders: {split: (folder of frames, folder of labels)}; "" where frames have no split.
        ending: of the names of labels, as in NAME_L.png; labels may lack it.
    """

    name: str
    root: Path
    folders: dict[str, tuple[str, str]]
    ending: str = ""


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:  # cannot be read: holds nothing for us
        return []
    return [folder / name for name in names if not name.startswith((".", "__MACOSX"))]


def _by_folders(root: Path) -> Layout | None:
    inside = {folder.name for folder in _folders_in(root)}
    for name, kind, ending in (("Kaggle", "_labels", "_L"), ("SegNet", "annot", "")):
        if any({split, split + kind} <= inside for split in FOLDERS):
            return Layout(name, root, {split: (split, split + kind) for split in FOLDERS}, ending)
    numbered = (root / "codes.txt").is_file() or any((root / "labels").glob("*_P.png"))
    if {"images", "labels"} <= inside and numbered:
        return Layout("fastai", root, {"": ("images", "labels")}, "_P")
    return None


def recognise(root: Path) -> Layout | None:
    """The copy of CamVid in a folder or at most two folders deeper, None where there is none.

    Folders with very many folders in them, such as a whole disk, are not searched further.

    Raises:
        InputError: there are several.
    """
    level, folders = [root], []
    for _ in range(3):
        found = [layout for folder in level if (layout := _by_folders(folder))]
        if len(found) > 1:
            names = ", ".join(str(layout.root) for layout in found[:3])
            raise InputError(f"{root}: holds {len(found)} data sets ({names}); give one of them")
        if found:
            return found[0]
        folders += level
        level = [inner for folder in level for inner in _folders_in(folder)]
        level = level if len(level) < 100 else []
    # The original is two archives; how their folders are called and nested is up to the user.
    folders += level
    labels = {folder: next(folder.glob("*_L.png"), None) for folder in folders}
    labels = {folder: path.stem.removesuffix("_L") for folder, path in labels.items() if path}
    if len(labels) != 1:
        return None
    ((folder, stem),) = labels.items()
    frames = [
        f for f in folders if f != folder and any((f / (stem + s)).is_file() for s in SUFFIXES)
    ]
    if len(frames) != 1:
        return None
    common = Path(os.path.commonpath([folder, *frames]))
    pair = tuple(str(path.relative_to(common)) for path in (*frames, folder))
    return Layout("original", common, {"": pair}, "_L")


def refuse_other_layouts(root: Path) -> None:
    """`InputError` that names the command or the folder to give, where that is known."""
    layout = recognise(root)
    if layout and layout.name != "SegNet":
        raise InputError(
            f"{root}: CamVid in the layout of {layout.name}; convert it with "
            f"`camvid-lang data convert {root} DEST` and give DEST"
        )
    if layout and layout.root != root:
        raise InputError(f"{root}: the data set is in {layout.root}; give that folder")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()


def _read_colours(layout: Layout) -> _Colours:
    if layout.name == "fastai":
        path = layout.root / "codes.txt"
        if not path.is_file():
            raise InputError(f"{path} is missing: it names the ids of the labels; add it")
        names = [line.strip() for line in _lines(path) if line.strip()]
        unknown = [name for name in names if _word(name) not in IDS]
        if unknown or not 0 < len(names) < 256:
            what = f"unknown: {', '.join(unknown[:SHOWN])}" if unknown else f"{len(names)} names"
            raise InputError(
                f"{path}: {what}; one class of CamVid a line is needed, as in fastai's"
            )
        ids = {(number,) * 3: IDS[_word(name)] for number, name in enumerate(names)}
        return _Colours.of({(255,) * 3: VOID} | ids, f"the {len(names)} ids of codes.txt, as grey")
    for name in ("class_dict.csv", "label_colors.txt"):
        path = layout.root / name
        if path.is_file():
            return _Colours.of(_read_colour_file(path), f"the colours of {name}")
    return _original_colours()


def _read_colour_file(path: Path) -> dict[tuple[int, ...], int]:
    """{(red, green, blue): id} of lines like "Sky,128,128,128" or "128 128 128<tab>Sky"."""
    ids: dict[tuple[int, ...], int] = {}
    for number, line in enumerate(_lines(path), 1):
        rgb = tuple(map(int, re.findall(r"-?\d+", line, re.ASCII)))
        if not line.strip() or (not rgb and not ids):  # a header
            continue
        class_id = IDS.get(_word(line))
        if len(rgb) != 3 or min(rgb) < 0 or max(rgb) > 255 or class_id is None:
            what = "is not a class of CamVid with a colour of three numbers in 0..255"
            raise InputError(f"{path}: line {number}, {line.strip()!r}, {what}; correct it")
        if ids.setdefault(rgb, class_id) != class_id:
            raise InputError(f"{path}: line {number}: {rgb} is also the colour of another class")
    if not ids:
        raise InputError(f"{path}: holds no colours; delete it to use those of the release")
    return ids


def _pairs(
    layout: Layout, segnet_split: bool, notes: list[str]
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """{"split/NAME" of DEST: (frame, label)}; and problems."""
    segnet = {key.split("/")[1]: key.split("/")[0] for key in read_manifest() if "annot" not in key}
    segnet_split = segnet_split or "" in layout.folders
    valid = layout.root / "valid.txt"
    held_out = {Path(line.strip()).stem for line in _lines(valid)} if valid.is_file() else ()
    pairs: dict[str, tuple[Path, Path]] = {}
    problems: list[str] = []
    others: Counter[str] = Counter()
    for folder, (of_frames, of_labels) in layout.folders.items():
        frames = _files(layout.root / of_frames, SUFFIXES, problems)
        labels = _files(layout.root / of_labels, (".png",), problems)
        if not frames or not labels:  # the folder is the problem, not each file
            continue
        for stem, frame in frames.items():
            label = labels.pop(stem + layout.ending, None) or labels.pop(stem, None)
            split = folder or ("val" if stem in held_out else "train")
            if segnet_split and stem not in segnet:
                others[split] += 1
            elif segnet_split:
                split = segnet[stem]
            if label is None:
                where = layout.root / of_labels / f"{stem}{layout.ending}.png"
                problems.append(f"{frame}: no label {where}")
            elif f"{split}/{stem}" in pairs:
                other = pairs[f"{split}/{stem}"][0]
                problems.append(f"{frame}: same name as {other}; keep one of them")
            else:
                pairs[f"{split}/{stem}"] = frame, label
        where = layout.root / of_frames
        problems += [f"{label}: no frame in {where}" for label in labels.values()]
    if others:
        places = ", ".join(f"{count} in {split}" for split, count in sorted(others.items()))
        notes.append(f"{layout.root}: frames that are not in SegNet's split: {places}")
    return pairs, problems


def _shifted(pairs: dict[str, tuple[Path, Path]], problems: list[str]) -> set[Path]:
    """Labels of the release that count ids from 1 with 0 = void, and others in their folder."""

    def is_shifted(path: Path) -> bool | None:
        try:
            return _read(path, PLAIN)[2]
        except InputError:  # is reported when the label is converted
            return None

    labels = {f"{path.parent.name}/{path.stem}": path for _, path in pairs.values()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        shifted = dict(zip(labels.values(), pool.map(is_shifted, labels.values()), strict=True))
    try:
        return {labels[key] for key in _shifted_labels(labels, shifted)}
    except InputError as error:
        problems.append(str(error))
        return set()


def _resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame (H, W, 3) or label (H, W) in `size`, (height, width).

    Frames: the mean of each block where both sides shrink by whole factors (no ringing), else
    Lanczos (no aliasing at any factor). Labels: the pixel nearest to the centre.
    """
    whole = array.shape[0] % size[0] == array.shape[1] % size[1] == 0
    method = Image.Resampling.BOX if whole else Image.Resampling.LANCZOS
    if array.ndim == 2:
        method = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size[::-1], method))


def convert(
    source: str | Path,
    dest: str | Path,
    size: tuple[int, int] | None = None,
    *,
    segnet_split: bool = False,
    options: LabelIds | None = None,
) -> DataReport:
    """Write another copy of CamVid in the package's layout, with the ids of the 11 classes.

    Nothing is left in `dest` unless all files could be converted, and `source` is not modified.
    Frames have the split of the folders they are in. A copy without such folders (fastai's, the
    original) gets SegNet's split, with which scores are published, and not that of valid.txt.
    Frames that are not in SegNet's split are counted in a warning and keep their folder; without
    one they go to val if valid.txt has them, else to train.

    Args:
        source: folder, zip or tar in one of the layouts described at the top of this module.
        dest: new or empty folder.
        size: (height, width) to resize to; default: as they are. A label's pixel is the nearest
            one; a frame's is the mean of a block where both sides shrink by whole factors, else
            Lanczos.
        segnet_split: use SegNet's split also for a copy that has folders.
        options: how ids are counted in data that is in the package's layout already (default: as
            its dataset.json says); for all layouts, whether pixels of unknown colours are taken as
            void, with a warning that counts them.

    Returns:
        The report of `verify`. A `dataset.json` names size and copy, unless every pixel is that of
        the release.

    Raises:
        InputError: with the first eight of all problems: no copy of CamVid, missing or damaged
            files, unknown colours, other sizes.
    """
    source, dest = str(source), Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise InputError(f"{dest}: not an empty folder; choose another one")
    target, notes = dest.resolve(), []
    if Path(source).resolve() in target.parents:
        raise InputError(f"{dest}: is in {source}, which is not to be modified; choose another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder, ready = _fetch(source, None, Path(temporary)), Path(temporary, "ready")
        # Messages name the files of an archive as if it were a folder.
        shown = source if str(folder).startswith(temporary) else str(folder)
        try:
            layout = recognise(folder)
            if not layout:
                raise InputError(f"{folder}: not a copy of CamVid that is known: {KNOWN}")
            report = _write(layout, ready, size, segnet_split, options, notes)
        except InputError as error:
            text = str(error).replace(str(folder), shown)
            raise InputError(f"{text}; nothing was converted") from error
        if not report.complete:
            # Not plain "CamVid", whose scores are compared with published ones.
            name = "CamVid" if report.differences else Path(source).resolve().name
            name = f"{name} {report.size[1]}x{report.size[0]} ({layout.name})"
            (ready / "dataset.json").write_text(json.dumps({"name": name}), encoding="utf-8")
            report = replace(report, name=name)
        if dest.exists():
            target.rmdir()  # empty; Windows does not rename over it
        ready.rename(target)
    for note in notes:
        warnings.warn(note.replace(str(folder), shown), stacklevel=2)
    return replace(report, root=dest)


def _write(
    layout: Layout,
    ready: Path,
    size: tuple[int, int] | None,
    segnet_split: bool,
    options: LabelIds | None,
    notes: list[str],
) -> DataReport:
    """Convert all files to the new folder `ready`; `InputError` with all problems."""
    pairs, problems = _pairs(layout, segnet_split, notes)
    if layout.name == "SegNet":
        colours, options = None, options or _read_card(layout.root, problems)[1]
        counts_plainly = options._replace(unknown_void=False) == PLAIN
        shifted = _shifted(pairs, problems) if counts_plainly else set()
        if shifted:
            notes.append(f"{len(shifted)} labels count ids from 1 with 0 = void: read as such")
    else:
        colours, options = _read_colours(layout), options or PLAIN
        if options._replace(unknown_void=False) != PLAIN:
            raise InputError(
                f"{layout.root}: --void and --first-id are for ids in trainannot/, but here labels "
                f"hold {colours.origin}; leave the options out"
            )
    for split in FOLDERS:
        (ready / split).mkdir(parents=True)
        (ready / f"{split}annot").mkdir()
        if not problems and not any(key.startswith(f"{split}/") for key in pairs):
            problems.append(f"{layout.root}: no frame is in the {split} set of SegNet's split")
    sizes: dict[Path, tuple[int, int]] = {}
    unknown: dict[Path, tuple[int, str]] = {}

    def read_ids(path: Path) -> np.ndarray:
        if colours is None:
            counted = SHIFTED._replace(unknown_void=options.unknown_void)
            ids, count = parse_label(path, counted if path in shifted else options)
            text = f"{count} such pixels"
        else:
            ids, count, text = colours.ids(read_image(path))
        if count and not options.unknown_void:
            raise InputError(f"{path}: {text}; correct them, or take them as void (--unknown-void)")
        if count:
            unknown[path] = count, text
        return ids

    def convert_pair(item: tuple[str, tuple[Path, Path]]) -> list[str]:
        (split, name), (frame, label) = item[0].split("/"), item[1]
        wrong, arrays = [], []
        for path, read in ((frame, read_image), (label, read_ids)):
            try:
                arrays.append(read(path))
            except InputError as error:
                wrong.append(str(error))
        if wrong:
            return wrong
        image, ids = arrays
        sizes[frame] = height_width = image.shape[:2]
        if ids.shape != height_width:
            return [f"{label}: label is {ids.shape}, its frame {height_width}"]
        if size in (None, height_width):
            shutil.copyfile(frame, ready / split / f"{name}{frame.suffix.lower()}")
        else:
            resized = Image.fromarray(_resized(image, size))
            resized.save(ready / split / f"{name}.png", compress_level=1)
            ids = _resized(ids, size)
        Image.fromarray(ids).save(ready / f"{split}annot" / f"{name}.png")
        return []

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for wrong in tqdm(
            pool.map(convert_pair, pairs.items()), "convert", len(pairs), unit="frame"
        ):
            problems += wrong
    (usual, _), *others = Counter(sizes.values()).most_common() or [(None, 0)]
    if others and size is None:
        problems += [
            f"{path}: frame is {found}, most are {usual}; resize all with --size"
            for path, found in sorted(sizes.items())
            if found != usual
        ]
    if usual and size and abs(usual[0] * size[1] / (usual[1] * size[0]) - 1) > 0.01:
        was = f"{usual[1]}x{usual[0]}"
        notes.append(
            f"frames of {was} are distorted to {size[1]}x{size[0]}, of another aspect ratio"
        )
    if unknown:
        path = min(unknown)
        notes.append(
            f"{sum(count for count, _ in unknown.values())} pixels of unknown value in "
            f"{len(unknown)} labels are void now; the first: {path}: {unknown[path][1]}"
        )
    report = None if problems else verify(ready)
    problems += report.problems if report else ()
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{'; '.join(problems[:SHOWN])}{more}")
    return report
