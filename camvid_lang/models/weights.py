"""State dicts from files of weights, as training scripts save them."""

import textwrap
from argparse import Namespace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from camvid_lang.errors import InputError


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in a checkpoint saved by torch.

    timm's loader takes averaged weights first and removes the prefixes of DataParallel and
    compilers; a prefix that all names share, such as Lightning's `model.`, is removed as well. Code
    in the file is never run.

    Raises:
        InputError: a file without a state dict.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):  # the settings of timm's trainer
            # weights_only: timm 1.0.17 to 1.0.25 would run code in the file by default.
            found = timm.models.load_state_dict(str(file), weights_only=True)
        found = found.get("model_state_dict", found)  # as in PyTorch's tutorial
        state = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        state.pop("n_averaged", None)  # of torch's AveragedModel
        if not state:
            raise ValueError(f"it holds no tensors, but {', '.join(map(str, found))[:80]}")
    except Exception as error:  # damaged bytes raise almost any exception
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 150)
        raise InputError(
            f"weights {file}: not a state dict in .safetensors or saved by torch ({reason}); is it "
            "a web page, a Git LFS pointer, damaged? Download it again, or save model.state_dict()"
        ) from error
    while len({name.split(".")[0] for name in state}) == 1 and "." in next(iter(state)):
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return timm.models.clean_state_dict(state)


def check_finite(model: nn.Module, source: str) -> None:
    """Raise `InputError` where a weight of the model is not finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {source}: {name} is not finite; download the file again")
