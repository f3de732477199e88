"""Where a model runs, in which precision, and how memory is kept there."""

import contextlib
import ctypes

import torch
from torch import nn

from camvid_lang.errors import InputError

__all__ = [
    "autocast",
    "give_back_freed_memory",
    "mixed_precision",
    "pick_device",
    "reuse_freed_memory",
    "short_name",
    "to_device",
]

# What ctypes raises where the C library is another one, or, on Windows, none by that name.
NO_GLIBC = (OSError, AttributeError, TypeError)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: a device that this machine or this torch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(RuntimeError, AssertionError):
        device = torch.empty(0, device=name).device
        if device.type in ("cpu", "cuda"):
            return device
    raise InputError(f"device '{name}' is not there or not supported: use cpu, cuda or auto")


def mixed_precision(device: torch.device) -> torch.dtype:
    """The dtype of autocast: bfloat16 from compute capability 8 on, float16 below, float32 on CPUs.

    A T4 (7.5) says it supports bfloat16 but emulates it slowly, so the capability is asked.
    """
    if device.type != "cuda":
        return torch.float32
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def autocast(device: torch.device, precision: torch.dtype | None = None) -> torch.autocast:
    """`torch.autocast` in the device's `mixed_precision`, or in the one given; off in float32."""
    precision = precision or mixed_precision(device)
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def short_name(precision: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(precision).removeprefix("torch.")


def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks instead of handing each back to the kernel; Linux only.

    A training step frees and takes hundreds of blocks of many megabytes. By default glibc maps
    each anew and the kernel zeroes it page by page; kept, a step on two cores took 1.7 s instead
    of 2.4 s (SwiftNet, 12 crops of 224x224).
    """
    with contextlib.suppress(*NO_GLIBC):  # slower, no harm
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Hand what was freed back to the kernel, where glibc can, so that it no longer counts."""
    with contextlib.suppress(*NO_GLIBC):
        ctypes.CDLL(None).malloc_trim(0)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on `device`, channels last, as half-precision convolutions on CUDA want it.

    On a CPU it saves a sixth of a step (ResNet-18, 6 crops of 224x224, two cores).
    """
    return model.to(device, memory_format=torch.channels_last)
