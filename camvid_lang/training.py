"""One plain training loop: Adam, cosine annealing per epoch, cross-entropy on scaled cosines."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from camvid_lang.checkpoint import load_checkpoint, refuse_changed_settings, save_checkpoint
from camvid_lang.data import Frames, batches, number_of_batches
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment, learning_rate_factor
from camvid_lang.metrics import confusion_metric, scores
from camvid_lang.models import Segmenter
from camvid_lang.taxonomy import VOID

__all__ = [
    "make_optimizer",
    "mixed_precision",
    "pick_device",
    "place",
    "reuse_freed_memory",
    "segmentation_loss",
    "train",
    "training_step",
]


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: a device that this machine or this torch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not there: use cpu, cuda or auto") from error


def mixed_precision(device: torch.device) -> torch.dtype:
    """The dtype of autocast: bfloat16 from compute capability 8 on, float16 below, float32 on CPUs.

    A T4 (7.5) says it supports bfloat16 but emulates it slowly, so the capability is asked.
    """
    if device.type != "cuda":
        return torch.float32
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if recent else torch.float16


def reuse_freed_memory() -> None:
    """Let glibc keep freed blocks instead of handing each back to the kernel; Linux only.

    A training step frees and takes hundreds of blocks of many megabytes. By default glibc maps
    each anew and the kernel zeroes it page by page; kept, a step on two cores took 1.7 s instead
    of 2.4 s (SwiftNet, 12 crops of 224x224).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: slower, no harm
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def place(model: Segmenter, device: torch.device) -> Segmenter:
    """The model on `device`, channels last on CUDA, where half-precision convolutions want it."""
    if device.type == "cuda":
        return model.to(device, memory_format=torch.channels_last)
    return model.to(device)


def segmentation_loss(scores_map: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the temperature softmax (thesis, equations 2.2 and 2.3), void left out.

    Args:
        scores_map: (N, K, H, W) cosines, or logits with temperature 1.
        labels: (N, H, W) uint8 ids; pixels of id 11 count nowhere.
        temperature: divides the scores.

    Returns:
        Mean over labelled pixels; 0 for a batch that has none.
    """
    total = F.cross_entropy(
        scores_map.float() / temperature, labels.long(), ignore_index=VOID, reduction="sum"
    )
    return total / (labels != VOID).sum().clamp_min(1)


def make_optimizer(model: Segmenter, experiment: Experiment) -> torch.optim.Adam:
    """Adam with one group for what is new and, when it trains, one for the encoder."""
    groups = [
        {
            "params": list(model.decoder_parameters()),
            "lr": experiment.lr,
            "weight_decay": experiment.weight_decay,
        }
    ]
    if experiment.train_encoder:
        groups.append(
            {
                "params": list(model.encoder.parameters()),
                "lr": experiment.encoder_lr,
                "weight_decay": experiment.encoder_weight_decay,
            }
        )
    return torch.optim.Adam(groups)


def training_step(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, update. Returns the loss and the scores, both detached."""
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        output = model(images)
        loss = segmentation_loss(output, labels, model.temperature)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), output.detach()


def train(
    model: Segmenter,
    frames: Frames,
    experiment: Experiment,
    checkpoint: str | Path,
    device: torch.device,
    on_epoch: Callable[[list[dict]], None] | None = None,
) -> list[dict]:
    """Train for `experiment.epochs`, saving after each; goes on from `checkpoint` if it exists.

    Args:
        model: trained in place, on `device`.
        frames: the training split; batches are cut from it where it lies.
        checkpoint: the file to go on from and to write.
        on_epoch: called after each epoch with the history so far (to draw curves, say).

    Returns:
        History, one entry per epoch: epoch (from 1), loss, miou (percent, over the epoch's own
        training crops as they were seen), lr, seconds.

    Raises:
        InputError: a checkpoint that is damaged or of other settings; a loss that is not finite
            (the last good checkpoint stays).
    """
    checkpoint = Path(checkpoint)
    torch.manual_seed(experiment.seed)
    order = torch.Generator().manual_seed(experiment.seed)
    optimizer = make_optimizer(model, experiment)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda epoch: learning_rate_factor(epoch, experiment.epochs, experiment.final_lr_fraction),
    )
    precision = mixed_precision(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    history: list[dict] = []
    parts = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}

    if checkpoint.exists():
        history = _restore(checkpoint, experiment, model, parts, order)

    steps = number_of_batches(len(frames), experiment.batch_size)
    bar = tqdm(
        total=experiment.epochs * steps,
        initial=len(history) * steps,
        desc=experiment.name,
        unit="step",
        mininterval=1,
    )
    for epoch in range(len(history), experiment.epochs):
        started = time.perf_counter()
        model.train()
        confusion = confusion_metric().to(device)
        total = torch.zeros((), device=device)
        for images, labels, _ in batches(frames, experiment.batch_size, experiment.crop, order):
            loss, output = training_step(model, images, labels, optimizer, scaler, precision)
            total += loss
            confusion.update(output.argmax(dim=1), labels)
            bar.update()
        mean_loss = total.item() / steps
        if not torch.isfinite(total):
            raise InputError(
                f"{experiment.name}: the loss became {mean_loss} in epoch {epoch + 1}; the "
                f"checkpoint of epoch {epoch} stays at {checkpoint}: try a smaller --set lr=..."
            )
        history.append(
            {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "miou": scores(confusion.compute())["miou"],
                "lr": optimizer.param_groups[0]["lr"],
                "seconds": time.perf_counter() - started,
            }
        )
        schedule.step()
        save_checkpoint(
            checkpoint,
            {
                "settings": experiment.settings(),
                "epoch": epoch + 1,
                "history": history,
                "model": model.learned_state(),
                "random": {"torch": torch.get_rng_state(), "order": order.get_state()},
                **{name: part.state_dict() for name, part in parts.items()},
            },
        )
        bar.set_postfix_str(f"epoch {epoch + 1}/{experiment.epochs}, loss {mean_loss:.3f}")
        if on_epoch:
            on_epoch(history)
    bar.close()
    return history


def _restore(
    checkpoint: Path,
    experiment: Experiment,
    model: nn.Module,
    parts: dict,
    order: torch.Generator,
) -> list[dict]:
    """Bring everything back to where the checkpoint left it; returns the history."""
    state = load_checkpoint(checkpoint)
    refuse_changed_settings(checkpoint, state["settings"], experiment.settings())
    try:
        model.load_learned_state(state["model"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"]["torch"])
        order.set_state(state["random"]["order"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"checkpoint {checkpoint} does not fit {experiment.name}: start afresh with --fresh"
        ) from error
    return list(state["history"])
