"""The folder of a run, and what it leaves there for others to read."""

import contextlib
import errno
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import torch

from camvid_lang import __version__
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, NUM_CLASSES, VOID
from camvid_lang.data.words import class_prompts
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import TextEncoder, embed

# What files hold: {key: content}, `...` for every key, [content of each entry], None for anything.
RESULTS = {
    **dict.fromkeys(("accuracy", "mean_accuracy", "miou", "miou_train", "confusion", "seconds")),
    **dict.fromkeys(("experiment", "settings", "prompts", "device", "versions", "command")),
    "iou": dict.fromkeys(CLASSES),
    "history": [dict.fromkeys(("epoch", "loss", "miou"))],
    "data": dict.fromkeys(("name", "train_frames", "test_frames", "size", "complete")),
    "encoder": dict.fromkeys(("name", "weights", "text")),
}
_WAY = {"miou": None, "iou": {}}
_WORDING = {"reason": None, "trained": None, "anchored": _WAY, "cosine": _WAY}
VOCABULARY = {"digest": None, "test_frames": None, "wordings": {"own": _WORDING, ...: _WORDING}}
SAMPLES = 4  # frames drawn in the report


class RunFolder:
    """The files of a run, in a folder that need not exist."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"  # a folder, see `training.checkpoint`
        self.results = self.path / "results.json"  # written last, so it marks a finished run
        self.figures = self.path / "figures.npz"  # see `FigureData`
        self.vocabulary = self.path / "vocabulary.json"  # scores with other words, if measured

    @property
    def is_finished(self) -> bool:
        return self.results.is_file()

    def lock(self) -> contextlib.AbstractContextManager:
        """Hold the folder, made if missing, for this process; the system releases it on a crash.

        `InputError`: another process holds it, or it cannot be written to and is not finished.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Not filelock's other lock, a marker file, which outlives a machine that is lost.
            lock = filelock.FileLock(self.path / ".lock", timeout=0, fallback_to_soft=False)
            return lock.acquire()
        except filelock.Timeout as error:
            what = f"folder {self.path} is in use by another run"
            raise InputError(f"{what}: wait for it, or choose another") from error
        except OSError as error:
            without_locks = error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
            if without_locks or self.is_finished:  # and so only read
                return contextlib.nullcontext()
            what = f"folder {self.path} cannot be written to ({error.strerror})"
            raise InputError(f"{what}: choose another") from error

    def finished_files(self) -> list[Path]:
        """What is mirrored next to the checkpoints, results last."""
        return [path for path in (self.figures, self.results) if path.exists()]

    def clear(self) -> None:
        """Delete what a run left; `InputError` if a drive refuses."""
        saved = [*self.checkpoints.glob("*.pt"), *self.checkpoints.glob("*.part")]
        try:
            others = self.results, self.figures, self.vocabulary, self.path / "report.html"
            for path in (*saved, *others):
                delete(path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be cleared ({error})") from error


def read_results(path: str | Path) -> dict:
    """A run's results.json, see `RESULTS`; `InputError`: it is missing or damaged."""
    if not (path := Path(path)).exists():
        raise InputError(f"{path} is missing: the run is not finished; start it again")
    return _read_json(path, RESULTS)


def read_vocabulary(path: str | Path) -> dict | None:
    """A run's vocabulary.json, None where it is missing; `InputError`: it is damaged."""
    return _read_json(Path(path), VOCABULARY) if Path(path).exists() else None


def _read_json(path: Path, schema: Mapping) -> dict:
    try:
        content = json.loads(path.read_bytes())  # of UTF-8, -16 or -32, with or without a mark
        _check(content, schema)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        advice = "restore a copy, or run again in another folder"
        raise InputError(f"{path} is damaged ({error!r}): {advice}") from error
    return content


def _check(value: object, schema: object) -> None:
    """`KeyError` for a missing key, `TypeError` for what is not a mapping."""
    if isinstance(schema, list):
        for entry in value:
            _check(entry, schema[0])
    elif isinstance(schema, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"a mapping is needed, not {value!r:.40}")
        for key, inner in schema.items():
            for entry in value.values() if key is ... else (value[key],):
                _check(entry, inner)


def write_json(path: str | Path, results: Mapping) -> None:
    """Write `results` as JSON; the file is replaced only once it is complete."""
    with atomic_write(path) as file:
        file.write(f"{json.dumps(results, indent=1)}\n".encode())


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends; if the block raises, `path` is unchanged.

    `InputError`: it cannot be written.
    """
    temporary = Path(f"{path}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            delete(temporary)
        if not isinstance(error, OSError):
            raise
        what = f"{path} cannot be written ({error.strerror or error})"
        raise InputError(f"{what}: free disk space, or choose another folder") from error


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


def figure_data(
    model: SegmentationModel, test: Frames, text_encoder: TextEncoder | None
) -> FigureData:
    """A few frames with predictions, and the similarities of the classes' texts (figure 7.1)."""
    chosen, similarities = _choose_frames(test), {}
    predictions = torch.cat([predict(model, image[None]) for image in test.images[chosen]])
    for title in ("names", "descriptions") if text_encoder else ():
        with contextlib.suppress(InputError):  # a text bank may lack the descriptions
            vectors = embed(class_prompts(title), text_encoder).vectors
            similarities[title.capitalize()] = (vectors @ vectors.T).numpy()
    shown = (x.cpu().numpy() for x in (test.images[chosen], test.labels[chosen], predictions))
    return FigureData(*shown, tuple(test.names[i] for i in chosen), similarities)


def _choose_frames(frames: Frames) -> list[int]:
    """One frame of each quarter: with the most classes, then the highest contrast; sorted by it."""
    shown, contrast = [], []
    for image, label in zip(frames.images, frames.labels, strict=True):
        counts = torch.bincount(label.flatten(), minlength=NUM_CLASSES)[:NUM_CLASSES]
        shown.append((counts > 0.002 * label.numel()).sum().item())
        contrast.append(image.float().std().item())
    quarters = np.array_split(np.arange(len(frames)), SAMPLES)
    chosen = [max(q.tolist(), key=lambda i: (shown[i], contrast[i])) for q in quarters if len(q)]
    return sorted(chosen, key=contrast.__getitem__, reverse=True)


def write_figures(path: str | Path, data: FigureData) -> None:
    """Write `data` as .npz, atomically."""
    arrays = {key: value for key, value in vars(data).items() if key != "similarities"}
    matrices = {f"similarity/{title}": matrix for title, matrix in data.similarities.items()}
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays, **matrices)


def read_figures(path: str | Path) -> FigureData | None:
    """What `write_figures` wrote; None if it is missing or damaged, as a report can do without."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        titles = [key for key in arrays if key.startswith("similarity/")]
        similarities = {key.removeprefix("similarity/"): arrays.pop(key) for key in titles}
        names = tuple(map(str, arrays.pop("names").tolist()))
        data = FigureData(**arrays, names=names, similarities=similarities)
        ids, (n, _, *size) = np.stack([data.labels, data.predictions]), data.images.shape
        fits = (data.images.shape, ids.shape) == ((n, 3, *size), (2, n, *size)) and len(names) == n
        fits &= data.images.dtype == ids.dtype == np.uint8 and ids.max(initial=0) <= VOID
        square = (NUM_CLASSES,) * 2
        fits &= all(m.shape == square and m.dtype.kind == "f" for m in similarities.values())
        return data if fits else None
    except Exception:  # numpy and zipfile answer damage with almost any exception
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    packages = ("torch", "open-clip-torch", "timm", "torchmetrics", "numpy")
    found = {"python": platform.python_version(), "camvid-lang": __version__}
    return {**found, **{package: metadata.version(package) for package in packages}}
