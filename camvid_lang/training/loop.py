"""What may go wrong in the middle of training, and what is told then: signals, memory, NaN.

What is counted while an epoch runs.

One step of training, and all that it changes: what a checkpoint has to hold.

One plain training loop: Adam, cosine annealing per epoch, cross-entropy on scaled cosines.

Interrupted at any step and started again, it goes on to the same weights, bit for bit on a CPU."""

import contextlib
import gc
import hashlib
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from camvid_lang.data.augment import number_of_batches, random_crops
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.device import autocast, mixed_precision, short_name
from camvid_lang.errors import InputError
from camvid_lang.evaluation import confusion_matrix, scores
from camvid_lang.experiments import Experiment, learning_rate_factor
from camvid_lang.models.segmentation import SegmentationModel
from camvid_lang.training.checkpoint import (
    Checkpoints,
    random_states,
    refuse_changed_settings,
    set_random_states,
)

__all__ = [
    "EpochMetrics",
    "Interrupted",
    "StopRequest",
    "Trainer",
    "is_out_of_memory",
    "largest_fitting",
    "make_optimizer",
    "out_of_memory",
    "segmentation_loss",
    "stop_requests",
    "train",
    "training_step",
]


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has saved its state.

    Attributes:
        signal: the signal's number; a command ends with 128 + that.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    signal = 0

    def __bool__(self) -> bool:
        return bool(self.signal)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block SIGINT and SIGTERM only leave a note, so that a step is never cut in two.

    A second SIGINT interrupts at once. Outside the main thread signals stay as they are.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: object) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator has no exception of its own.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def largest_fitting(attempt: Callable[[int], object], too_large: int) -> int:
    """The largest number below `too_large` for which `attempt` does not run out of memory, or 0."""
    fits, limit = 0, too_large
    while limit - fits > 1:
        middle = (fits + limit) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(middle)
            fits = middle
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            limit = middle
    return fits


def out_of_memory(name: str, batch: int, crop: str, fits: int, device: str) -> InputError:
    """What to tell when a batch does not fit the device's memory, with the one that does."""
    advice = (
        f"the largest that fits is {fits}: --set batch_size={fits} (SETTINGS in a notebook)"
        if fits >= 2
        else "not even 2 fit: choose smaller crops, as in --set crop=128"
    )
    return InputError(
        f"{name}: a batch of {batch} {crop} does not fit the memory of {device}; {advice}"
    )


READ_STEPS = 16  # reading a number from an accelerator waits for it, so it is done seldom


class EpochMetrics:
    """Loss and confusion matrix of an epoch so far, brought from the device every few steps."""

    def __init__(self, device: torch.device):
        self.steps, self.loss, self.seconds = 0, 0.0, 0.0
        self.confusion = confusion_matrix([]).to(device)
        self._unread: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, output: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Count one step: its mean loss, scores (N, K, H, W), labels and frames."""
        self.steps += 1
        self._unread.append((loss, output.argmax(dim=1).to(torch.uint8), labels, indices))

    def due(self) -> bool:
        """Whether enough has gathered to be read."""
        return len(self._unread) >= READ_STEPS

    def read(self) -> tuple[int, str, float, Tensor] | None:
        """Add up what has gathered.

        Returns:
            Of the first loss that is not finite: its step, "the loss", its value, its frames.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return None
        values = torch.stack([loss for loss, *_ in unread]).tolist()
        for number, (value, (_, _, _, indices)) in enumerate(zip(values, unread, strict=True)):
            if not math.isfinite(value):
                return self.steps - len(unread) + number + 1, "the loss", value, indices
            self.loss += value
        self.confusion += confusion_matrix((guess, labels) for _, guess, labels, _ in unread)
        return None

    def state(self) -> dict:
        """As plain data; everything has been read."""
        sums = {"steps": self.steps, "loss": self.loss, "seconds": self.seconds}
        return {**sums, "confusion": self.confusion.cpu()}

    def load_state(self, state: dict) -> None:
        """Inverse of `state`."""
        self.steps, self.loss, self.seconds = (state[k] for k in ("steps", "loss", "seconds"))
        self.confusion.copy_(state["confusion"])


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


def make_optimizer(model: SegmentationModel, experiment: Experiment) -> torch.optim.Adam:
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
    # Fused: one pass over the weights, and a gradient scaler that need not wait for the device.
    return torch.optim.Adam(groups, fused=True)


def training_step(
    model: SegmentationModel,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, update. Returns the loss and the scores, both detached."""
    optimizer.zero_grad(set_to_none=True)  # here, so that they do not lie beneath the peak
    with autocast(images.device, precision):
        output = model(images)
        loss = segmentation_loss(output, labels, model.temperature)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), output.detach()


def frozen_state(model: SegmentationModel) -> dict:
    """What training builds on without learning it, and so without saving it.

    Returns:
        `encoder`, the SHA-256 of a frozen encoder's weights ("" for one that learns), and `text`,
        the text matrix (K, C) on the CPU (None for a model without language).
    """
    digest = hashlib.sha256()
    for value in () if model.train_encoder else model.encoder.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy())
    text = getattr(model, "text", None)
    return {
        "encoder": "" if model.train_encoder else digest.hexdigest(),
        "text": None if text is None else text.detach().cpu(),
    }


def refuse_other_parts(path: str | Path, stored: object, now: dict) -> None:
    """Raise `InputError` where a checkpoint's encoder or text is not the one at hand.

    The same settings may name other things: a file's content changes, or its place does.
    """
    if not isinstance(stored, dict) or stored.keys() != now.keys():
        raise InputError(f"checkpoint {path} is of another version: start afresh with --fresh")
    then, text = stored["text"], now["text"]
    # Not by their bits: another machine embeds a phrase with other roundings.
    same_text = then is text or (
        isinstance(then, Tensor)
        and isinstance(text, Tensor)
        and then.shape == text.shape
        and torch.allclose(then.float(), text.float(), atol=1e-3)
    )
    changed = []
    if stored["encoder"] != now["encoder"]:
        changed.append("weights: those of the frozen encoder differ")
    if not same_text:
        changed.append("text_set, text_bank or weights: the classes' embeddings differ")
    if changed:
        raise InputError(
            f"checkpoint {path} was made with other settings ({'; '.join(changed)}): "
            "give the same files, choose another --out, or start afresh with --fresh"
        )


class Trainer:
    """All that a training step changes: weights, optimizer, schedule, scaler, random states."""

    def __init__(self, model: SegmentationModel, experiment: Experiment, device: torch.device):
        seed = experiment.seed
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.model, self.experiment, self.device = model, experiment, device
        self.shuffle = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)  # of the frames in this epoch
        self.frames = ""  # a digest of their names
        self.history: list[dict] = []
        self.optimizer = make_optimizer(model, experiment)
        epochs, final = experiment.epochs, experiment.final_lr_fraction
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda epoch: learning_rate_factor(epoch, epochs, final)
        )
        self.given = frozen_state(model)
        self.precision = mixed_precision(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of training; where memory does not suffice, tells what does."""

        def attempt(batch: int) -> tuple[Tensor, Tensor]:
            return training_step(
                self.model,
                images[:batch],
                labels[:batch],
                self.optimizer,
                self.scaler,
                self.precision,
            )

        try:
            return attempt(len(images))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out of the except block, whose error would keep the failed step's memory alive. Two steps
        # each, as the optimizer's own memory comes with the first; the weights are given up anyway.
        fits = largest_fitting(lambda batch: (attempt(batch), attempt(batch)), len(images))
        crop = "x".join(map(str, images.shape[-2:]))
        raise out_of_memory(
            self.experiment.name, len(images), f"crops of {crop}", fits, str(self.device)
        )

    def non_finite_weight(self) -> str | None:
        """Name of a learned weight or running statistic that is not finite, if there is one."""
        learned = self.model.trained_state()
        finite = torch.stack([value.isfinite().all() for value in learned.values()]).tolist()
        return next((key for key, good in zip(learned, finite, strict=True) if not good), None)

    def state(self, tally: EpochMetrics | None) -> dict:
        """Everything the next step depends on, as tensors and plain data."""
        return {
            "settings": self.experiment.settings(),
            "epoch": len(self.history),
            "history": self.history,
            "part": None if tally is None else tally.state(),
            "model": self.model.trained_state(),
            "given": self.given,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {**random_states(self.device), "shuffle": self.shuffle.get_state()},
            "order": self.order,
            "frames": self.frames,
        }

    def resume(self, checkpoints: Checkpoints, names: Sequence[str]) -> EpochMetrics | None:
        """Bring everything back to the newest checkpoint, if there is one.

        Args:
            names: of the frames that are learned from, which a checkpoint must have learned from.

        Returns:
            The tally of the epoch that was interrupted, None where an epoch begins.

        Raises:
            InputError: checkpoints that are damaged, of other settings, of another frozen encoder
                or text, or of other frames.
        """
        self.frames = hashlib.sha256("\n".join(names).encode()).hexdigest()
        found = checkpoints.newest()
        if found is None:
            return None
        path, state = found
        refuse_changed_settings(path, state["settings"], self.experiment.settings())
        refuse_other_parts(path, state.get("given"), self.given)
        try:
            if state["frames"] != self.frames or len(state["order"]) != len(names):
                raise InputError(
                    f"checkpoint {path} was trained on other frames ({len(state['order'])}; --data "
                    f"has {len(names)}): give the same --data, or start afresh with --fresh"
                )
            self.model.load_trained_state(state["model"])
            for name in ("optimizer", "schedule"):
                getattr(self, name).load_state_dict(state[name])
            if self.scaler.is_enabled() == bool(state["scaler"]):
                self.scaler.load_state_dict(state["scaler"])
            else:  # Colab hands out other cards from one day to the next
                print(f"note: going on in another precision, {short_name(self.precision)}")
            set_random_states(state["random"], self.device)
            self.shuffle.set_state(state["random"]["shuffle"])
            self.order = state["order"]
            self.history = [dict(entry) for entry in state["history"]]
            if state["part"] is None:
                return None
            tally = EpochMetrics(self.device)
            tally.load_state(state["part"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {path} does not fit {self.experiment.name}: start afresh with --fresh"
            ) from error
        return tally


SAVE_SECONDS = 300  # long epochs are saved in between too


def train(
    model: SegmentationModel,
    frames: Frames,
    experiment: Experiment,
    checkpoints: Checkpoints,
    device: torch.device,
    on_epoch: Callable[[list[dict]], object] | None = None,
) -> list[dict]:
    """Train for `experiment.epochs`, saving after each; goes on from the newest checkpoint.

    Args:
        model: trained in place, on `device`.
        frames: the training split; batches are cut from it where it lies.
        checkpoints: those to go on from, and where new ones are put.
        on_epoch: called after each epoch with the history so far (to draw curves, say).

    Returns:
        History, one entry per epoch: epoch (from 1), loss, miou (percent, over the epoch's own
        training crops as they were seen), lr, seconds.

    Raises:
        InputError: checkpoints that are damaged or of other settings; a loss that is not finite;
            memory that does not suffice; a checkpoint that cannot be written. The last good
            checkpoint stays.
        Interrupted: SIGINT or SIGTERM came; the state after the last step was saved.
    """
    learner = Trainer(model, experiment, device)
    tally = learner.resume(checkpoints, frames.names)
    history, steps = learner.history, number_of_batches(len(frames), experiment.batch_size)
    done = len(history) * steps + (tally.steps if tally else 0)
    if done:
        print(f"{experiment.name}: going on after step {done} of {experiment.epochs * steps}")
    saved_at = time.monotonic()
    with (
        stop_requests() as stop,
        tqdm(
            total=experiment.epochs * steps,
            initial=done,
            desc=experiment.name,
            unit="step",
        ) as bar,
    ):
        for epoch in range(len(history), experiment.epochs):
            model.train()
            if tally is None:
                tally = EpochMetrics(device)
                learner.order = torch.randperm(len(frames), generator=learner.shuffle)
            started = time.perf_counter() - tally.seconds
            size = experiment.crop or tuple(frames.images.shape[-2:])
            for indices in learner.order.split(experiment.batch_size)[tally.steps : steps]:
                images, labels = random_crops(
                    frames.images, frames.labels, size, learner.shuffle, indices.tolist()
                )
                loss, output = learner.step(images, labels)
                tally.add(loss, output, labels, indices)
                bar.update()
                # Looked at once a step: a signal may come between any two lines.
                stopping, unfinished = bool(stop), tally.steps < steps
                saving = stopping or not unfinished or time.monotonic() - saved_at > SAVE_SECONDS
                if tally.due() or saving:
                    refuse_non_finite(tally.read(), epoch * steps, frames.names, checkpoints)
                if saving and (spoiled := learner.non_finite_weight()):
                    found = (tally.steps, f"weight {spoiled}", "not finite", indices)
                    refuse_non_finite(found, epoch * steps, frames.names, checkpoints)
                if saving and unfinished:
                    tally.seconds = time.perf_counter() - started
                    checkpoints.save(learner.state(tally), epoch * steps + tally.steps)
                    saved_at = time.monotonic()
                if stopping and unfinished:
                    raise interrupted(experiment, stop.signal, epoch * steps + tally.steps)
            miou = scores(tally.confusion)["miou"]
            entry = {
                "epoch": epoch + 1,
                "loss": tally.loss / steps,
                "miou": miou,
                "lr": learner.optimizer.param_groups[0]["lr"],
                "seconds": time.perf_counter() - started,
            }
            best = (miou or 0) > max((earlier["miou"] or 0 for earlier in history), default=-1)
            history.append(entry)
            learner.schedule.step()
            tally = None
            checkpoints.save(learner.state(None), (epoch + 1) * steps, best)
            saved_at = time.monotonic()
            told = f"epoch {epoch + 1}/{experiment.epochs}, loss {entry['loss']:.3f}"
            bar.set_postfix_str(told, refresh=False)
            if on_epoch:
                on_epoch(history)
            if stop:
                raise interrupted(experiment, stop.signal, (epoch + 1) * steps)
    return history


def refuse_non_finite(
    found: tuple[int, str, object, Tensor] | None,
    before: int,
    names: Sequence[str],
    checkpoints: Checkpoints,
) -> None:
    """Raise `InputError` for a loss or a weight that is not finite.

    Args:
        found: step of the epoch, what it is, its value, frames of that step; see `EpochMetrics`.
        before: steps of the epochs before this one.
        names: of all frames.
    """
    if found is None:
        return
    step, what, value, indices = found
    frames = ", ".join(names[i] for i in indices.tolist())
    kept = checkpoints.files()
    goes_on = f"the last good checkpoint is {kept[-1]}" if kept else "nothing was saved yet"
    raise InputError(
        f"{what} became {value} at step {before + step} (frames {frames}); {goes_on}: "
        "try a smaller --set lr=..."
    )


def interrupted(experiment: Experiment, number: int, step: int) -> Interrupted:
    """What to raise once the state is saved."""
    return Interrupted(
        number,
        f"{experiment.name}: stopped at step {step}, which is saved: the same command goes on "
        "from there",
    )
