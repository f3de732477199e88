"""One step of training, and all that it changes: what a checkpoint has to hold."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.checkpoint import (
    Checkpoints,
    random_states,
    refuse_changed_settings,
    set_random_states,
)
from camvid_lang.devices import autocast, mixed_precision, short_name
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment, learning_rate_factor
from camvid_lang.faults import is_out_of_memory, largest_fitting, out_of_memory
from camvid_lang.models import Segmenter
from camvid_lang.tally import Tally
from camvid_lang.taxonomy import VOID

__all__ = ["Learner", "make_optimizer", "segmentation_loss", "training_step"]


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
    # Fused: one pass over the weights, and a gradient scaler that need not wait for the device.
    return torch.optim.Adam(groups, fused=True)


def training_step(
    model: Segmenter,
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


def given_parts(model: Segmenter) -> dict:
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


class Learner:
    """All that a training step changes: weights, optimizer, schedule, scaler, random states."""

    def __init__(self, model: Segmenter, experiment: Experiment, device: torch.device):
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
        self.given = given_parts(model)
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
        learned = self.model.learned_state()
        finite = torch.stack([value.isfinite().all() for value in learned.values()]).tolist()
        return next((key for key, good in zip(learned, finite, strict=True) if not good), None)

    def state(self, tally: Tally | None) -> dict:
        """Everything the next step depends on, as tensors and plain data."""
        return {
            "settings": self.experiment.settings(),
            "epoch": len(self.history),
            "history": self.history,
            "part": None if tally is None else tally.state(),
            "model": self.model.learned_state(),
            "given": self.given,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {**random_states(self.device), "shuffle": self.shuffle.get_state()},
            "order": self.order,
            "frames": self.frames,
        }

    def go_on(self, checkpoints: Checkpoints, names: Sequence[str]) -> Tally | None:
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
            self.model.load_learned_state(state["model"])
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
            tally = Tally(self.device)
            tally.load_state(state["part"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"checkpoint {path} does not fit {self.experiment.name}: start afresh with --fresh"
            ) from error
        return tally
