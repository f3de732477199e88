"""Read id maps: labels of a data set, and predictions that are to be scored.

An id map is an 8-bit grey PNG whose values are class ids; one of 16 bits, by `segment`, holds ids
of the classes that the file names. Palettes, colours and all else are rejected: a wrong id would
silently change scores.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile

from camvid_lang.data.classes import CLASSES, NUM_CLASSES, SHARES, VOID
from camvid_lang.errors import InputError

CLASSES_KEY = "camvid-lang classes"  # of the text in an id map that names its classes, one a line
_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG colour types
FROM_ONE = 'if they count from 1, set "first_id": 1, "void": {} in dataset.json'
SAVE = "save the ids as an 8-bit grey PNG"
CONVERT = "run scripts/convert_camvid.py on this folder"


class LabelIds(NamedTuple):
    """What the values of id maps mean: `first_id` is sky, `void` and 255 are void."""

    first_id: int = 0
    void: int = VOID


@contextlib.contextmanager
def image_errors(path: str | Path) -> Iterator[None]:
    """Any error as an `InputError` that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = " ".join(text.split())
        raise InputError(f"{path}: cannot be read as an image ({text}); replace it") from error


@contextlib.contextmanager
def open_image(
    path: str | Path | BinaryIO, name: str = "", turned: bool = False
) -> Iterator[Image.Image]:
    """An image file to read in the block; `InputError`, which names it, where that fails.

    Also rejected are 16 bits per channel, of which Pillow would keep 8, and unless `turned` is
    expected, metadata that turn or mirror it: it may no longer match its label.
    """
    with image_errors(name or path), Image.open(path) as image:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            what = "Pillow is set to accept damaged files"
            raise InputError(f"{what}; set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False")
        bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))  # of a TIFF
        if image.mode[0] not in "IF" and (bits > 8 or ";16" in str(image.tile)):
            raise InputError("16 bits per channel, but 8 are needed; save it with 8 bits")
        if not turned and (turn := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:
            fix = "apply or remove it (PIL.ImageOps.exif_transpose applies it)"
            raise InputError(f"metadata turn or mirror it (EXIF orientation {turn}); {fix}")
        yield image


def read_label(path: str | Path, ids: LabelIds = LabelIds()) -> np.ndarray:  # noqa: B008
    """Read an id map: uint8 (H, W), class ids 0..10 and 11 for void; else `InputError`.

    In a file of `Segmentation.save` the classes that it names decide, and not `ids`.
    """
    with image_errors(path):
        with open(path, "rb") as file:
            header = file.read(26)
        depth, kind = (*header[24:], -1, -1)[:2]
        if header[:4] != b"\x89PNG" or kind not in _KINDS:
            raise InputError(f"not a PNG; {SAVE}")
        if (depth, kind) not in ((8, 0), (16, 0)):
            fix = f"a PNG of {depth}-bit {_KINDS[kind]}; {SAVE}"
            if kind == 3 or depth == 8:
                array = "np.array(Image.open(path))" + ("" if kind == 3 else "[..., 0]")
                fix += f": if its values are ids, Image.fromarray({array}).save(path)"
            raise InputError(f"{fix}; if it holds colours, {CONVERT}")
    with open_image(path) as image:
        values, named = np.array(image), image.info.get(CLASSES_KEY)
        names = tuple(str(named).lower().splitlines()) if named else CLASSES
        if depth != (8 if names == CLASSES else 16):
            what = "was segmented into other classes, but another tool removed their names or bits"
            raise InputError(f"{what}; segment again, and do not convert it")
    if wrong := [name for name in names if name not in CLASSES]:
        text = f"{path}: was segmented into {wrong[0]!r}, which is not a class of CamVid"
        raise InputError(f"{text}; segment again without other classes")
    first, void = (0, 255) if named else ids
    last = first + len(names) - 1
    table = np.full(1 << depth, 255, np.uint8)
    table[first : last + 1] = [CLASSES.index(name) for name in names]
    table[[void, 255]] = VOID
    found = table[values]
    if wrong := np.unique(values[found == 255]).tolist():
        void_from_one = {(0, 12): 12, (1, 0): 0}.get((first, *wrong))
        fix = CONVERT if void_from_one is None else FROM_ONE.format(void_from_one)
        text = f"id {', '.join(map(str, wrong[:6]))} is not one of {first}..{last}"
        raise InputError(f"{path}: {text} (void is {void}); {fix}")
    return found


class DatasetInfo(NamedTuple):
    """What dataset.json says of a data set."""

    name: str | None = None
    ids: LabelIds = LabelIds()


def read_dataset_info(root: Path) -> DatasetInfo:
    """Read ROOT/dataset.json, which may be missing; `InputError` where it is wrong."""
    path = root / "dataset.json"
    try:
        content = {**json.loads(path.read_bytes())}
        if odd := sorted(content.keys() - {"name", "note", "first_id", "void"}):
            raise InputError(f"unknown key {odd[0]!r} (known: name, note, first_id, void)")
        for key, high in (("first_id", 255 - NUM_CLASSES), ("void", 255)):
            value = content.get(key, 0)
            if type(value) is not int or not 0 <= value <= high:
                raise InputError(f"{key} {value!r} is not a whole number in 0..{high}")
        first = content.get("first_id", 0)
        ids = LabelIds(first, content.get("void", first + NUM_CLASSES))
        if 0 <= (index := ids.void - ids.first_id) < NUM_CLASSES:
            raise InputError(f"void {ids.void} is the id of {CLASSES[index]}; give first_id too")
        return DatasetInfo(str(content["name"]) if "name" in content else None, ids)
    except FileNotFoundError:
        return DatasetInfo()
    except (OSError, ValueError, TypeError, RecursionError, InputError) as error:
        raise InputError(f"{path}: {error}; correct it") from error


def shift_hint(counts: np.ndarray) -> str:
    """A warning where ids look shifted by one, or of SegNet's 12 classes, else an empty text.

    Compares `counts`, (12,) pixels of each id, with the shares of CamVid's classes by Bhattacharyya
    coefficients: unchanged, shifted by one, and with road marking, 3 in SegNet's demo, as road.
    """
    low = "ids look shifted by one: they are too low; add 1, or correct first_id in dataset.json"
    high = f"ids look shifted by one: {FROM_ONE.format(0)}"
    twelve = "ids look like SegNet's 12 classes: subtract 1 from all above 3, road marking; or, "
    twelve += FROM_ONE.format(0)
    merged = np.bincount([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10], counts, 12)
    meant = {"": counts, high: np.roll(counts, -1), low: np.roll(counts, 1), twelve: merged}
    fits = {hint: np.sqrt(found) @ np.sqrt(SHARES) for hint, found in meant.items()}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] >= 1.02 * fits[""] else ""
