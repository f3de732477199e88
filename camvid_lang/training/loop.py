"""The training loop: Adam, cosine annealing per epoch, cross-entropy on scaled cosines.

Each epoch ends with a checkpoint. A run that was killed resumes from the last one and ends with the
same weights, bit for bit on a CPU.
"""

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from camvid_lang.data.augment import batches, number_of_batches
from camvid_lang.data.camvid import Frames
from camvid_lang.device import autocast, mixed_precision, rank, total, world_size
from camvid_lang.errors import START_OVER, InputError, Interrupted
from camvid_lang.evaluation import confusion_matrix, evaluate, scores
from camvid_lang.experiments import Experiment, learning_rate_factor
from camvid_lang.models.segmentation import SegmentationModel, best_class
from camvid_lang.training.checkpoint import Checkpoints, changed_settings


def train(
    model: SegmentationModel,
    frames: Frames,
    experiment: Experiment,
    checkpoints: Checkpoints,
    device: torch.device,
    on_epoch: Callable[[list[dict]], object] | None = None,
    about: Mapping | None = None,
    others: Sequence[tuple[Frames, Tensor]] = (),
    val: Frames | None = None,
) -> list[dict]:
    """Train for `experiment.epochs`, less those that the newest checkpoint has done.

    Where several processes train together (`device.processes`), each draws the same batches and
    takes its share of the crops, so a run may be resumed by another number of processes.

    Args:
        model: trained in place, on `device`; with `ema` it ends with the averaged weights.
        on_epoch: called after each epoch with the history so far (to draw curves, say).
        about: plain data kept with the checkpoints' identity.
        others: further data sets, each with the text embeddings (K, C) of its own classes. Batches
            are drawn from all sets as if they were one, and a crop is compared with the words of
            its own set. Without language classes are merged by hand, as in MSeg (Lambert et al.,
            2020).
        val: scored after each epoch, with the weights as they are (not averaged).

    Returns:
        History, one entry per epoch: epoch (from 1), loss, miou (percent, over the epoch's own
        training crops, of `frames` only), lr, seconds; with `val`, its mIoU as miou_val.

    Raises:
        InputError: a checkpoint of another run, or one that cannot be written; a loss that is not
            finite; too little memory.
        Interrupted: by SIGINT or SIGTERM, after at most the step under way.
    """
    sets = [frames, *(other for other, _ in others)]
    text = [getattr(model, "text", None), *(matrix for _, matrix in others)]
    if others and world_size() > 1:
        raise InputError(
            "also: several data sets are trained on in one process; leave out torchrun"
        )
    trainer = Trainer(model, experiment, device, _sets_digest(sets))
    trainer.identity |= about or {}
    trainer.identity["also"] = [matrix.cpu() for matrix in text[1:]]
    history = trainer.resume(checkpoints)
    name, epochs, size = experiment.name, experiment.epochs, experiment.batch_size
    steps, done = number_of_batches(sum(map(len, sets)), size), len(history)
    with (
        stop_signals(name) as check_signals,
        tqdm(
            desc=name,
            total=epochs * steps,
            initial=done * steps,
            unit="step",
            disable=rank() > 0,
        ) as bar,
    ):
        for epoch in range(done, epochs):
            started, metrics = time.perf_counter(), EpochMetrics(device)
            trainer.start_epoch(epoch)
            for parts in batches(
                sets,
                size,
                experiment.crop,
                trainer.generator,
                scales=(experiment.scale_min, experiment.scale_max),
                colour_jitter=experiment.colour_jitter,
            ):
                check_signals()
                images, labels = map(torch.cat, zip(*parts.values(), strict=True))
                images, labels = (x[rank() :: world_size()] for x in (images, labels))
                words = [(len(parts[i][1]), text[i]) for i in parts] if others else ()
                loss, output = trainer.step(images, labels, words)
                if 0 in parts:  # of the first set
                    metrics.add(output, labels[: len(output)])
                metrics.add_loss(loss)
                bar.update()
            loss, miou = metrics.read()
            best = (miou or 0) > max((entry["miou"] or 0 for entry in history), default=-1)
            seconds = time.perf_counter() - started
            trainer.end_epoch(loss=loss, miou=miou, seconds=seconds)
            if val:
                history[-1]["miou_val"] = evaluate(model, val, desc=f"{name}: val")["miou"]
            if rank() == 0:
                checkpoints.save(trainer.state(), epoch + 1, best)
            bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}, loss {loss:.3f}")
            if epoch == done and (left := epochs - epoch - 1):
                rest = left * seconds / 60
                minutes = f"{rest:.0f} minutes" if rest > 1.5 else "a minute"
                bar.write(f"{name}: {seconds:.1f} s per epoch, about {minutes} for {left} more")
            if on_epoch and rank() == 0:
                on_epoch(history)
        check_signals()
    if trainer.average:
        model.load_trained_state({**model.trained_state(), **trainer.average.weights})
    return history


def segmentation_loss(
    scores_map: Tensor, labels: Tensor, temperature: float, boundary_weight: float = 1.0
) -> Tensor:
    """Cross-entropy of the temperature softmax (thesis, equations 2.2 and 2.3) without void.

    Args:
        scores_map: (N, K, H, W) cosines, or logits with temperature 1.
        labels: (N, H, W) uint8 ids; pixels of id K (void) are ignored.
        boundary_weight: with other than 1, the boundary-aware loss: the mean is weighted by
            `boundary_weights`, and pixels of probability p by a further exp((1 - p) / 2).

    Returns:
        Mean over labelled pixels; 0 if there are none. Of several processes (`device.processes`)
        each gets a share, of which the mean is that of all their labelled pixels.

    Example:
        >>> segmentation_loss(torch.zeros(1, 11, 2, 2), torch.zeros(1, 2, 2), 1.0)  # log(11)
        tensor(2.3979)
    """
    logits, void = scores_map.float() / temperature, scores_map.shape[1]
    counted = labels != void
    if boundary_weight == 1:
        loss = F.cross_entropy(logits, labels.long(), ignore_index=void, reduction="sum")
    else:
        losses = F.cross_entropy(logits, labels.long(), ignore_index=void, reduction="none")
        counted = counted * boundary_weights(labels, boundary_weight)
        loss = (counted * losses * ((1 - (-losses.detach()).exp()) / 2).exp()).sum()
    return loss * world_size() / total(counted.sum()).clamp_min(1)


def boundary_weights(labels: Tensor, weight: float) -> Tensor:
    """Weight of each pixel by its distance to the next pixel of another class.

    Orsic and Segvic, "Efficient semantic segmentation with pyramidal fusion" (2021), section 3.3,
    with weight 8: 8, 6, 4, 2 and 1. There these are the weights up to 4, 16, 64, 128 pixels and
    beyond, in frames of 2048x1024; here up to 1, 4, 16, 32, as CamVid's are a quarter as wide. The
    distance is the larger one of rows and columns; void counts as a class.

    Args:
        labels: (N, H, W) uint8 ids.
        weight: of pixels at a boundary, at least 1.

    Returns:
        (N, H, W) float, from 1 to `weight`.
    """
    # 255 - id turns the largest into the smallest. A neighbour of another class: distance 1.
    near = (_dilated(labels, 1) != 255 - _dilated(255 - labels, 1)).to(torch.uint8)
    weights, reached = torch.ones_like(labels, dtype=torch.float32), 1
    for share, distance in ((1, 1), (0.75, 4), (0.5, 16), (0.25, 32)):
        near, reached = _dilated(near, distance - reached), distance
        weights = torch.maximum(weights, near * (weight * share))
    return weights


def _dilated(x: Tensor, reach: int) -> Tensor:
    """Maximum over squares of 2 * reach + 1 pixels; (N, H, W) uint8.

    Windows of windows: on a CPU 16 times as fast as `max_pool2d` for `boundary_weights`.
    """
    for axis in (1, 2):
        covered = 0
        while covered < reach:
            step = min(2 * covered + 1, reach - covered)
            padded = F.pad(x, (step, step) if axis == 2 else (0, 0, step, step))
            left, right = (padded.narrow(axis, at, x.shape[axis]) for at in (0, 2 * step))
            x, covered = torch.maximum(torch.maximum(left, right), x), covered + step
    return x


def make_optimizer(model: SegmentationModel, experiment: Experiment) -> torch.optim.Adam:
    """Adam with one group for the new layers and, when it is trained, one for the encoder."""
    groups = [
        {
            "params": [*model.decoder_parameters()],
            "lr": experiment.lr,
            "weight_decay": experiment.weight_decay,
        }
    ]
    if experiment.train_encoder:
        groups.append(
            {
                "params": [p for p in model.encoder.parameters() if p.requires_grad],
                "lr": experiment.encoder_lr,
                "weight_decay": experiment.encoder_weight_decay,
            }
        )
    for group in groups:
        group["initial_lr"] = group["lr"]
    # Fused: one pass over the weights, and a gradient scaler that does not wait for the device.
    return torch.optim.Adam(groups, fused=True)


class EpochMetrics:
    """Loss and confusion matrix of an epoch; counted every few steps, as that waits for a GPU."""

    def __init__(self, device: torch.device):
        self.steps, self.loss = 0, torch.zeros((), dtype=torch.float64, device=device)
        self.confusion = confusion_matrix([]).to(device)
        self._uncounted: list[tuple[Tensor, Tensor]] = []

    def add_loss(self, loss: Tensor) -> None:
        """Add the mean loss of one step."""
        self.steps += 1
        self.loss += loss

    def add(self, output: Tensor, labels: Tensor) -> None:
        """Add scores (N, K, H, W) and labels (N, H, W)."""
        self._uncounted.append((best_class(output), labels))
        if len(self._uncounted) == 16:
            self._count()

    def _count(self) -> None:
        self.confusion += confusion_matrix(self._uncounted).to(self.confusion.device)
        self._uncounted = []

    def read(self) -> tuple[float, float | None]:
        """The mean loss of a step, and the mIoU in percent (None where nothing is labelled)."""
        self._count()
        loss = total(self.loss).item() / world_size()
        return loss / self.steps, scores(total(self.confusion))["miou"]


class Average:
    """Exponential moving average of the weights and running statistics that training changes.

    Early steps use a smaller decay, n / (n + 9) in step n, to forget the random initialisation.
    """

    def __init__(self, model: SegmentationModel, decay: float):
        self.decay, self.steps = decay, 0
        # The model's own tensors, which training changes in place; step counters stay as they are.
        self.live = {k: v for k, v in model.trained_state().items() if v.is_floating_point()}
        self.weights = {key: value.clone() for key, value in self.live.items()}

    def update(self) -> None:
        """Add the weights as they are after a step."""
        self.steps += 1
        update = get_ema_multi_avg_fn(min(self.decay, self.steps / (self.steps + 9)))
        update(list(self.weights.values()), list(self.live.values()), self.steps)

    def state(self) -> dict:
        return {"steps": self.steps, "weights": self.weights}

    def load_state(self, state: dict) -> None:
        self.steps = state["steps"]
        for key, value in self.weights.items():
            value.copy_(state["weights"][key])


class Trainer:
    """What changes in training: weights, their average, optimizer, scaler, random states, history.

    `frames` is the `Frames.digest` of the training frames.
    """

    def __init__(
        self, model: SegmentationModel, experiment: Experiment, device: torch.device, frames: str
    ):
        torch.manual_seed(experiment.seed)  # for layers that draw, such as stochastic depth
        self.generator = torch.Generator().manual_seed(experiment.seed)  # of order and crops
        self.model, self.experiment, self.device = model, experiment, device
        self.replica = replicate(model, device)
        self.optimizer = make_optimizer(model, experiment)
        self.average = Average(model, experiment.ema) if experiment.ema else None
        self.precision = mixed_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.identity = {"frames": frames, **frozen_state(model)}
        self.history: list[dict] = []

    def start_epoch(self, epoch: int) -> None:
        """Set training mode and anneal the learning rates to this epoch (from 0)."""
        self.model.train()
        epochs, warmup = self.experiment.epochs, self.experiment.warmup_epochs
        factor = learning_rate_factor(epoch, epochs, self.experiment.final_lr_fraction, warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def step(
        self, images: Tensor, labels: Tensor, words: Sequence[tuple[int, Tensor]] = ()
    ) -> tuple[Tensor, Tensor]:
        """Forward, loss, backward, update. Returns the loss and the scores, both detached.

        With `words`, see `LanguageModel.forward_parts`, the scores are of the images of the first
        words only.
        """
        try:
            self.optimizer.zero_grad(set_to_none=True)  # here, not to add to the peak of memory
            with autocast(images.device, self.precision):
                loss, output = self._loss(images, labels, words)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except torch.OutOfMemoryError as error:
            sizes = f"batch_size ({self.experiment.batch_size}) or crop ({self.experiment.crop})"
            raise InputError(f"{self.experiment.name}: {error}; lower {sizes}") from error
        if self.average:
            self.average.update()
        return loss.detach(), output.detach()

    def _loss(
        self, images: Tensor, labels: Tensor, words: Sequence[tuple[int, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        outputs = model.forward_parts(images, words) if words else [self.replica(images)]
        if model.unseen:  # neither right nor wrong anywhere
            unseen = outputs[0].new_tensor(model.unseen).long()
            outputs[0] = outputs[0].index_fill(1, unseen, -math.inf)
        sizes = [*map(len, outputs)]
        losses = [
            segmentation_loss(output, part, model.temperature, self.experiment.boundary_weight)
            for output, part in zip(outputs, labels.split(sizes), strict=True)
        ]
        if len(losses) == 1:
            return losses[0], outputs[0]
        each = zip(sizes, losses, strict=True)  # each set counts by its images
        return sum(size * loss for size, loss in each) / len(labels), outputs[0]

    def end_epoch(self, loss: float, miou: float | None, seconds: float) -> None:
        """Append to the history; `InputError` where the loss or a weight is not finite."""
        epoch, lr = len(self.history) + 1, self.optimizer.param_groups[0]["lr"]
        finite = all(value.isfinite().all() for value in self.model.trained_state().values())
        if not (finite and math.isfinite(loss)):
            what = f"loss is {loss}" if finite else "weights are not finite"
            advice = "the epoch is not saved: lower lr"
            raise InputError(f"{self.experiment.name}: {what} in epoch {epoch}; {advice}")
        numbers = {"epoch": epoch, "loss": loss, "miou": miou, "lr": lr, "seconds": seconds}
        self.history.append(numbers)

    def state(self) -> dict:
        """Everything that the next epoch depends on, as tensors and plain data."""
        random = {"torch": torch.get_rng_state(), "generator": self.generator.get_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "settings": self.experiment.settings(),
            "identity": self.identity,
            "epoch": len(self.history),
            "history": self.history,
            "model": self.model.trained_state(),
            "average": self.average.state() if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,
        }

    def resume(self, checkpoints: Checkpoints) -> list[dict]:
        """Load the newest checkpoint, if any, of the same run; returns the history so far."""
        if (found := checkpoints.newest()) is None:
            return self.history
        path, state = found
        changed = changed_settings(state["settings"], self.experiment.settings())
        changed += changed_content(state["identity"], self.identity)
        if changed:
            raise InputError(
                f"checkpoint {path} is of another run ({'; '.join(changed)}): undo the change, "
                f"choose another folder, or {START_OVER}"
            )
        self.model.load_trained_state(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state(state["average"])
        if state["scaler"]:  # empty if the device before trained without one
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["torch"])
        self.generator.set_state(state["random"]["generator"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.history = state["history"]
        print(f"{self.experiment.name}: resuming after epoch {state['epoch']}")
        return self.history


def replicate(model: SegmentationModel, device: torch.device) -> nn.Module:
    """The model, or where several processes train together, a wrapper that averages gradients.

    On GPUs BatchNorm then takes its statistics over the whole batch (the model is changed); torch
    has no such layer for CPUs, where each process normalises its own share.
    """
    if world_size() == 1:
        return model
    if device.type == "cuda":
        convert_sync_batchnorm(model)
    return DistributedDataParallel(model)


def _sets_digest(sets: Sequence[Frames]) -> str:
    """That of the frames of one set, or of the digests of several."""
    digests = [frames.digest for frames in sets]
    return digests[0] if not digests[1:] else hashlib.sha256("".join(digests).encode()).hexdigest()


def frozen_state(model: SegmentationModel) -> dict:
    """What training starts from: the digest of the untrained encoder and the text matrix."""
    digest = hashlib.sha256()
    for value in model.encoder.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy())
    text = getattr(model, "text", torch.zeros(0))
    return {"encoder": digest.hexdigest(), "text": text.detach().cpu()}


def same_text(one: Tensor, other: Tensor) -> bool:
    """Whether two text matrices are of the same words and encoder.

    Not bit for bit: another machine embeds the same words with other rounding errors.
    """
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-3)


def changed_content(stored: dict, current: dict) -> list[str]:
    """What differs between the `Trainer.identity` of a checkpoint and of a new model."""
    differs = {
        "the training frames differ": stored.get("frames") != current["frames"],
        "weights: those of the encoder differ": stored.get("encoder") != current["encoder"],
        "text_set: the prompts differ": stored.get("prompts") != current.get("prompts"),
        "text_set, text_bank or weights: the text embeddings differ": not same_text(
            stored.get("text", torch.zeros(0)), current["text"]
        ),
        "also: the text embeddings differ": not all(
            map(same_text, stored.get("also", []), current.get("also", []))
        ),
    }
    return [what for what, different in differs.items() if different]


@contextlib.contextmanager
def stop_signals(name: str) -> Iterator[Callable[[], None]]:
    """Note SIGINT and SIGTERM within the block; the function it yields raises `Interrupted`."""
    received: list[int] = []

    def check() -> None:
        if received:
            again = "run again to resume after the last complete epoch"
            raise Interrupted(received[0], f"{name}: stopped; {again}")

    main = threading.current_thread() is threading.main_thread()  # the one that gets signals
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    handlers = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield check
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
