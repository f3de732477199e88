"""Convert labels of other copies of CamVid to the ids of the 11 classes."""

import numpy as np

from camvid_lang.data.classes import CLASSES, GROUPS, ORIGINAL_COLOURS, VOID
from camvid_lang.errors import InputError

__all__ = ["group_labels"]


def group_labels(rgb: np.ndarray) -> np.ndarray:
    """Colour label of the original release with 32 classes -> uint8 (H, W) of ids 0..11.

    Args:
        rgb: uint8 (H, W, 3), 720x960 in the release.

    Returns:
        Ids as in `classes.GROUPS`; a colour of no group is void.

    Raises:
        InputError: a colour that is not one of the release's 32.

    Example:
        >>> road, void = ORIGINAL_COLOURS["Road"], ORIGINAL_COLOURS["Void"]
        >>> group_labels(np.array([[road, void]], dtype=np.uint8))
        array([[ 3, 11]], dtype=uint8)
    """
    rgb = np.asarray(rgb)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(f"colour label: uint8 (H, W, 3) is needed, not {rgb.dtype} {rgb.shape}")
    group = {member: CLASSES.index(name) for name, members in GROUPS.items() for member in members}
    # Colours as sorted 24-bit numbers, and the class id of each.
    table = sorted(
        (red << 16 | green << 8 | blue, group.get(name, VOID))
        for name, (red, green, blue) in ORIGINAL_COLOURS.items()
    )
    codes = np.array([code for code, _ in table])
    ids = np.array([class_id for _, class_id in table], dtype=np.uint8)
    values = rgb.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    positions = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    unknown = codes[positions] != values
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        raise InputError(
            f"colour label: {tuple(rgb[row, column].tolist())} at row {row}, column {column} is "
            f"not one of the release's 32 colours ({int(unknown.sum())} such pixels); use the PNG "
            "labels of the release, not resized"
        )
    return ids[positions]
