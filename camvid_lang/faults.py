"""What may go wrong in the middle of training, and what is told then: signals, memory, NaN."""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator

import torch

from camvid_lang.errors import InputError

__all__ = [
    "Interrupted",
    "StopRequest",
    "is_out_of_memory",
    "largest_fitting",
    "out_of_memory",
    "stop_requests",
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
