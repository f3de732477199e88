"""Single picture files: read strictly, digested by their pixels, regrouped from the 32 colours.

Whatever is wrong with a file ends in one `InputError` that names it; a picture library's own
exceptions (there are many kinds) never reach the caller.
"""

import hashlib
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from camvid_lang.errors import InputError
from camvid_lang.taxonomy import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID

__all__ = [
    "SUFFIXES",
    "group_labels",
    "one_line",
    "pixel_digest",
    "read_image",
    "read_label",
    "read_size",
]

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")

_FILTERS = threading.Lock()
MAX_PIXELS = 64 * 1024 * 1024
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
LABEL_MODES = ("L", "P", "I", "I;16", "I;16B", "I;16L")


def one_line(text: object) -> str:
    """`text` without line breaks, for messages that must stay on one line."""
    return " ".join(str(text).split())


def _open(path: Path) -> Image.Image:
    """The picture, its header read; `InputError` where that fails or it is beyond 64 megapixels."""
    try:
        # Pillow only warns where our own limit already refuses. The filters are the process's, so
        # threads that read pictures take turns.
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(path)
    except FileNotFoundError:
        raise InputError(one_line(f"{path}: no such file")) from None
    except Image.DecompressionBombError:
        raise InputError(one_line(f"{path}: picture is too large (limit 64 megapixels)")) from None
    except Exception as error:  # the plugins raise OSError, SyntaxError, struct.error and others
        reason = one_line(error).replace(str(path), "file") or type(error).__name__
        raise InputError(one_line(f"{path}: unreadable picture ({reason})")) from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        picture.close()
        raise InputError(
            one_line(f"{path}: picture of {height}x{width} is too large (limit 64 megapixels)")
        )
    return picture


def read_size(path: str | Path) -> tuple[int, int]:
    """(H, W) from the header alone, pixels not decoded. Raises `InputError`."""
    with _open(Path(path)) as picture:
        return picture.height, picture.width


def _decode(
    path: Path, modes: tuple[str, ...], wanted: str, rgb: bool, upright: bool = False
) -> np.ndarray:
    with _open(path) as picture:
        if picture.mode not in modes:
            raise InputError(one_line(f"{path}: mode {picture.mode} where {wanted}"))
        try:
            if upright:
                picture = ImageOps.exif_transpose(picture)
            if rgb and picture.mode != "RGB":
                return np.asarray(picture.convert("RGB"))
            return np.asarray(picture)
        except Exception as error:  # as above; a truncated file is found only here
            reason = one_line(error) or type(error).__name__
            raise InputError(
                one_line(f"{path}: damaged picture ({reason}); put back a whole copy")
            ) from None


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """A picture as uint8 (H, W, 3), red green blue in 0..255.

    Grey and palette pictures are converted, an alpha channel is dropped. An EXIF orientation is
    applied where `upright` is set: for pictures from a telephone, say, but not for frames, as
    turning them would part them from their labels. Raises `InputError` for a missing, unreadable,
    truncated, 16-bit or oversized file.
    """
    wanted = "an 8-bit picture is needed: save it as RGB"
    return _decode(Path(path), IMAGE_MODES, wanted, True, upright)


def read_label(path: str | Path) -> np.ndarray:
    """A label picture as uint8 (H, W) of class ids 0..11 (11 is void).

    Grey PNGs hold ids as values; palette PNGs hold them as indices. Raises `InputError` for a
    missing, unreadable or truncated file, for a colour picture, and for ids above 11, which are
    named.
    """
    path = Path(path)
    wanted = "a grey or palette picture of class ids 0..11 is needed"
    ids = _decode(path, LABEL_MODES, wanted, False)
    if int(ids.max()) > VOID or int(ids.min()) < 0:
        values = np.unique(ids)
        wrong = [str(value) for value in values[(values > VOID) | (values < 0)]]
        listed = ", ".join(wrong[:6]) + (f" and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        noun = "id" if len(wrong) == 1 else "ids"
        raise InputError(
            one_line(f"{path}: label {noun} {listed} where 0..{VOID} are known; regroup the label")
        )
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint8)


def pixel_digest(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of the shape, written like `360x480x3`, followed by the bytes row by row.

    Taken over decoded pixels, so the same picture in another lossless container (PNG, WebP)
    has the same digest. `pixels` is what `read_image` or `read_label` returns.
    """
    shape = "x".join(str(side) for side in pixels.shape)
    return hashlib.sha256(shape.encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _code(colour: tuple[int, int, int]) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _colour_table() -> tuple[np.ndarray, np.ndarray]:
    """Colours of the original release as sorted 24-bit codes, and the class id of each."""
    class_of = {member: CLASSES.index(name) for name, group in GROUPS.items() for member in group}
    pairs = sorted((_code(rgb), class_of.get(name, VOID)) for name, rgb in ORIGINAL_COLOURS.items())
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=np.uint8)


def group_labels(rgb: np.ndarray) -> np.ndarray:
    """Colour-coded label of the original 32-class release -> uint8 (H, W) of ids 0..11.

    `rgb` is uint8 (H, W, 3), 720x960 in the release. Grouping: `taxonomy.GROUPS`; a colour that
    stands in no group is void. Raises `InputError` naming a colour the release does not have.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"colour label: uint8 (H, W, 3) is needed, not {rgb.dtype} {rgb.shape}")
    codes, ids = _colour_table()
    wide = rgb.astype(np.int64)
    values = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    places = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    unknown = codes[places] != values
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        colour = tuple(int(part) for part in rgb[row, column])
        raise InputError(
            f"colour label: {colour} at row {row}, column {column} is none of the release's 32 "
            f"colours ({int(unknown.sum())} such pixels); use the lossless PNG labels, not resized"
        )
    return ids[places]
