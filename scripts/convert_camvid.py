"""Convert other copies of CamVid to the package's layout: grey PNG labels with ids 0..10, 11 void.

    python scripts/convert_camvid.py SRC DEST [--size WxH] [--first-id N] [--void N]

SRC is a folder, a zip or tar archive, or the address of one; DEST is a new or empty folder. The
copy is recognised by its folders, at most three levels deep:

    Kaggle    train/N.png, train_labels/N_L.png, ... in CamVid's 32 colours
    fastai    images/N.png, labels/N_P.png with line numbers of codes.txt, from 0
    original  701_StillsRaw_full/N.png, LabeledApproved_full/N_L.png in the same colours
    SegNet    train/N.png, trainannot/N.png, ...: the package's layout, with ids in grey or in a
              palette of greys in order (counted as dataset.json or --first-id and --void say), or
              with CamVid's colours in RGB or in a palette

Frames keep the split of their folders; without such folders (fastai, original) they get SegNet's,
and frames that are not in it go to train. Labels that can be read in two ways are rejected.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from camvid_lang.data import camvid
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.data.download import fetch
from camvid_lang.data.labels import (
    CLASSES_KEY,
    open_image,
    read_dataset_info,
    read_label,
    shift_hint,
)
from camvid_lang.errors import InputError

# The 32 classes of the original release (Brostow et al., 2008) with their colours, RGB in 0..255,
# by the class that they count as; and two colours that only SegNet's demo has.
GROUPS = {
    "sky": "Sky 128 128 128",
    "building": "Building 128 0 0, Archway 192 0 128, Bridge 0 128 64, Tunnel 64 0 64, "
    "Wall 64 192 0",
    "pole": "Column_Pole 192 192 128, TrafficCone 0 0 64",
    "road": "Road 128 64 128, LaneMkgsDriv 128 0 192, LaneMkgsNonDriv 192 0 64, (SegNet) 255 69 0",
    "pavement": "Sidewalk 0 0 192, ParkingBlock 64 192 128, RoadShoulder 128 128 192, "
    "(SegNet) 60 40 222",
    "tree": "Tree 128 128 0, VegetationMisc 192 192 0",
    "sign": "SignSymbol 192 128 128, Misc_Text 128 128 64, TrafficLight 0 64 64",
    "fence": "Fence 64 64 128",
    "car": "Car 64 0 128, OtherMoving 128 64 64, SUVPickupTruck 64 128 192, Train 192 64 128, "
    "Truck_Bus 192 128 192",
    "pedestrian": "Pedestrian 64 64 0, Animal 64 128 64, CartLuggagePram 64 0 192, "
    "Child 192 128 64",
    "bicyclist": "Bicyclist 0 128 192, MotorcycleScooter 192 0 192",
    "void": "Void 0 0 0",
}
IDS, COLOURS = {}, {}  # ids by name, in lower case, and by colour
for class_id, group in enumerate(GROUPS[name] for name in (*CLASSES, "void")):
    for member, *colour in map(str.split, group.split(", ")):
        IDS[member.lower()] = COLOURS[tuple(map(int, colour))] = class_id
# From so many colours on, a palette without other colours is taken as CamVid's. Ids are often saved
# in PASCAL VOC's palette, whose first twelve share two with CamVid's: dark red and olive.
CAMVIDS, UNKNOWN = 3, 254
GREY = 0x010101  # a colour as one number is grey if this divides it
SKY = 128 * GREY  # the only grey of CamVid's colours next to black
AS_GREY = "save them as Image.fromarray(np.array(Image.open(path)){}).save(path)"
Array, Size = np.ndarray, tuple[int, int]


class Layout(NamedTuple):
    """Folders of a copy of CamVid, with {} for the split; names of labels may lack `ending`."""

    name: str
    mark: str  # the file or folder that it is recognised by
    frames: str
    labels: str
    ending: str = ""


LAYOUTS = (
    Layout("Kaggle", "train_labels", "{}", "{}_labels", "_L"),
    Layout("fastai", "codes.txt", "images", "labels", "_P"),
    Layout("original", "LabeledApproved_full", "701_StillsRaw_full", "LabeledApproved_full", "_L"),
    Layout("SegNet", "trainannot", "{}", "{}annot"),
)


def tables(layout: Layout, root: Path, first_id: int | None, void: int | None) -> list:
    """Ids by value and by colour (65536 R + 256 G + B); None for what the layout does not hold."""
    values, colours = np.full(256, UNKNOWN, np.uint8), np.full(1 << 24, UNKNOWN, np.uint8)
    for (red, green, blue), class_id in COLOURS.items():
        colours[red << 16 | green << 8 | blue] = class_id
    if layout.name == "SegNet":
        ids = (
            read_dataset_info(root).ids if first_id is None else (first_id, first_id + NUM_CLASSES)
        )
        first, void = ids[0], ids[1] if void is None else void
        if not (0 <= first <= 200 and 0 <= void <= 255) or 0 <= void - first < NUM_CLASSES:
            text = f"first id {first}, void {void}: out of range, or void is the id of a class"
            raise InputError(f"{text}; for ids from 1 give --first-id 1 --void 0")
        values[first : first + NUM_CLASSES] = range(NUM_CLASSES)
        values[[void, 255]] = VOID
        return [values, colours]
    if (first_id, void) != (None, None):
        raise InputError(f"{layout.name}'s labels need no --first-id and --void; leave them out")
    if layout.name != "fastai":
        return [None, colours]
    text = (root / "codes.txt").read_text(encoding="utf-8-sig", errors="replace")
    names = text.split()[:255]
    if odd := [name for name in names if name.lower() not in IDS]:
        raise InputError(f"{root / 'codes.txt'}: {odd[0]!r} is not one of CamVid's 32 classes")
    values[: len(names)], values[255] = [IDS[name.lower()] for name in names], VOID
    return [values, None]


def open_label(path: Path) -> Image.Image:
    """The decoded image; `InputError` for what cannot hold ids or colours without loss."""
    with open_image(path) as image:
        depth = path.read_bytes()[24:25]  # Pillow stretches grey values of fewer bits to 0..255
        image.load()
        modes = ("L" if depth == b"\x08" else "P", "P", "RGB", "RGBA")
        if image.format != "PNG" or image.mode not in modes:
            raise InputError(f"a {image.format} of mode {image.mode}; save it as a grey PNG of ids")
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise InputError("some pixels are transparent; save it without transparency")
        if image.mode == "P" and image.getextrema()[1] >= len(palette_of(image)):
            raise InputError("some indices are not in the palette; save it as a grey PNG of ids")
    return image


def palette_of(image: Image.Image) -> list[tuple[int, ...]]:
    channels = image.getpalette("RGB")
    return list(zip(channels[::3], channels[1::3], channels[2::3], strict=True))


def has_numbers(image: Image.Image) -> bool:
    """Whether it is a grey image, or its palette is of greys in order."""
    palette = palette_of(image) if image.mode == "P" else []  # one of black alone can mean void
    return image.mode == "L" or palette == [(i, i, i) for i in range(max(2, len(palette)))]


def read_ids(path: Path, values: Array | None, colours: Array | None) -> Array:
    """Ids (H, W) of a label, by the tables of what its layout can hold."""
    image = open_label(path)
    if values is not None and CLASSES_KEY in image.info:
        return read_label(path)
    if values is not None and has_numbers(image):
        codes = np.array(image)
        ids, name, fix = values[codes], "value {0}", "correct it, or see --first-id and --void"
    elif colours is None:
        raise InputError(f"{path}: a PNG of mode {image.mode}, but the layout has ids in grey")
    else:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.int32), 2, 0)
        codes = red << 16 | green << 8 | blue
        if values is not None and (reason := ambiguity(image, codes, values, colours)):
            raise InputError(f"{path}: {reason}")
        ids, name, fix = colours[codes], "colour ({1}, {2}, {3})", "correct it"
    if len(unknown := np.argwhere(ids == UNKNOWN)):
        row, column = unknown[0].tolist()
        code = int(codes[row, column])
        name = name.format(code, code >> 16, code >> 8 & 255, code & 255)
        place = f"row {row}, column {column} ({len(unknown)} such pixels)"
        raise InputError(f"{path}: {name} at {place} stands for no class; {fix}")
    return ids


def ambiguity(image: Image.Image, codes: Array, values: Array, colours: Array) -> str:
    """Why an image with colours is not surely meant to show CamVid's, and how to fix it; or ""."""
    if image.mode == "P":
        hues = {colour for colour in palette_of(image) if len({*colour}) > 1}
        advice = f"if its indices are ids, {AS_GREY.format('')}; if it shows CamVid's colours, "
        advice += "with .convert('RGB') in place of np.array"
        if foreign := sorted(hues - COLOURS.keys()):  # also where no pixel has it
            return f"the palette has {foreign[0]}, which is not one of CamVid's colours; {advice}"
        if len(hues) < CAMVIDS and (values[np.array(image)] != colours[codes]).any():
            return f"the palette does not show whether indices or colours count; {advice}"
    elif not (codes % GREY).any() and {*np.unique(codes)} not in ({SKY}, {0, SKY}):
        return f"RGB, but grey or black alone; if R = G = B are ids, {AS_GREY.format('[..., 0]')}"
    return ""


def recognise(root: Path) -> tuple[Layout, Path]:
    """The layout and folder of the copy of CamVid in a folder, at most three levels deep."""
    found = [
        (layout, mark.parent)
        for layout in LAYOUTS
        for depth in range(4)
        for mark in sorted(root.glob("*/" * depth + layout.mark))
        if not any(part[0] in "._" for part in mark.relative_to(root).parts)
    ]
    # A copy may hold the result of an earlier conversion.
    found = [x for x in found if not any(folder in x[1].parents for _, folder in found)]
    if len(found) > 1:
        names = ", ".join(sorted(str(folder) for _, folder in found)[:3])
        raise InputError(f"{root}: holds {len(found)} data sets ({names}); give one of them")
    if not found:
        marks = ", ".join(layout.mark for layout in LAYOUTS)
        raise InputError(f"{root}: not a copy of CamVid, which has one of {marks}")
    return found[0]


def find_pairs(layout: Layout, root: Path, problems: list[str]) -> dict[str, camvid.Pair]:
    """{"split/NAME" of the new folder: (frame, label)}; and problems."""
    segnet = dict(key.split("/")[::-1] for key in camvid.read_manifest() if "annot/" not in key)
    pairs = {}
    for split in camvid.FOLDERS if layout.frames == "{}" else ("",):
        frames, folder = (root / x.format(split) for x in (layout.frames, layout.labels))
        labels = {}
        for name, path in camvid.image_files(folder, (".png",), problems).items():
            if (other := labels.setdefault(name.removesuffix(layout.ending), path)) != path:
                problems.append(f"{path}: same frame as {other.name}; keep one of them")
        for name, frame in camvid.image_files(frames, camvid.SUFFIXES, problems).items():
            if label := labels.pop(name, None):
                pairs[f"{split or segnet.get(name, 'train')}/{name}"] = frame, label
            else:
                problems.append(f"{frame}: no label {folder / name}{layout.ending}.png")
        problems += [f"{label}: no frame in {frames}" for label in labels.values()]
    for split in camvid.FOLDERS:
        if not problems and not any(name.startswith(f"{split}/") for name in pairs):
            problems.append(f"{root}: no frame is in the {split} set of SegNet's split")
    return pairs


def resized(array: Array, size: Size) -> Array:
    """A label in `size` by the nearest pixels; a frame by means of blocks, else by Lanczos."""
    whole = array.shape[0] % size[0] == array.shape[1] % size[1] == 0  # blocks do not ring
    method = "NEAREST" if array.ndim == 2 else "BOX" if whole else "LANCZOS"
    return np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling[method]))


def write(layout: Layout, root: Path, ready: Path, size: Size | None, read: Callable) -> Array:
    """Convert all files to the new folder `ready`; the pixels of each id (12,)."""
    problems: list[str] = []
    pairs = find_pairs(layout, root, problems)
    for split in camvid.FOLDERS:
        (ready / split).mkdir(parents=True)
        (ready / f"{split}annot").mkdir()

    def convert_pair(name: str) -> tuple[Size, Array] | str:
        """Size of the frame and pixels of each id; or the problem."""
        frame, label = pairs[name]
        try:
            image, ids = camvid.read_image(frame), read(label)
        except InputError as error:
            return str(error)
        if image.shape[:2] != ids.shape:
            return f"{label}: label is {ids.shape}, its frame {image.shape[:2]}"
        if size in (None, ids.shape):
            shutil.copyfile(frame, ready / f"{name}{frame.suffix.lower()}")
        else:
            image, ids = resized(image, size), resized(ids, size)
            Image.fromarray(image).save(ready / f"{name}.png", compress_level=1)
        Image.fromarray(ids).save(ready / f"{name.replace('/', 'annot/', 1)}.png")
        return ids.shape, np.bincount(ids.ravel(), minlength=VOID + 1)

    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(convert_pair, pairs), "convert", len(pairs), unit="frame"))
    problems += [x for x in found if isinstance(x, str)]
    sizes = {x[0] for x in found if not isinstance(x, str)}
    if len(sizes) > 1:
        text = ", ".join(f"{wide}x{high}" for high, wide in sorted(sizes))
        problems.append(f"frames are of several sizes ({text}); give one (--size WxH)")
    camvid.raise_problems(problems)
    return sum(counts for _, counts in found)


def convert(
    source: str | Path,
    dest: str | Path,
    size: Size | None = None,
    first_id: int | None = None,
    void: int | None = None,
) -> camvid.DataReport:
    """Convert as described at the top of this file; `size` is (height, width).

    `source` is not modified, and nothing is left in `dest` unless all files could be converted. A
    dataset.json names the copy and its size, unless every pixel is that of the release.
    """
    dest = Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise InputError(f"{dest}: not an empty folder; choose another one")
    target = dest.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        ready = Path(temporary, "ready")
        layout, root = recognise(fetch(str(source), Path(temporary)))
        both, is_segnet = tables(layout, root, first_id, void), layout.name == "SegNet"
        counts = write(layout, root, ready, size, lambda path: read_ids(path, *both))
        if is_segnet and first_id is None and shift_hint(counts):
            advice = "if they count from 1 give --first-id 1 --void 0, otherwise --first-id 0"
            raise InputError(f"{root}: ids look shifted by one; {advice}")
        report = camvid.verify(ready)
        camvid.raise_problems(report.problems)
        if not report.complete:
            # Not plain "CamVid", whose scores are compared with published ones.
            name = "CamVid" if report.name == "CamVid" else Path(source).resolve().name
            name = f"{name} {report.size[1]}x{report.size[0]} ({layout.name})"
            name = (is_segnet and read_dataset_info(root).name) or name
            (ready / "dataset.json").write_text(json.dumps({"name": name}), encoding="utf-8")
            report = replace(report, name=name)
        if dest.exists():
            target.rmdir()  # empty; Windows does not rename over it
        ready.rename(target)
    return replace(report, root=dest)


def parse_size(text: str) -> Size:
    if not (match := re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text)):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as WIDTHxHEIGHT, as in 480x360")
    return int(match[2]), int(match[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert a copy of CamVid to grey PNG labels.")
    parser.add_argument("source", help="folder, zip or tar archive, or address of one")
    parser.add_argument("dest", help="new or empty folder")
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="resize to WIDTHxHEIGHT")
    parser.add_argument("--first-id", type=int, help="value of sky in trainannot/ (default: 0)")
    parser.add_argument("--void", type=int, help="value of void there (default: after the classes)")
    try:
        print(convert(**vars(parser.parse_args())).summary())
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
