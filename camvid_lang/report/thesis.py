"""The thesis's published figures."""

from camvid_lang.data.classes import CLASSES

__all__ = ["THESIS_ROWS"]

# Published figures in percent on the 233 test frames at 480x360: tables 7.1 to 7.6.
_TABLE_7_4 = {
    "frozen-names": (89.70, 80.07, 23.08, 90.32, 77.07, 71.71, 42.06, 39.06, 84.19, 47.56, 49.96),
    "full-narrow-descriptions": (
        *(90.22, 78.74, 31.81, 89.70, 75.65, 72.92),
        *(45.11, 34.83, 79.71, 47.23, 55.48),
    ),
}


def _row(table: str, accuracy: float, mean_accuracy: float | None, train: float | None, miou):
    return {
        "table": table,
        "accuracy": accuracy,
        "mean_accuracy": mean_accuracy,
        "miou_train": train,
        "miou": miou,
    }


THESIS_ROWS = {
    "bilinear-names": _row("7.1", 45.71, 47.35, None, 21.19),
    "bilinear-descriptions": _row("7.1", 51.45, 46.31, None, 23.93),
    "adapter-names": _row("7.2", 80.78, 59.65, None, 43.41),
    "adapter-descriptions": _row("7.2", 80.78, 60.84, None, 43.87),
    "frozen-names": _row("7.3", 91.19, 75.26, 73.90, 63.16),
    "frozen-descriptions": _row("7.3", 89.68, 75.67, 73.88, 62.99),
    "full-descriptions": _row("7.5", 89.45, 75.01, 79.08, 62.42),
    "full-narrow-descriptions": _row("7.5", 90.86, 76.38, 78.75, 63.76),
    "swiftnet": _row("7.6", 89.96, None, None, 64.52),
}


for _name, _values in _TABLE_7_4.items():
    THESIS_ROWS[_name]["iou"] = dict(zip(CLASSES, _values, strict=True))
