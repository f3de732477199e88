"""Several processes that train one model together, by DistributedDataParallel; or a single one."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from camvid_lang.device import pick_device
from camvid_lang.errors import InputError


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[str]:
    """Join the processes that `torchrun` started, one for each GPU; yields this process's device.

    Without torchrun that is `device`. Processes other than the first print nothing. `InputError`:
    more processes than GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield device
        return
    target = pick_device(device)
    if target.type == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise InputError(f"more processes than GPUs: give torchrun --nproc_per_node={gpus}")
        target = torch.device("cuda", number)
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        with contextlib.redirect_stdout(io.StringIO() if rank() else sys.stdout):
            yield str(target)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum over all processes, each of which has to call this."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Barrier for all processes."""
    if world_size() > 1:
        dist.barrier()


def synchronise(model: nn.Module) -> None:
    """Give all processes the BatchNorm statistics of the main one, as they differ on CPUs."""
    if world_size() > 1:
        for value in model.buffers():
            dist.broadcast(value, src=0)


def share(*tensors: Tensor) -> list[Tensor]:
    """This process's share of the first dimension of each tensor."""
    return [tensor[rank() :: world_size()] for tensor in tensors]


def replicate(model: nn.Module) -> nn.Module:
    """The model, or where several processes train it together, one that averages gradients."""
    if world_size() == 1 or not any(x.requires_grad for x in model.parameters()):
        return model
    if next(model.parameters()).device.type == "cuda":
        # In place: statistics over the whole batch. On CPUs torch has none but each share's.
        convert_sync_batchnorm(model)
    return DistributedDataParallel(model)
