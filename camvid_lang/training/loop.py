"""The training loop: Adam, cosine annealing per epoch, cross-entropy on scaled cosines.

Each epoch ends with a checkpoint, and everything random in it follows from seed and epoch. So a
killed run resumes from the last checkpoint and ends with the same weights, bit for bit on a CPU.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from camvid_lang.data.augment import batches, number_of_batches
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.device import autocast, mixed_precision
from camvid_lang.distributed import is_main, replicate, share, total, world_size
from camvid_lang.errors import InputError, Interrupted
from camvid_lang.evaluation import confusion_matrix, evaluate, scores
from camvid_lang.experiments import Experiment, learning_rate_factor
from camvid_lang.models.segmentation import SegmentationModel, best_class
from camvid_lang.training.checkpoint import Checkpoints, TrainingState


def train(
    model: SegmentationModel,
    frames: Frames | None,
    experiment: Experiment,
    checkpoints: Checkpoints,
    on_epoch: Callable[[list[dict]], object] | None = None,
    val: Frames | None = None,
) -> list[dict]:
    """Train for `experiment.epochs`, less those that the newest checkpoint has done.

    Several processes (`distributed.processes`) draw the same batches and take a share of each.

    Args:
        model: trained in place, on its device; with `ema` it ends with the averaged weights.
        frames: with labels that index `model.names`, or are void; None for no epochs.
        on_epoch: called by the main process after each epoch with the history so far.
        val: scored after each epoch, with the weights before averaging.

    Returns:
        History, one entry per epoch: epoch (from 1), loss, miou (percent, over the epoch's
        training crops), lr, seconds; with `val`, its mIoU as miou_val.

    Raises:
        InputError: a checkpoint of another run; a full disk or memory; a loss that is not finite.
        Interrupted: by SIGINT or SIGTERM, before the next step, or once the last epoch is saved.
    """
    device = next(model.parameters()).device
    frames, optimizer = frames and frames.to(device), make_optimizer(model, experiment)
    half = mixed_precision(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    average = Average(model, experiment.ema) if experiment.ema else None
    state = TrainingState(model, optimizer, scaler, average, experiment, frames)
    history, replica = state.resume(checkpoints), replicate(model)
    weight = experiment.boundary_weight
    with stop_signals(experiment.name) as check_signals, _progress(state) as bar:
        for epoch in range(len(history), experiment.epochs):
            metrics = EpochMetrics(device)
            model.train()
            set_learning_rates(optimizer, epoch, experiment)
            for images, labels in epoch_batches(frames, experiment, epoch):
                check_signals()
                images, labels = share(images, labels)
                with memory_errors(experiment):
                    optimizer.zero_grad()  # here, not to add to the peak of memory
                    with autocast(device):
                        output = replica(images)
                        loss = segmentation_loss(output, labels, model.temperature, weight)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                if average:
                    average.update()
                metrics.add(loss.detach(), output.detach(), labels)
                bar.update()
            history.append(metrics.summary(epoch, optimizer.param_groups[0]["lr"]))
            state.check_finite()
            bar.set_postfix(epoch=epoch + 1, loss=history[-1]["loss"])
            if val:
                history[-1]["miou_val"] = evaluate(model, val, desc="val")["miou"]
            if is_main():
                checkpoints.save(state.contents())
                if on_epoch:
                    on_epoch(history)
        check_signals()
    if not experiment.epochs and is_main():
        checkpoints.save(state.contents())
    if average:
        model.load_trained_state({**model.trained_state(), **average.weights})
    return history


def epoch_batches(
    frames: Frames, experiment: Experiment, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch (from 0), see `data.augment.batches`.

    They follow from seed and epoch; so does what layers draw meanwhile (ConvNeXt drops paths).
    """
    seeds = np.random.SeedSequence((experiment.seed, epoch)).generate_state(2, np.uint64)
    crops, layers = map(int, seeds)
    torch.manual_seed(layers)
    generator = torch.Generator().manual_seed(crops)
    scales, jitter = (experiment.scale_min, experiment.scale_max), experiment.colour_jitter
    return batches(frames, experiment.batch_size, experiment.crop, generator, scales, jitter)


def segmentation_loss(
    output: Tensor, labels: Tensor, temperature: float, boundary_weight: float = 1.0
) -> Tensor:
    """Cross-entropy of the temperature softmax (thesis, equations 2.2 and 2.3) without void.

    Args:
        output: (N, K, H, W) cosines, or logits with temperature 1.
        labels: (N, H, W) uint8 ids; pixels of id 11 (void) are ignored.
        boundary_weight: other than 1, the mean is weighted by `boundary_weights`, and pixels of
            probability p by a further exp((1 - p) / 2).

    Returns:
        Mean over labelled pixels, 0 if there are none; of several processes each gets a share,
        whose mean over the processes is the mean over all their labelled pixels.

    Example:
        >>> segmentation_loss(torch.zeros(1, 11, 2, 2), torch.zeros(1, 2, 2), 1.0)  # log(11)
        tensor(2.3979)
    """
    logits, counted = output.float() / temperature, labels != VOID
    reduction = "sum" if boundary_weight == 1 else "none"
    loss = F.cross_entropy(logits, labels.long(), ignore_index=VOID, reduction=reduction)
    if boundary_weight != 1:
        counted = counted * boundary_weights(labels, boundary_weight)
        loss = (counted * loss * ((1 - (-loss.detach()).exp()) / 2).exp()).sum()
    return loss * world_size() / total(counted.sum()).clamp_min(1)


def boundary_weights(labels: Tensor, weight: float) -> Tensor:
    """Weights (N, H, W), 1 to `weight`, of labels (N, H, W) uint8 by distance to another class.

    With weight 8: 8, 6, 4 and 2 up to 1, 4, 16 and 32 pixels (the larger one of rows and columns),
    then 1. Orsic and Segvic, "Efficient semantic segmentation with pyramidal fusion" (2021),
    section 3.3, where distances are 4 times larger, as their frames are. Void counts as a class.
    """
    # 255 - id turns the largest into the smallest. A neighbour of another class: distance 1.
    near = (_dilated(labels, 1) != 255 - _dilated(255 - labels, 1)).to(torch.uint8)
    weights, reached = torch.ones_like(labels, dtype=torch.float32), 1
    for fraction, distance in ((1, 1), (0.75, 4), (0.5, 16), (0.25, 32)):
        near, reached = _dilated(near, distance - reached), distance
        weights = torch.maximum(weights, near * (weight * fraction))
    return weights


def _dilated(x: Tensor, reach: int) -> Tensor:
    """Maximum over squares of 2 * reach + 1 pixels, 16 times as fast as `max_pool2d` on CPUs."""
    for axis in (1, 2):
        covered = 0
        while covered < reach:
            step = min(2 * covered + 1, reach - covered)
            padded = F.pad(x, (step, step) if axis == 2 else (0, 0, step, step))
            left, right = (padded.narrow(axis, at, x.shape[axis]) for at in (0, 2 * step))
            x, covered = torch.maximum(torch.maximum(left, right), x), covered + step
    return x


def make_optimizer(model: SegmentationModel, experiment: Experiment) -> torch.optim.Adam:
    """Adam with one group for the new layers and one for the encoder, empty where it is frozen."""
    parts = (
        (model.decoder_parameters(), experiment.lr, experiment.weight_decay),
        (model.encoder.parameters(), experiment.encoder_lr, experiment.encoder_weight_decay),
    )
    groups = []
    for parameters, lr, decay in parts:
        trained = [p for p in parameters if p.requires_grad]
        groups.append({"params": trained, "lr": lr, "initial_lr": lr, "weight_decay": decay})
    # Fused: one pass over the weights, and a gradient scaler that does not wait for the device.
    return torch.optim.Adam(groups, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, epoch: int, experiment: Experiment
) -> None:
    """Anneal the learning rates to this epoch (from 0), see `learning_rate_factor`."""
    schedule = experiment.epochs, experiment.final_lr_fraction, experiment.warmup_epochs
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * learning_rate_factor(epoch, *schedule)


class EpochMetrics:
    """Loss and confusion matrix of an epoch; counted every 16 steps, as that waits for a GPU."""

    def __init__(self, device: torch.device):
        self.started = time.perf_counter()
        self.steps, self.loss = 0, torch.zeros((), dtype=torch.float64, device=device)
        self.confusion = confusion_matrix([]).to(device)
        self._uncounted: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, output: Tensor, labels: Tensor) -> None:
        """Add the mean loss of a step, its scores (N, K, H, W) and labels (N, H, W)."""
        self.steps += 1
        self.loss += loss
        self._uncounted.append((best_class(output), labels))
        if len(self._uncounted) == 16:
            self._count()

    def _count(self) -> None:
        self.confusion += confusion_matrix(self._uncounted).to(self.confusion.device)
        self._uncounted = []

    def summary(self, epoch: int, lr: float) -> dict:
        """The entry of the history: mIoU in percent, or None where nothing is labelled."""
        self._count()
        return {
            "epoch": epoch + 1,
            "loss": total(self.loss).item() / world_size() / self.steps,
            "miou": scores(total(self.confusion))["miou"],
            "lr": lr,
            "seconds": time.perf_counter() - self.started,
        }


class Average:
    """Exponential moving average of the weights and running statistics that training changes.

    Step n uses at most the decay n / (n + 9), to forget the random initialisation.
    """

    def __init__(self, model: SegmentationModel, decay: float):
        self.decay, self.steps = decay, 0
        # Tensors of the model, which training changes in place; step counters are left out.
        self.live = {k: v for k, v in model.trained_state().items() if v.is_floating_point()}
        self.weights = {key: value.clone() for key, value in self.live.items()}

    def update(self) -> None:
        """Add the weights after a step."""
        self.steps += 1
        update = get_ema_multi_avg_fn(min(self.decay, self.steps / (self.steps + 9)))
        update(list(self.weights.values()), list(self.live.values()), self.steps)

    def load(self, steps: int, weights: dict[str, Tensor]) -> None:
        """Resume with the `steps` and `weights` that were saved."""
        self.steps = steps
        for key, value in self.weights.items():
            value.copy_(weights[key])


@contextlib.contextmanager
def memory_errors(experiment: Experiment) -> Iterator[None]:
    """Report a lack of memory as an `InputError` that names the settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        sizes = f"batch_size ({experiment.batch_size}) or crop ({experiment.crop})"
        raise InputError(f"{experiment.name}: {error}; lower {sizes}") from error


def _progress(state: TrainingState) -> tqdm:
    experiment, done = state.experiment, len(state.history)
    steps = number_of_batches(len(state.frames), experiment.batch_size) if experiment.epochs else 0
    counts = {"total": experiment.epochs * steps, "initial": done * steps, "unit": "step"}
    return tqdm(desc=experiment.name, **counts, disable=not (is_main() and steps))


@contextlib.contextmanager
def stop_signals(name: str) -> Iterator[Callable[[], None]]:
    """Note SIGINT and SIGTERM in the block; the function it yields then raises `Interrupted`."""
    received: list[int] = []

    def check() -> None:
        if received:
            message = f"{name}: stopped; run again to resume after the last complete epoch"
            raise Interrupted(received[0], message)

    main = threading.current_thread() is threading.main_thread()  # the one that gets signals
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    handlers = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield check
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
