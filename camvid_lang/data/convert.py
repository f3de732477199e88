"""Labels of other copies of CamVid, brought to the ids of the 11 classes."""

import numpy as np

from camvid_lang.data.classes import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID
from camvid_lang.errors import InputError

__all__ = ["group_labels"]

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
