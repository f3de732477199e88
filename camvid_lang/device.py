"""The device a model runs on, and the precision it runs in."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from camvid_lang.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; `auto` is CUDA where it is available, else the CPU.

    `InputError`: a device that this machine does not have, or that is neither a CPU nor CUDA.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise InputError(f"device '{name}': {reason}; use cpu, cuda or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported: use cpu, cuda or auto")
    return device


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """PyTorch's defaults in the block, whatever the session has set; also a decorator.

    Gradients are recorded, new tensors are float32 on the CPU, autocast is off, numpy's underflows
    do not raise, and the session's random generator (the CPU's) is restored.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        yield


def mixed_precision(device: torch.device) -> torch.dtype:
    """The dtype of autocast: bfloat16 from compute capability 8, float16 below, float32 on CPUs."""
    if device.type != "cuda":
        return torch.float32
    # A T4 (7.5) reports support of bfloat16 but emulates it slowly.
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def autocast(device: torch.device, precision: torch.dtype | None = None) -> torch.autocast:
    """`torch.autocast` in `precision`, default `mixed_precision`; off in float32."""
    precision = precision or mixed_precision(device)
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on `device`, channels last: faster, above all in half precision on CUDA."""
    return model.to(device, memory_format=torch.channels_last)
