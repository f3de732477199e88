"""What the values of a label file mean: ids in grey images, ids in grey palettes, colours.

Grey values are ids, 255 is void. A colour image or palette must have CamVid's colours (see
`COLOURS`). What can mean two things is refused, as a wrong id would give a wrong score in silence.
"""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from camvid_lang.data.classes import CLASSES, GROUPS, NUM_CLASSES, ORIGINAL_COLOURS, VOID
from camvid_lang.errors import InputError

_GROUP = {member: CLASSES.index(name) for name, members in GROUPS.items() for member in members}
# {(R, G, B): id}: the 32 colours of the original release, the package's own among them, and the
# two others that SegNet's demo draws, for pavement and for road markings.
COLOURS = {
    **{colour: _GROUP.get(name, VOID) for name, colour in ORIGINAL_COLOURS.items()},
    (60, 40, 222): CLASSES.index("pavement"),
    (255, 69, 0): CLASSES.index("road"),
}
SKY = 128  # of R, G and B; the only grey among the colours, and no id: ids are at most VOID, or 255
UNKNOWN = 255
GREY_MODES = "L I I;16 I;16B I;16L"
AS_GREY = "save the ids as a grey image"
AS_VOID = "or take other values as void (--unknown-void)"
CONVERT = "convert the labels with `camvid-lang data convert`"
FROM_ONE = (
    "if ids count from 1, give --first-id 1, and --void 0 where 0 is void (in dataset.json: "
    f"first_id 1, void 0), or {CONVERT}"
)


class LabelIds(NamedTuple):
    """How grey values are counted.

    Attributes:
        void: the value of void (default: the one after the last class).
        first_id: the value of the first class, sky.
        unknown_void: take other ids and colours as void.
        classes: how many there are, in a set whose classes are not CamVid's.
    """

    void: int | None = None
    first_id: int = 0
    unknown_void: bool = False
    classes: int = 0

    @property
    def count(self) -> int:
        return self.classes or NUM_CLASSES

    @property
    def from_zero(self) -> bool:
        return (self.void, self.first_id) == (None, 0)

    def check(self) -> "LabelIds":
        """Itself; `InputError` for wrong types and values that contradict each other."""
        void = 0 if self.void is None else self.void
        right_types = (type(void), type(self.first_id), type(self.unknown_void)) == (int, int, bool)
        if not right_types or not (0 <= void <= 65535 and 0 <= self.first_id <= 200):
            raise InputError(
                f"void {self.void!r}, first_id {self.first_id!r}, unknown_void "
                f"{self.unknown_void!r}: a whole number in 0..65535, one in 0..200, and true or "
                "false are needed"
            )
        if self.void is not None and 0 <= self.void - self.first_id < self.count:
            index = self.void - self.first_id
            name = f"class {index}" if self.classes else CLASSES[index]
            raise InputError(
                f"void {self.void} is the id of {name} if ids count "
                f"from {self.first_id}; for ids from 1 give first_id 1 as well"
            )
        return self


PLAIN = LabelIds()


class ColourTable(NamedTuple):
    """Ids by colour, uint8 (256, 256, 256) with `UNKNOWN` elsewhere, and where they are from."""

    ids: np.ndarray
    origin: str

    @classmethod
    def of(cls, colours: dict[tuple[int, ...], int], origin: str) -> "ColourTable":
        table = np.full((256, 256, 256), UNKNOWN, np.uint8)
        for colour, class_id in colours.items():
            table[colour] = class_id
        return cls(table, origin)

    def read(self, path: Path, rgb: np.ndarray, unknown_void: bool) -> tuple[np.ndarray, int]:
        """Ids (H, W) of colours (H, W, 3), and how many pixels of other colours are void.

        Raises:
            InputError: other colours, unless some are known and `unknown_void` is set.
        """
        ids = self.ids[rgb[..., 0], rgb[..., 1], rgb[..., 2]]
        unknown = np.argwhere(ids == UNKNOWN)
        if len(unknown) and not (unknown_void and len(unknown) < ids.size):
            row, column = unknown[0].tolist()
            raise InputError(
                f"{path}: colour {tuple(rgb[row, column].tolist())} at row {row}, column {column} "
                f"is not one of {self.origin} ({len(unknown)} such pixels); correct it, {AS_VOID}"
            )
        return ids.clip(max=VOID), len(unknown)


@cache
def camvid_colours() -> ColourTable:
    return ColourTable.of(COLOURS, "CamVid's")


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


def open_image(path: Path, modes: str, needed: str) -> Image.Image:
    """The decoded image; `InputError` for a damaged file or one of a mode not in `modes`."""
    with image_errors(path), Image.open(path) as image:
        image.load()
    if image.mode not in modes.split():
        raise InputError(f"{path}: image mode {image.mode}, but {needed}")
    return image


def read_label(path: str | Path, options: LabelIds = PLAIN) -> tuple[np.ndarray, int]:
    """Read a label file: class ids, uint8 (H, W) in 0..11 (11 is void), and how many were unknown.

    Values of a grey image (of R = G = B and of a grey palette too) are ids, 255 is void; colours
    are those of `COLOURS`, for which only the option `unknown_void` matters.

    Raises:
        InputError: a missing or damaged file; ids out of range; other colours; a palette that is
            neither; transparent pixels; what can be read in two ways (black alone, in RGB).
    """
    path = Path(path)
    needed = f"a grey, palette or RGB image of class ids 0..{VOID} is needed; convert it"
    image = open_image(path, f"{GREY_MODES} LA P PA RGB RGBA", needed)
    if image.mode in GREY_MODES.split():
        return _from_grey(path, np.array(image), options)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise InputError(f"{path}: some pixels are transparent, so have no id; {AS_GREY}")
    with path.open("rb") as file:
        header = file.read(25)
    if image.format == "PNG" and header[24] == 16:  # of which Pillow drops the lower eight
        raise InputError(f"{path}: a colour image of 16 bits per channel; {AS_GREY}")
    if image.mode == "LA" or _palette(image) == [(i, i, i) for i in range(256)]:
        return _from_grey(path, np.array(image.getchannel(0)), options)
    if options.classes:
        raise InputError(f"{path}: colours are known for CamVid's classes only; {AS_GREY}")
    return _from_colours(path, image, options)


def _from_grey(path: Path, values: np.ndarray, options: LabelIds) -> tuple[np.ndarray, int]:
    first, last = options.first_id, options.first_id + options.count - 1
    void = last + 1 if options.void is None else options.void
    if (first, void) == (0, options.count) and values.min() >= 0 and values.max() <= void:
        return values.astype(np.uint8, copy=False), 0
    ids = np.full(values.shape, UNKNOWN, np.uint8)
    is_class = (values >= first) & (values <= last)
    ids[is_class] = values[is_class] - first
    ids[(values == void) | (values == 255)] = options.count
    wrong = np.unique(values[ids == UNKNOWN]).tolist()
    if wrong and not (options.unknown_void and (ids != UNKNOWN).any()):
        named = f"ids {', '.join(map(str, wrong[:6]))} are" if wrong[1:] else f"id {wrong[0]} is"
        raise InputError(
            f"{path}: {named} not in {first}..{void if void == last + 1 else last} "
            f"(void is {void}; found {values.min()}..{values.max()}); "
            f"{FROM_ONE if wrong in ([last + 2], [0]) else CONVERT}"
        )
    return ids.clip(max=options.count), int((ids == UNKNOWN).sum())


def _palette(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours of the palette, used or not; none for an image without one."""
    channels = image.getpalette("RGB") or []
    return list(zip(channels[::3], channels[1::3], channels[2::3], strict=True))


def _from_colours(path: Path, image: Image.Image, options: LabelIds) -> tuple[np.ndarray, int]:
    """Ids of colours, or of grey RGB and grey palettes.

    Black is void's colour, and grey 0; what else there is decides, in the palette too.
    """
    palette, rgb = _palette(image), image.convert("RGB")
    used = {colour for _, colour in rgb.getcolors(image.width * image.height)}
    if palette and image.getchannel(0).getextrema()[1] >= len(palette):
        raise InputError(f"{path}: some indices are not in the palette; {AS_GREY}")
    hues = {colour for colour in {*used, *palette} if len({*colour}) > 1}
    if all(len({*colour}) == 1 for colour in used):
        shades = {red for red, _, _ in used}
        if shades == {0} and palette and not hues:  # the other entries show what black means
            shades = {red for red, _, _ in palette}
        if shades - {0, SKY}:
            return _from_grey(path, np.array(rgb.getchannel(0)), options)
        if shades == {0} and not hues:
            raise InputError(f"{path}: black alone can be id 0 or the colour of void; {AS_GREY}")
    foreign = sorted({*palette} & hues - COLOURS.keys())
    # A palette of mostly other colours is of something else, even if those are not used.
    if foreign and not (options.unknown_void and 2 * len(foreign) <= len(hues)):
        raise InputError(
            f"{path}: palette with {foreign[0]}, not one of CamVid's; if the indices are ids, "
            f"{AS_GREY}, {AS_VOID}"
        )
    return camvid_colours().read(path, np.asarray(rgb), options.unknown_void)
