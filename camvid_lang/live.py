"""Curves of a run, drawn in a notebook while it learns."""

import time

import numpy as np

from camvid_lang.figures import curves

__all__ = ["LiveCurves"]


class LiveCurves:
    """Loss and mIoU of a run, drawn in place while it learns; at most every few seconds.

    Attributes:
        drawn: whether anything has been.
    """

    def __init__(self, name: str, seconds: float = 10.0):
        from IPython.display import HTML, display

        self.name, self.seconds, self.drawn = name, seconds, False
        self._last = -np.inf
        self._handle = display(HTML(""), display_id=True)  # its place is above the progress bar

    def update(self, history: list[dict], now: bool = False) -> None:
        """Draw the history so far; given to `runs.run` as `on_epoch`."""
        if not now and time.monotonic() - self._last < self.seconds:
            return
        if self._handle is not None:  # None outside a notebook
            self._handle.update(curves({self.name: history}, f"{self.name} while learning"))
        self.drawn, self._last = True, time.monotonic()
