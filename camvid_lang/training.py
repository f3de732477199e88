"""One plain training loop: Adam, cosine annealing per epoch, cross-entropy on scaled cosines.

Interrupted at any step and started again, it goes on to the same weights, bit for bit on a CPU.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camvid_lang.checkpoint import Checkpoints
from camvid_lang.data import Frames, batches, number_of_batches
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment
from camvid_lang.faults import Interrupted, stop_requests
from camvid_lang.learner import Learner
from camvid_lang.metrics import scores
from camvid_lang.models import Segmenter
from camvid_lang.progress import progress
from camvid_lang.tally import Tally

__all__ = ["train"]

SAVE_SECONDS = 300  # long epochs are saved in between too


def train(
    model: Segmenter,
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
    learner = Learner(model, experiment, device)
    tally = learner.go_on(checkpoints, frames.names)
    history, steps = learner.history, number_of_batches(len(frames), experiment.batch_size)
    done = len(history) * steps + (tally.steps if tally else 0)
    if done:
        print(f"{experiment.name}: going on after step {done} of {experiment.epochs * steps}")
    saved_at = time.monotonic()
    with (
        stop_requests() as stop,
        progress(
            total=experiment.epochs * steps,
            initial=done,
            desc=experiment.name,
            unit="step",
        ) as bar,
    ):
        for epoch in range(len(history), experiment.epochs):
            model.train()
            if tally is None:
                tally = Tally(device)
                learner.order = torch.randperm(len(frames), generator=learner.shuffle)
            started = time.perf_counter() - tally.seconds
            crops = batches(
                frames,
                experiment.batch_size,
                experiment.crop,
                learner.shuffle,
                learner.order,
                tally.steps,
            )
            for images, labels, indices in crops:
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
        found: step of the epoch, what it is, its value, frames of that step; as from `Tally.read`.
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
