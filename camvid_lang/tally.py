"""What is counted while an epoch runs."""

import math

import torch
from torch import Tensor

from camvid_lang.metrics import confusion_matrix

__all__ = ["Tally"]

READ_STEPS = 16  # reading a number from an accelerator waits for it, so it is done seldom


class Tally:
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
