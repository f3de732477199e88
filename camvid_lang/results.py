"""What a run leaves in its folder for others to read: results.json and figures.npz."""

import contextlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import numpy as np

from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.errors import InputError

KEYS = (
    *("experiment", "accuracy", "mean_accuracy", "miou", "miou_train", "iou", "confusion"),
    *("history", "seconds", "settings", "prompts", "data", "encoder", "device", "versions"),
    "command",
)
INNER_KEYS = {
    "iou": CLASSES,
    "data": ("name", "train_frames", "test_frames", "size", "complete"),
    "encoder": ("name", "weights", "text"),
}
VOCABULARY = "vocabulary.json"  # next to results.json, if `vocabulary` was run
HISTORY_KEYS = ("epoch", "loss", "miou")


def read_results(path: str | Path) -> dict:
    """A run's results.json, with all of `KEYS`; scores are in percent.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        results = json.loads(path.read_bytes())  # of UTF-8, -16 or -32, with or without a mark
        parts = [(results, KEYS)] + [(results[key], inner) for key, inner in INNER_KEYS.items()]
        parts += [(entry, HISTORY_KEYS) for entry in results["history"]]
        for part, keys in parts:
            _need(part, keys)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: the run is not finished; start it again") from error
    except KeyError as error:
        raise InputError(f"{path}: {error} is missing; delete the file and run again") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run again") from error
    return results


def _need(part: Mapping, keys: Iterable[str]) -> None:
    """`KeyError` for a missing key, `TypeError` for what is not a mapping."""
    if not isinstance(part, Mapping):
        raise TypeError(f"a mapping is needed, not {part!r:.40}")
    for key in keys:
        if key not in part:
            raise KeyError(key)


def read_vocabulary(path: str | Path) -> dict | None:
    """What the command `vocabulary` wrote; None where it is missing.

    Raises:
        InputError: it is damaged.
    """
    try:
        found = json.loads(Path(path).read_bytes())
        _need(found, ("digest", "test_frames", "held_out"))
        _need(found["wordings"], ("own",))
        for row in found["wordings"].values():
            _need(row, ("reason", "trained"))
            for way in ("anchored", "cosine"):
                _need(row[way], ("miou", "iou"))
                _need(row[way]["iou"], ())
        for means in found["held_out_scores"].values():
            _need(means, ("seen", "unseen", "harmonic"))
    except FileNotFoundError:
        return None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, or measure again") from error
    return found


def write_results(path: str | Path, results: Mapping) -> None:
    """Write `results` as JSON; the file is replaced only once it is complete."""
    with atomic_write(path) as file:
        file.write(f"{json.dumps(results, indent=1)}\n".encode())


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends; if the block raises, `path` is unchanged."""
    temporary = Path(f"{path}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            delete(temporary)
        raise


def delete(path: Path) -> None:
    """Delete a file if it exists; emptied first, as Google Drive moves it to a bin with a quota."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()


@dataclass(frozen=True)
class FigureData:
    """A few test frames with a run's predictions, and how similar its classes' texts are."""

    images: np.ndarray  # (n, 3, H, W) uint8
    labels: np.ndarray  # (n, H, W) uint8, ids 0..11
    predictions: np.ndarray  # (n, H, W) uint8, ids 0..10
    names: tuple[str, ...]  # n names, like "test/0001TP_008550"
    similarities: dict[str, np.ndarray]  # title -> (11, 11) cosines


def write_figures(path: str | Path, data: FigureData) -> None:
    """Write `data` as .npz; the file is replaced only once it is complete."""
    arrays = {key: getattr(data, key) for key in ("images", "labels", "predictions", "names")}
    arrays |= {f"similarity/{title}": matrix for title, matrix in data.similarities.items()}
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def read_figures(path: str | Path) -> FigureData | None:
    """What `write_figures` wrote; None if it is missing or damaged, as a report can do without."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        titles = [key for key in arrays if key.startswith("similarity/")]
        similarities = {key.removeprefix("similarity/"): arrays.pop(key) for key in titles}
        names = tuple(map(str, arrays.pop("names").tolist()))
        data = FigureData(**arrays, names=names, similarities=similarities)
        (n, _, *size), ids = data.images.shape, np.stack([data.labels, data.predictions])
        fits = (data.images.shape, ids.shape) == ((n, 3, *size), (2, n, *size)) and len(names) == n
        fits &= data.images.dtype == ids.dtype == np.uint8 and ids.max() <= VOID
        square = (NUM_CLASSES, NUM_CLASSES)
        fits &= all(m.shape == square and m.dtype.kind == "f" for m in similarities.values())
        return data if fits else None
    except Exception:  # numpy and zipfile answer damage with almost any exception
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("camvid-lang", "torch", "open-clip-torch", "timm", "torchmetrics", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
