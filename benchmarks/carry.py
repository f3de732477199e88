"""Copy runs of the demo to `camvid_lang/assets/demo`, small, where notebooks 05 and 06 find them.

    python benchmarks/carry.py RUN ...

A run's weights are copied where it is named `full-narrow-*`; of the others only the results.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from camvid_lang.demo import CARRIED
from camvid_lang.results import (
    VOCABULARY,
    read_figures,
    read_results,
    read_vocabulary,
    write_figures,
    write_results,
)
from camvid_lang.training.checkpoint import Checkpoints


def carry(runs: Sequence[str | Path], target: Path = CARRIED) -> None:
    """Copy runs to `target`, small: one frame each, and weights in float16 of `full-narrow-*`."""
    for run_folder in map(Path, runs):
        results = read_results(run_folder / "results.json")
        folder = target / results["experiment"]
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        Checkpoints(folder / "checkpoints").clear()
        write_results(folder / "results.json", results)
        figures = read_figures(run_folder / "figures.npz")
        one = {
            key: getattr(figures, key)[:1] for key in ("images", "labels", "predictions", "names")
        }
        write_figures(folder / "figures.npz", replace(figures, **one))
        if words := read_vocabulary(run_folder / VOCABULARY):
            write_results(folder / VOCABULARY, words)
        if results["experiment"].startswith("full-narrow"):
            path, state = Checkpoints(run_folder / "checkpoints").newest()
            weights = {
                k: v.half() if v.is_floating_point() else v for k, v in state["model"].items()
            }
            state |= {"model": weights, "optimizer": {}, "scaler": {}, "random": {}}
            torch.save(state, folder / "checkpoints" / path.name)


if __name__ == "__main__":
    carry(sys.argv[1:])
