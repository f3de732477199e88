"""Checkpoints: written whole or not at all, read without running any code from the file."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from camvid_lang.errors import InputError

__all__ = ["load_checkpoint", "refuse_changed_settings", "save_checkpoint"]

# Where things lie may change between two sessions; what is learned does not depend on it.
_PLACES = ("weights", "text_bank")


def save_checkpoint(path: str | Path, state: Mapping) -> None:
    """Write `state` (tensors, numbers, texts, lists, dictionaries) to a temporary, then rename.

    A reader sees the old file or the new one, never a half.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
    with open(temporary, "wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: str | Path) -> dict:
    """Read what `save_checkpoint` wrote; tensors arrive on the CPU.

    Raises:
        InputError: no such file, damaged, or holding anything but plain data.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} does not exist: run the experiment first") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"checkpoint {path} is damaged or no checkpoint: delete it, or start over with --fresh"
        ) from error
    if not isinstance(state, dict) or not {"settings", "model", "epoch"} <= state.keys():
        raise InputError(f"checkpoint {path} was not written by camvid_lang: choose another --out")
    return state


def refuse_changed_settings(path: str | Path, stored: Mapping, wanted: Mapping) -> None:
    """Raise `InputError` naming every setting in which a checkpoint differs from the run."""
    if stored.get("name") != wanted["name"]:
        raise InputError(
            f"checkpoint {path} is of experiment '{stored.get('name')}', not '{wanted['name']}': "
            "choose another --out, or start afresh with --fresh"
        )
    changed = [
        f"{key} was {stored.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if key not in _PLACES and stored.get(key) != value
    ]
    if changed:
        raise InputError(
            f"checkpoint {path} was made with other settings ({'; '.join(changed)}): "
            "choose another --out, or start afresh with --fresh"
        )
