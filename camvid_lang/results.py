"""What a results.json may hold: everything that is shown of it later is checked when it is read.

What a run leaves in its folder for others to read: results.json and figures.npz."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from camvid_lang.data.classes import VOID
from camvid_lang.errors import InputError

__all__ = [
    "FigureData",
    "read_figures",
    "read_results",
    "versions",
    "what_is_wrong",
    "write_figures",
    "write_results",
]

LARGEST = 1e12  # no number of a result comes near it

Check = Callable[[object], bool]


def _number(value: object) -> bool:
    """None, or a number that can be drawn."""
    if value is None:
        return True
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and abs(value) <= LARGEST  # also refuses NaN


def _text(value: object) -> bool:
    return isinstance(value, str)


def _plain(value: object) -> bool:
    """A setting or the like, to be shown as it stands."""
    return isinstance(value, bool) or _number(value) or _text(value)


def _mapping(check: Check) -> Check:
    def checked(value: object) -> bool:
        return isinstance(value, Mapping) and all(_text(k) and check(v) for k, v in value.items())

    return checked


def _list(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


_numbers = _mapping(_number)
CHECKS: dict[str, Check] = {
    "experiment": _text,
    **dict.fromkeys(("accuracy", "mean_accuracy", "miou", "miou_train", "seconds"), _number),
    "iou": _numbers,
    "thesis": _mapping(_either(_number, _text, _numbers)),
    "settings": _mapping(_plain),
    "phrases": _either(lambda value: value is None, _mapping(_list(lambda v: isinstance(v, str)))),
    "data": _mapping(_either(_plain, _list(_number))),
    "encoder": _mapping(_plain),
    "versions": _mapping(_plain),
    "device": _text,
    "command": lambda value: isinstance(value, str),
    "history": _list(_numbers),
    "confusion": _list(_list(_number)),
}
# What the thesis gives no number for is still shown by these.
_NUMBERS_OF_THE_THESIS = ("accuracy", "mean_accuracy", "miou", "miou_train")


def what_is_wrong(results: object) -> str:
    """The key of a run's results that does not hold what a run writes there; "" if all do.

    Keys that are absent are not missed, but for `experiment` and `settings`; others are let be.
    """
    if not isinstance(results, Mapping):
        return "the whole"
    for key in ("experiment", "settings"):
        if key not in results:
            return key
    for key, check in CHECKS.items():
        if key in results and not check(results[key]):
            return key
    thesis, size = results.get("thesis", {}), results.get("data", {}).get("size", [])
    if not all(_number(thesis.get(key)) for key in _NUMBERS_OF_THE_THESIS):
        return "thesis"
    if not _numbers(thesis.get("iou", {})):
        return "thesis"
    if not isinstance(size, list):
        return "data"
    if any(not isinstance(entry.get("epoch"), int) for entry in results.get("history", [])):
        return "history"
    lengths = {len(row) for row in results.get("confusion", [])}
    return "confusion" if len(lengths) > 1 else ""


def read_results(path: str | Path) -> dict:
    """A run's results.json.

    Raises:
        InputError: absent, or not what a run writes.
    """
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        wrong = what_is_wrong(results)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: the run is not finished") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no result of a run: delete it and run again") from error
    if wrong:
        raise InputError(f"{path} is no result of a run ({wrong}): delete it and run again")
    return results


def write_results(path: str | Path, value: Mapping) -> None:
    """Write JSON to a temporary, then rename; numbers that are not finite become null."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(_finite(value), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _finite(value):
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class FigureData:
    """Arrays that a run's report draws.

    images: (n, 3, H, W) uint8; labels, predictions: (n, H, W) uint8 ids; names: n texts;
    similarities: title to (K, K) cosines of the classes' text embeddings.
    """

    images: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    names: tuple[str, ...]
    similarities: dict[str, np.ndarray]


def write_figures(path: str | Path, data: FigureData) -> None:
    """Write `data` as .npz to a temporary, then rename."""
    path = Path(path)
    arrays = {key: getattr(data, key) for key in ("images", "labels", "predictions")}
    arrays["names"] = np.array(data.names)
    arrays |= {f"similarity/{title}": matrix for title, matrix in data.similarities.items()}
    temporary = path.with_name(f"{path.name}.part")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def read_figures(path: str | Path) -> FigureData | None:
    """What `write_figures` wrote; None where it is absent or damaged (a report goes without)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        found = FigureData(
            images=arrays["images"],
            labels=arrays["labels"],
            predictions=arrays["predictions"],
            names=tuple(arrays["names"].tolist()),
            similarities={
                key.removeprefix("similarity/"): value
                for key, value in arrays.items()
                if key.startswith("similarity/")
            },
        )
    except Exception:  # numpy answers a damaged archive with almost any exception
        return None
    return found if _fits_together(found) else None


def _fits_together(figures: FigureData) -> bool:
    """Whether shapes and kinds are those of `FigureData`."""
    images, labels, predictions = figures.images, figures.labels, figures.predictions
    pictures = (len(figures.names), 3, *images.shape[2:])
    maps = (pictures[0], *pictures[2:])
    return (
        images.ndim == 4
        and (images.shape, labels.shape, predictions.shape) == (pictures, maps, maps)
        and all(array.dtype == np.uint8 for array in (images, labels, predictions))
        and max(labels.max(initial=0), predictions.max(initial=0)) <= VOID
        and all(isinstance(name, str) for name in figures.names)
        and all(
            matrix.dtype.kind == "f" and matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
            for matrix in figures.similarities.values()
        )
    )


def versions() -> dict:
    """Versions of Python and of the packages that results depend on."""
    packages = ("camvid-lang", "torch", "open-clip-torch", "timm", "torchmetrics", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
