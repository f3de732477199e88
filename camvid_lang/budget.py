"""The largest batch that trains within so much memory."""

import contextlib
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from camvid_lang.measuring import Case, footprint_here, fresh_process

__all__ = ["largest_batch"]


def largest_batch(case: Case, budget: int, limit: int = 4096) -> dict:
    """The largest batch whose measured peak stays within the budget, and that peak in bytes.

    Batches are doubled until one no longer fits, then the gap is halved until it is below an
    eighth of the batch; the answer is measured, and only batches far beyond the budget are ruled
    out by the line through earlier peaks. Model, gradients and optimizer count too. The search
    ends at `limit`. Each batch has a process of its own on a CPU.
    """
    peaks: dict[int, int] = {}
    fits, too_many, batch = 0, None, 2
    while too_many is None or too_many - fits > max(1, fits // 8):
        if _expected(peaks, batch) > 1.3 * budget:
            measured = None
        else:
            measured = _footprint(replace(case, batch=batch))
        if measured is not None and measured <= budget:
            fits, peaks[batch] = batch, measured
            if fits >= limit:
                break
        else:
            too_many = batch
            if not fits:  # a single crop gives BatchNorm nothing to average over
                return {"batch": 0, "bytes": measured}
        batch = fits * 2 if too_many is None else (fits + too_many) // 2
    return {"batch": fits, "bytes": peaks[fits]}


def _expected(peaks: Mapping[int, int], batch: int) -> float:
    """The peak that the last two measured ones lead to; 0 where there are not two."""
    if len(peaks) < 2:
        return 0
    (one, small), (two, large) = sorted(peaks.items())[-2:]
    return large + (batch - two) * (large - small) / (two - one)


def _footprint(case: Case) -> int | None:
    if case.device == "cuda":
        return footprint_here(case)
    try:
        with fresh_process() as pool:
            pool.submit(_volunteer).result()
            return pool.submit(footprint_here, case).result()
    except BrokenProcessPool:  # the kernel ended it for want of memory
        return None


def _volunteer() -> None:
    """Should memory run out, let it be this process that the kernel ends."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
