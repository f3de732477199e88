"""Checkpoints of a run: complete or absent, checked when they are read, the last two kept.

A run may be killed at any moment, and drives damage files. So a file gets its name only once it is
complete and on the disk, and the one before is used in place of a damaged one.
"""

import contextlib
import hashlib
import math
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from camvid_lang.data.camvid import Frames
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.models.text import Vocabulary
from camvid_lang.results import atomic_write, delete

KEPT = 2
# Where files are may change from one session to the next; what was read from them is compared.
LOCATIONS = ("text_set", "weights", "text_bank")
KEYS = {"settings", "identity", "vocabulary", "epoch", "history", "model", "optimizer", "scaler"}


def epoch_of(path: Path) -> int:
    """The number of epochs after which a checkpoint was saved, from its name."""
    return int(path.stem.removeprefix("last-"))


def load_checkpoint(path: str | Path) -> dict:
    """The state in a file, on the CPU; code in it is never run. `InputError`: it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if member := archive.testzip():  # torch.load does not compare the checksums
                raise zipfile.BadZipFile(f"checksum of {member} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise almost any exception
        reason = textwrap.shorten(str(error) or type(error).__name__, 150)
        what = f"{path} is damaged or not a checkpoint ({reason})"
        raise InputError(f"{what}: restore a copy, or choose another folder") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise InputError(f"checkpoint {path} was not written by camvid_lang: choose another folder")
    return state


class Checkpoints:
    """The checkpoints `last-EPOCH.pt` in a folder; `on_saved` is called after each save."""

    def __init__(self, folder: str | Path, on_saved: Callable[[], object] | None = None):
        self.folder, self.on_saved = Path(folder), on_saved

    def files(self) -> list[Path]:
        """All files, oldest first. A process that is killed may leave older ones, emptied."""
        found = self.folder.glob("last-*.pt")  # also the copies that Google Drive numbers
        return sorted((x for x in found if x.stem[5:].isdecimal()), key=epoch_of)

    @property
    def epoch(self) -> int:
        """The epoch of the newest file; -1 without one."""
        return max(map(epoch_of, self.files()), default=-1)

    def newest(self, strict: bool = True) -> tuple[Path, dict] | None:
        """The newest undamaged checkpoint and its state, if any.

        If `strict`, damaged ones are noted, and `InputError` is raised where all are damaged.
        """
        while files := self.files():
            errors = []
            for path in reversed(files):
                try:
                    found = path, load_checkpoint(path)
                except InputError as error:
                    errors.append(error)
                    continue
                for error in errors if strict else ():
                    print(f"note: {error}; falling back to epoch {epoch_of(path)}")
                return found
            if self.files() == files:  # otherwise a run that trains has replaced them meanwhile
                if not strict:
                    return None
                raise InputError(f"no checkpoint is left: {'; '.join(map(str, errors))}")
        return None

    def prune(self) -> None:
        """Delete all but the last two files; what a drive refuses to delete waits for next time."""
        # Not emptied where a mirror follows, which may be copying it and would take it as whole.
        remove = Path.unlink if self.on_saved else delete
        for path in self.files()[:-KEPT]:
            with contextlib.suppress(OSError):
                remove(path)

    def save(self, state: Mapping) -> Path:
        """Save the state after state["epoch"] epochs; `InputError`: it cannot; older files stay."""
        path = self.folder / f"last-{state['epoch']:04d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                torch.save(dict(state), file)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch.save on a full disk
            reason = textwrap.shorten(str(error), 150)
            advice = "free disk space and run again to resume"
            raise InputError(f"{path} cannot be written ({reason}): {advice}") from error
        self.prune()
        if self.on_saved:
            self.on_saved()
        return path


@dataclass
class TrainingState:
    """What changes in training, and what has to be the same to resume it.

    `history` is what `training.loop.train` returns, `identity` digests of the frames and of the
    encoder that training starts from, `average` a `training.loop.Average`.
    """

    model: SegmentationModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: object
    experiment: Experiment
    frames: Frames | None
    history: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.identity = {
            "frames": self.frames.digest if self.frames else "",
            "size": list(self.frames.images.shape[-2:]) if self.frames else None,
            "encoder": encoder_digest(self.model.encoder),
        }

    def contents(self) -> dict:
        """Everything that the next epoch depends on, as tensors and plain data."""
        vocabulary, average = self.model.vocabulary, self.average
        return {
            "settings": self.experiment.settings(),
            "identity": self.identity,
            "vocabulary": vocabulary and vocabulary.state(),
            "epoch": len(self.history),
            "history": self.history,
            "model": self.model.trained_state(),
            "average": {"steps": average.steps, "weights": average.weights} if average else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self, checkpoints: Checkpoints) -> list[dict]:
        """Load the newest checkpoint, if any; returns the history. `InputError`: of another run."""
        if found := checkpoints.newest():
            path, state = found
            raise_changed(f"checkpoint {path} is of another run", self._differences(state))
            self.model.load_trained_state(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load(**state["average"])
            if state["scaler"]:  # empty if the device before trained without one
                self.scaler.load_state_dict(state["scaler"])
            self.history = state["history"]
            print(f"{self.experiment.name}: resuming after epoch {state['epoch']}")
        return self.history

    def _differences(self, state: Mapping) -> list[str]:
        """What differs between a checkpoint and this run, one text each."""
        changed = changed_settings(state["settings"], self.experiment.settings())
        if state["identity"]["frames"] != self.identity["frames"]:
            changed.append("the training frames differ")
        if state["identity"]["encoder"] != self.identity["encoder"]:
            changed.append("weights: the encoder differs")
        if (vocabulary := self.model.vocabulary) and state["vocabulary"]:
            stored = Vocabulary(**state["vocabulary"])
            if vocabulary.prompts != stored.prompts:
                changed.append("text_set: the prompts differ")
            if not vocabulary.same_vectors(stored):
                changed.append("text_set, text_bank or weights: the text embeddings differ")
        return changed

    def check_finite(self) -> None:
        """`InputError` where the loss of the last epoch or a weight is not finite."""
        finite = all(value.isfinite().all() for value in self.model.trained_state().values())
        name, entry = self.experiment.name, self.history[-1]
        if not (finite and math.isfinite(entry["loss"])):
            what = f"loss is {entry['loss']}" if finite else "weights are not finite"
            advice = "the epoch is not saved: lower lr"
            raise InputError(f"{name}: {what} in epoch {entry['epoch']}; {advice}")


def changed_settings(stored: Mapping, wanted: Mapping) -> list[str]:
    """Each setting in which a stored run differs from the wanted one, as `lr was 0.1, now 0.2`."""
    return [
        f"{key} was {stored.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if key not in LOCATIONS and stored.get(key) != value
    ]


def raise_changed(what: str, changed: list[str]) -> None:
    """`InputError` where anything has changed; only runs of the same experiment start over."""
    if changed:
        over = "" if changed[0].startswith("name ") else ", or start over with fresh=True"
        advice = f"undo the change, choose another folder{over}"
        raise InputError(f"{what} ({'; '.join(changed)}): {advice}")


def encoder_digest(encoder: nn.Module) -> str:
    """SHA-256 (hex) over all weights of an encoder."""
    digest = hashlib.sha256()
    for value in encoder.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()
