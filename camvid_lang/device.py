"""The device a model runs on, the precision it runs in, and the processes that train together."""

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from camvid_lang.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; `auto` is CUDA where it is available, else the CPU.

    Raises:
        InputError: a device that this machine does not have, or that is neither a CPU nor CUDA.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
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


def mixed_precision(device: torch.device) -> torch.dtype:
    """The dtype of autocast: bfloat16 from compute capability 8 on, float16 below, float32 on CPUs.

    The capability decides, as a T4 (7.5) reports support of bfloat16 but emulates it slowly.
    """
    if device.type != "cuda":
        return torch.float32
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def autocast(device: torch.device, precision: torch.dtype | None = None) -> torch.autocast:
    """`torch.autocast` in `precision`, default `mixed_precision(device)`; off in float32."""
    precision = precision or mixed_precision(device)
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on `device`, channels last, which half-precision convolutions on CUDA need.

    On a CPU it saves a sixth of a step (ResNet-18, 6 crops of 224x224, two cores).
    """
    return model.to(device, memory_format=torch.channels_last)


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[str]:
    """Join the processes that `torchrun` started, one for each GPU; yields this process's device.

    Without torchrun that is `device`. Processes other than the first print nothing.

    Raises:
        InputError: more processes than GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield device
        return
    where = pick_device(device)
    if where.type == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise InputError(f"more processes than GPUs: give torchrun --nproc_per_node={gpus}")
        where = torch.device("cuda", number)
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing if rank() else sys.stdout),
        ):
            yield str(where)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process among those that train together; the first, 0, writes files."""
    return dist.get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together."""
    joined = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if joined else 1


def total(values: Tensor) -> Tensor:
    """The sum over all processes, each of which has to call this."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()
