"""The thesis's published scores, and how its tables 7.1 to 7.6 lay them out.

Naomi Kombol, bachelor thesis 1162, FER, University of Zagreb, 2023. Percent, on CamVid's 233 test
frames at 480x360.
"""

from typing import NamedTuple

from camvid_lang.data.classes import CLASSES

_KEYS = ("table", "accuracy", "mean_accuracy", "miou_train", "miou")
_ROWS = {
    "bilinear-names": ("7.1", 45.71, 47.35, None, 21.19),
    "bilinear-descriptions": ("7.1", 51.45, 46.31, None, 23.93),
    "adapter-names": ("7.2", 80.78, 59.65, None, 43.41),
    "adapter-descriptions": ("7.2", 80.78, 60.84, None, 43.87),
    "frozen-names": ("7.3", 91.19, 75.26, 73.90, 63.16),
    "frozen-descriptions": ("7.3", 89.68, 75.67, 73.88, 62.99),
    "full-descriptions": ("7.5", 89.45, 75.01, 79.08, 62.42),
    "full-narrow-descriptions": ("7.5", 90.86, 76.38, 78.75, 63.76),
    "swiftnet": ("7.6", 89.96, None, None, 64.52),
}
THESIS_ROWS = {name: dict(zip(_KEYS, row, strict=True)) for name, row in _ROWS.items()}
# Table 7.4: IoU of each class, in the order of CLASSES.
for _name, _values in {
    "frozen-names": "89.70 80.07 23.08 90.32 77.07 71.71 42.06 39.06 84.19 47.56 49.96",
    "full-narrow-descriptions": "90.22 78.74 31.81 89.70 75.65 72.92 45.11 34.83 79.71 47.23 55.48",
}.items():
    THESIS_ROWS[_name]["iou"] = dict(zip(CLASSES, map(float, _values.split()), strict=True))


def family(run: str) -> str:
    """What the names of runs of the same kind of model start with, like "frozen"."""
    return run.partition(" ")[0].partition("-")[0]


class TableLayout(NamedTuple):
    """One of the thesis's tables: what its columns and rows are."""

    number: str
    title: str
    first: str  # heading of the first column
    scores: tuple[str, ...]  # keys of results.json, one group of columns each
    rows: dict[str, str]  # experiment -> name of the row; of "iou" it is the group, of all classes


def _texts(model: str) -> dict[str, str]:
    return {f"{model}-names": "Class names", f"{model}-descriptions": "Class descriptions"}


_TITLES = ("Accuracy", "Mean accuracy", "mIoU (train)", "mIoU")
TITLES = dict(zip(_KEYS[1:], _TITLES, strict=True))
_SHORT, _LONG = ("accuracy", "mean_accuracy", "miou"), tuple(TITLES)
_BILINEAR = "Bilinear baseline: the encoder's stride-32 map, upsampled ×32; nothing is trained"
_ADAPTER = "Adapter baseline: two trained 1×1 convolutions before upsampling"
_FROZEN = "Frozen encoder: only the upsampler is trained"
_FULL = "Whole network trained, on class descriptions"
_CLASSES = {
    "frozen-names": "Frozen encoder, names",
    "full-narrow-descriptions": "Whole network, narrow, descriptions",
}
_PYRAMIDS = {
    "full-descriptions": "As wide as the upsampler",
    "full-narrow-descriptions": "Narrow, a quarter of that",
}
_ALL = {
    "bilinear-descriptions": "Bilinear, descriptions",
    "adapter-descriptions": "Adapter, descriptions",
    "frozen-names": "Frozen encoder, names",
    "full-narrow-descriptions": "Narrow pyramid, descriptions",
    "swiftnet": "SwiftNet, single scale",
}
TABLES = (
    TableLayout("7.1", _BILINEAR, "Text", _SHORT, _texts("bilinear")),
    TableLayout("7.2", _ADAPTER, "Text", _SHORT, _texts("adapter")),
    TableLayout("7.3", _FROZEN, "Text", _LONG, _texts("frozen")),
    TableLayout("7.4", "IoU of each class", "Class", ("iou",), _CLASSES),
    TableLayout("7.5", _FULL, "Spatial pyramid", _LONG, _PYRAMIDS),
    TableLayout("7.6", "All approaches", "Approach", _SHORT, _ALL),
)
