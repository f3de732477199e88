"""What a run leaves in its folder for others to read: results.json and figures.npz."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from camvid_lang.errors import InputError
from camvid_lang.results_check import what_is_wrong
from camvid_lang.taxonomy import VOID

__all__ = [
    "FigureData",
    "read_figures",
    "read_results",
    "versions",
    "write_figures",
    "write_json",
]


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


def write_json(path: str | Path, value: Mapping) -> None:
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
