"""State dicts from files of weights, as wrappers and trainers save them."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from camvid_lang.errors import InputError

__all__ = ["check_finite", "read_state_dict"]

# Where checkpoints keep the state dict; averaged weights come first, as in timm.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict")
CONTAINERS += ("model_state_dict", "model", "module", "network", "net", "weights", "params")


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The state dict in a file of safetensors or torch, without wrappers' prefixes.

    Code in the file is never run.

    Raises:
        InputError: a file without a state dict.
    """
    found = saved = _load(file)
    while isinstance(found, Mapping) and (
        inner := [found[key] for key in CONTAINERS if isinstance(found.get(key), Mapping)]
    ):
        found = inner[0]
    found = found if isinstance(found, Mapping) else {}
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(map(str, list(saved)[:5])) if isinstance(saved, Mapping) else ""
        raise InputError(
            f"weights {file}: a {type(saved).__name__} ({keys}), not a state dict; save "
            "model.state_dict()"
        )
    return _without_prefixes(state)


def _load(file: Path) -> object:
    """What was saved; the file's name does not matter."""
    try:
        return load_file(file)
    except SafetensorError:
        pass
    try:
        # timm's trainer saves a Namespace; torch would go by the name of a file that is not opened.
        with file.open("rb") as opened, torch.serialization.safe_globals([Namespace]):
            return torch.load(opened, "cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise almost any exception
        with file.open("rb") as opened:
            text = opened.read(2048).decode("utf-8-sig", errors="replace").strip()
        if all(letter.isprintable() or letter.isspace() for letter in text):
            what = (
                "empty or text, such as a web page or a Git LFS pointer (it begins with "
                f"{text[:60]!r}); download the file itself"
            )
        else:
            what = (
                "neither safetensors nor tensors saved by torch, or damaged (pickled objects are "
                "not loaded, as they may run code); save model.state_dict(), or download it again"
            )
        raise InputError(f"weights {file}: {what}") from error


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the network itself, without what DataParallel, compilers and trainers add."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's
    names = [re.sub(r"\b(module|_orig_mod)\.", "", key) for key in state]
    while len({name.split(".")[0] for name in names}) == 1 and "." in names[0]:
        names = [name.partition(".")[2] for name in names]
    # Two networks in one file keep their names, so that neither is loaded.
    return dict(zip(names, state.values(), strict=True)) if len({*names}) == len(state) else state


def check_finite(model: nn.Module, source: str) -> None:
    """Raise `InputError` where a weight of the model is not finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {source}: {name} is not finite; download the file again")
