"""Convert other copies of CamVid to the package's layout and the ids of its 11 classes.

A copy is recognised by the folders and files in it, at most three folders deep:

    Kaggle's      train/N.png, train_labels/N_L.png, ... in CamVid's 32 colours
    fastai's      images/N.png, labels/N_P.png with ids, named by codes.txt
    the original  701_StillsRaw_full/N.png, LabeledApproved_full/N_L.png in the same colours
    SegNet's      train/N.png, trainannot/N.png, ...: the package's own layout
"""

import json
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from camvid_lang.data.camvid import (
    FOLDERS,
    DataReport,
    Decoded,
    Pair,
    Pixels,
    decode,
    pair_files,
    raise_problems,
    read_card,
    read_image,
    read_manifest,
    read_pair,
    unclear_labels,
    verify,
    warn_of_labels,
)
from camvid_lang.data.classes import CLASSES, GROUPS, VOID
from camvid_lang.data.download import fetch
from camvid_lang.data.labels import PLAIN, ColourTable, camvid_colours
from camvid_lang.errors import InputError

KNOWN = (
    "train/ and train_labels/ (Kaggle), images/, labels/ and codes.txt (fastai), "
    "701_StillsRaw_full/ and LabeledApproved_full/ (the original), or train/ and trainannot/"
)


def _word(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


# Ids by the names of the 32 original classes and of the 11.
IDS = {_word(name): CLASSES.index(group) for group in CLASSES for name in (group, *GROUPS[group])}
IDS |= {"void": VOID, "unlabelled": VOID, "unlabeled": VOID}


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
    folders: dict[str, tuple[Path, Path]]
    ending: str = ""


def _by_folders(root: Path) -> Layout | None:
    for name, kind, ending in (("Kaggle", "_labels", "_L"), ("SegNet", "annot", "")):
        folders = {split: (root / split, root / f"{split}{kind}") for split in FOLDERS}
        if any(frames.is_dir() and labels.is_dir() for frames, labels in folders.values()):
            return Layout(name, root, folders, ending)
    pair = root / "images", root / "labels"
    if (root / "codes.txt").is_file() and pair[0].is_dir() and pair[1].is_dir():
        return Layout("fastai", root, {"": pair}, "_P")
    return None


def _original(folders: list[Path]) -> Layout | None:
    """The two folders of the original; what they are called and where they lie is up to users."""
    found = []
    for labels in folders:
        if label := next(labels.glob("*_L.png"), None):
            name = f"{label.stem.removesuffix('_L')}.png"
            found += [(x, labels) for x in folders if x != labels and (x / name).is_file()]
    if len(found) != 1:
        return None
    return Layout("original", Path(os.path.commonpath(found[0])), {"": found[0]}, "_L")


def recognise(root: Path) -> Layout | None:
    """The copy of CamVid in a folder or at most three folders deeper, None where there is none.

    Raises:
        InputError: there are several.
    """
    found: list[Layout] = []
    folders, level = [], [root]
    for _ in range(4):
        layouts = {folder: _by_folders(folder) for folder in level}
        found += filter(None, layouts.values())
        others = [folder for folder, layout in layouts.items() if not layout]
        folders += others
        inside = [path for folder in others for path in sorted(folder.glob("[!._]*"))]
        level = [path for path in inside if path.is_dir()]
        if len(level) > 100:  # such as a whole disk
            break
    if len(found) > 1:
        names = ", ".join(sorted(str(layout.root) for layout in found)[:3])
        raise InputError(f"{root}: holds {len(found)} data sets ({names}); give one of them")
    return found[0] if found else _original(folders)


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


def _read_codes(path: Path) -> ColourTable:
    """Ids of fastai's labels: (n, n, n) is the class in line n, counted from 0; 255 is void."""
    codes = {(255, 255, 255): VOID}
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, name in enumerate(filter(None, map(str.strip, lines[:256]))):
        if _word(name) not in IDS:
            raise InputError(f"{path}: {name!r} is not a class of CamVid; one a line is needed")
        codes[number, number, number] = IDS[_word(name)]
    return ColourTable.of(codes, "the ids of codes.txt, as grey")


def _find_pairs(layout: Layout, problems: list[str]) -> dict[str, Pair]:
    """{"split/NAME" of the new folder: (frame, label)}; and problems."""
    segnet = {key.split("/")[1]: key.split("/")[0] for key in read_manifest() if "annot" not in key}
    pairs: dict[str, Pair] = {}
    unlisted: Counter[str] = Counter()  # frames that SegNet's split does not have, by split
    for folder, (frames, labels) in layout.folders.items():
        for name, pair in pair_files(frames, labels, problems, layout.ending).items():
            split = folder or segnet.get(name, "train")
            if not folder and name not in segnet:
                unlisted[split] += 1
            if (other := pairs.setdefault(f"{split}/{name}", pair)) != pair:
                problems.append(f"{pair[0]}: same name as {other[0]}; keep one of them")
    if places := ", ".join(f"{count} in {split}" for split, count in unlisted.items()):
        text = f"{layout.root}: frames that are not in SegNet's split: {places}"
        warnings.warn(text, stacklevel=4)
    for split in FOLDERS:
        if not problems and not any(name.startswith(f"{split}/") for name in pairs):
            problems.append(f"{layout.root}: no frame is in the {split} set of SegNet's split")
    return pairs


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
    **ids: object,
) -> DataReport:
    """Write another copy of CamVid in the package's layout, with the ids of the 11 classes.

    Nothing is left in `dest` unless all files could be converted, and `source` is not modified.
    Frames have the split of the folders they are in. A copy without such folders (fastai's, the
    original) gets SegNet's split, with which scores are published. Frames that are not in SegNet's
    split are counted in a warning and keep their folder; without one they go to train.

    Args:
        source: folder, zip or tar in one of the layouts described at the top of this module.
        dest: new or empty folder.
        size: (height, width) to resize to; default: as they are. A label's pixel is the nearest
            one; a frame's is the mean of a block where both sides shrink by whole factors, else
            Lanczos.
        ids: `void`, `first_id` and `unknown_void` of `LabelIds`: how ids are counted in data that
            is in the package's layout already, in place of what its dataset.json says; for all
            layouts, whether unknown pixels are taken as void, with a warning that counts them.

    Returns:
        The report of `verify`. A `dataset.json` names size and copy, unless every pixel is that of
        the release.

    Raises:
        InputError: with the first eight of all problems: no copy of CamVid, missing or damaged
            files, unknown colours, other sizes.
    """
    dest = Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise InputError(f"{dest}: not an empty folder; choose another one")
    target = dest.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        ready = Path(temporary, "ready")
        layout = recognise(fetch(str(source), Path(temporary)))
        if not layout:
            raise InputError(f"{source}: not a copy of CamVid that is known: {KNOWN}")
        _write(layout, ready, size, ids)
        report = verify(ready)
        raise_problems(report.problems)
        if not report.complete:
            # Not plain "CamVid", whose scores are compared with published ones.
            name = "CamVid" if report.differences else Path(source).resolve().name
            name = f"{name} {report.size[1]}x{report.size[0]} ({layout.name})"
            (ready / "dataset.json").write_text(json.dumps({"name": name}), encoding="utf-8")
            report = replace(report, name=name)
        if dest.exists():
            target.rmdir()  # empty; Windows does not rename over it
        ready.rename(target)
    return replace(report, root=dest)


def _write(
    layout: Layout,
    ready: Path,
    size: tuple[int, int] | None,
    ids: Mapping[str, object],
) -> None:
    """Convert all files to the new folder `ready`; `InputError` with all problems."""
    problems: list[str] = []
    pairs = _find_pairs(layout, problems)
    if layout.name == "SegNet":
        card = read_card(layout.root, problems)
        if card.classes:
            raise InputError(f"{layout.root}: dataset.json gives it other classes than CamVid's")
        read_ids = partial(decode, options=card.options._replace(**ids).check())
    else:
        fastai, options = layout.name == "fastai", PLAIN._replace(**ids).check()
        colours = _read_codes(layout.root / "codes.txt") if fastai else camvid_colours()
        if not options.from_zero:
            raise InputError(
                f"{layout.root}: --void and --first-id are for ids in trainannot/, but here labels "
                f"hold {colours.origin}; leave the options out"
            )

        def read_ids(path: Path) -> Decoded:
            return Decoded(*colours.read(path, read_image(path), options.unknown_void))

    for split in FOLDERS:
        (ready / split).mkdir(parents=True)
        (ready / f"{split}annot").mkdir()
    labels: dict[Path, Pixels] = {}

    def convert_pair(name: str) -> list[str]:
        """Write one frame and its label, which is added to `labels`; or the problems."""
        frame, label = pairs[name]
        found, wrong = read_pair((frame, label), lambda path: Decoded(read_image(path)), read_ids)
        if wrong:
            return wrong
        (image, *_), (ids, unknown, shifted) = found
        labels[label] = Pixels(ids.shape, unknown, shifted)
        if size in (None, ids.shape):
            shutil.copyfile(frame, ready / f"{name}{frame.suffix.lower()}")
        else:
            image, ids = _resized(image, size), _resized(ids, size)
            Image.fromarray(image).save(ready / f"{name}.png", compress_level=1)
        Image.fromarray(ids).save(ready / f"{name.replace('/', 'annot/', 1)}.png")
        return []

    with ThreadPoolExecutor() as pool:
        results = pool.map(convert_pair, pairs)
        problems += chain.from_iterable(tqdm(results, "convert", len(pairs), unit="frame"))
    problems += unclear_labels(labels)
    sizes = sorted({f"{high}x{wide}" for high, wide in (label.shape for label in labels.values())})
    if len(sizes) > 1 and not size:
        problems.append(
            f"{layout.root}: frames are of several sizes ({', '.join(sizes)}); give one (--size)"
        )
    raise_problems(problems)
    warn_of_labels(layout.root, [*labels.values()])
