"""What the values of a label file mean: ids in grey images, ids in grey palettes, colours.

Grey values are ids, 255 is void. A colour image or palette must have CamVid's colours (see
`COLOURS`). What can mean two things is refused, as a wrong id would give a wrong score in silence.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from camvid_lang.data.classes import CLASSES, GROUPS, NUM_CLASSES, ORIGINAL_COLOURS, VOID
from camvid_lang.errors import InputError

__all__ = ["COLOURS", "PLAIN", "SHIFTED", "LabelIds", "decode", "parse_label", "read_label"]

_GROUP = {member: CLASSES.index(name) for name, members in GROUPS.items() for member in members}
# {(R, G, B): id}: the 32 colours of the original release, the package's own among them, and the
# two others that SegNet's demo draws, for pavement and for road markings.
COLOURS = {
    **{colour: _GROUP.get(name, VOID) for name, colour in ORIGINAL_COLOURS.items()},
    (60, 40, 222): CLASSES.index("pavement"),
    (255, 69, 0): CLASSES.index("road"),
}
# Colours as 24-bit numbers. A multiple of GREY has R = G = B; SKY is the only one in COLOURS that
# is not black, and no id: ids are at most VOID, or 255.
WEIGHTS, GREY, SKY = np.array([1 << 16, 1 << 8, 1]), 0x010101, 128
GREY_MODES = "L I I;16 I;16B I;16L"
MAX_VALUE, UNKNOWN = 65535, 255
_CODES, _IDS = np.array(
    sorted((int(np.dot(colour, WEIGHTS)), class_id) for colour, class_id in COLOURS.items())
).T
AS_GREY = "save the ids as a grey image"


class LabelIds(NamedTuple):
    """How grey values are counted; the options of `read_label`."""

    void: int | None = None
    first_id: int = 0
    unknown_void: bool = False

    def check(self) -> "LabelIds":
        """Itself; `InputError` for values that contradict each other."""
        for key, value, most in (("void", self.void, MAX_VALUE), ("first_id", self.first_id, 200)):
            fits = type(value) is int and 0 <= value <= most
            if not fits and (key, value) != ("void", None):
                raise InputError(f"{key} {value!r}: a whole number in 0..{most} is needed")
        if type(self.unknown_void) is not bool:
            raise InputError(f"unknown_void {self.unknown_void!r}: true or false is needed")
        if self.void is not None and 0 <= self.void - self.first_id < NUM_CLASSES:
            more = "; for ids from 1 give first_id 1 as well" if self.void == 0 else ""
            name = CLASSES[self.void - self.first_id]
            raise InputError(
                f"void {self.void} is the id of {name} if ids count from {self.first_id}{more}"
            )
        return self


PLAIN, SHIFTED = LabelIds(), LabelIds(void=0, first_id=1)


def decode(path: Path, modes: str, needed: str, convert: Callable) -> np.ndarray:
    """`convert(image)` as an array; `InputError` for a damaged file or one of another mode."""
    try:
        with Image.open(path) as image:
            if image.mode in modes.split():
                return np.array(convert(image))
            mode = image.mode
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ...
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = " ".join(text.split())
        raise InputError(f"{path}: cannot be read as an image ({text}); replace it") from error
    raise InputError(f"{path}: image mode {mode}, but {needed}")


def read_label(
    path: str | Path, void: int | None = None, first_id: int = 0, unknown_void: bool = False
) -> np.ndarray:
    """Read a label file as uint8 (H, W) of class ids 0..11 (11 is void).

    Values of a grey image (of R = G = B and of a grey palette too) are ids, 255 is void; colours
    are those of `COLOURS`, for which `void` and `first_id` do not matter.

    Args:
        void: the value of void in grey images (default: the one after the last class).
        first_id: the value of the first class, sky, in grey images.
        unknown_void: take other colours and ids as void, with a warning that counts them.

    Raises:
        InputError: a missing or damaged file; ids out of range; other colours; a palette that is
            neither; transparent pixels; what can be read in two ways (black alone, in RGB).
    """
    ids, unknown = parse_label(path, LabelIds(void, first_id, unknown_void).check())
    if unknown:
        warnings.warn(f"{path}: {unknown} pixels of unknown value taken as void", stacklevel=2)
    return ids


def parse_label(path: str | Path, options: LabelIds) -> tuple[np.ndarray, int]:
    """As `read_label`, without a warning: the ids, and how many unknown pixels are void."""
    path = Path(path)
    coloured = False

    def convert(image: Image.Image) -> Image.Image | np.ndarray:
        nonlocal coloured
        if image.mode in GREY_MODES.split():
            return image
        _refuse_lossy(path, image)
        if image.mode == "LA":
            return image.getchannel("L")
        values, coloured = _from_colours(path, image, options.unknown_void)
        return values

    needed = f"a grey, palette or RGB image of class ids 0..{VOID} is needed; convert it"
    values = decode(path, f"{GREY_MODES} LA P PA RGB RGBA", needed, convert)
    ids = values if coloured else _from_grey(path, values, options)
    if ids.max() <= VOID:
        return ids, 0
    return ids.clip(max=VOID), int((ids == UNKNOWN).sum())


def _from_grey(path: Path, values: np.ndarray, options: LabelIds) -> np.ndarray:
    """uint8 ids of grey values, `UNKNOWN` where they are out of range and that is an option."""
    first, last = options.first_id, options.first_id + NUM_CLASSES - 1
    void = last + 1 if options.void is None else options.void
    if (first, void) == (0, VOID) and values.min() >= 0 and values.max() <= VOID:
        return values.astype(np.uint8, copy=False)
    table = np.full(MAX_VALUE + 2, UNKNOWN, dtype=np.uint8)  # the last entry is of other values
    table[first : last + 1] = range(NUM_CLASSES)
    table[[void, 255]] = VOID
    signed = values.dtype.kind == "i"  # which clipped to -1 means the last entry too
    ids = table[values.clip(-1, MAX_VALUE + 1) if signed else values]
    wrong = np.unique(values[ids == UNKNOWN]).tolist()
    if not wrong or (options.unknown_void and len(wrong) < len(np.unique(values))):
        return ids
    advice = "convert the labels with `camvid-lang data convert`"
    if wrong == [last + 2] or (wrong == [0] and first == 1):
        keys = "first_id 1, void 0" if values.min() == 0 else "first_id 1"
        flags = f"--{keys}".replace(", ", " --").replace("_", "-")
        advice = f"for ids from 1, give {flags} (in dataset.json: {keys}), or {advice}"
    named = f"ids {', '.join(map(str, wrong[:6]))} are" if wrong[1:] else f"id {wrong[0]} is"
    high = void if void == last + 1 else last
    raise InputError(
        f"{path}: {named} not in {first}..{high} (void is {void}; found {values.min()}.."
        f"{values.max()}); {advice}"
    )


def _refuse_lossy(path: Path, image: Image.Image) -> None:
    """`InputError` for what Pillow would change: transparency, 16 bits per channel."""
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise InputError(f"{path}: some pixels are transparent, so have no id; {AS_GREY}")
    with path.open("rb") as file:
        header = file.read(25)
    if image.format == "PNG" and header[24] == 16:
        raise InputError(f"{path}: a colour image of 16 bits per channel; {AS_GREY}")


def _from_colours(path: Path, image: Image.Image, unknown_void: bool) -> tuple[np.ndarray, bool]:
    """Values of a grey palette or grey RGB, and False; or ids (or `UNKNOWN`) of colours, and True.

    Black is void's colour, and grey 0; what else there is decides, in the palette too.
    """
    if palette := image.mode in ("P", "PA"):
        channel = image.getchannel(0)
        whole = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3) @ WEIGHTS
        if np.array_equal(whole, np.arange(256) * GREY):  # the usual one, without delay
            return np.array(channel), False
        table = np.pad(whole, (0, 256 - len(whole)), constant_values=-1)
        codes = table[np.array(channel.histogram()) > 0]
    else:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3) @ WEIGHTS
        codes, indices = np.unique(pixels, return_inverse=True)
        whole, table, indices = codes, codes, indices.reshape(image.size[::-1])

    def spread(values: np.ndarray) -> np.ndarray:
        """The value of each pixel from those of `table`; Pillow is several times as fast."""
        values = values.astype(np.uint8)
        return np.array(channel.point(values.tolist())) if palette else values[indices]

    hues = whole[whole % GREY != 0]
    if not (codes % GREY).any():
        black = not (codes.any() or hues.size)
        shades = set(((whole if black else codes) // GREY).tolist())
        if shades - {0, SKY}:
            return spread(table // GREY), False
        if shades == {0} and not hues.size:
            raise InputError(f"{path}: black alone can be id 0 or the colour of void; {AS_GREY}")
    positions = np.searchsorted(_CODES, table).clip(max=len(_CODES) - 1)
    ids = spread(np.where(_CODES[positions] == table, _IDS[positions], UNKNOWN))
    unknown, foreign = codes[~np.isin(codes, _CODES)], hues[~np.isin(hues, _CODES)]
    if not foreign.size and not unknown.size:
        return ids, True
    # A palette of mostly other colours is of something else, even if those are not used.
    mostly_foreign = palette and 2 * foreign.size > hues.size
    if unknown_void and unknown.size < codes.size and not mostly_foreign:
        return ids, True
    advice = f"if the indices are ids, {AS_GREY}" if palette else "convert the labels"
    advice += "; or take other colours as void (--unknown-void)"
    if not unknown.size:
        raise InputError(f"{path}: palette with {_rgb(foreign[0])}, not one of CamVid's; {advice}")
    row, column = np.argwhere(ids == UNKNOWN)[0]
    colour = image.convert("RGB").getpixel((int(column), int(row)))
    raise InputError(
        f"{path}: colour {colour} at row {row}, column {column} is not one of CamVid's "
        f"({(ids == UNKNOWN).sum()} such pixels); {advice}"
    )


def _rgb(code: int) -> tuple[int, ...]:
    return tuple(int(code).to_bytes(3, "big"))
