"""Copies finished runs of the demo into the package, small, for notebooks and `load("demo")`.

    python scripts/carry.py RUN ... [--to camvid_lang/assets/demo]

Of each run the results and one frame of its figures are copied; of `full-narrow-*` also the
weights, in float16.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from camvid_lang import results as files
from camvid_lang.errors import InputError
from camvid_lang.results import RunFolder
from camvid_lang.training.checkpoint import Checkpoints

CARRIED = Path(__file__).resolve().parent.parent / "camvid_lang" / "assets" / "demo"


def carry(run: RunFolder, to: Path) -> None:
    """Copy a run to the folder of its experiment in `to`; what was there is deleted."""
    results, figures = files.read_results(run.results), files.read_figures(run.figures)
    vocabulary, saved = files.read_vocabulary(run.vocabulary), None
    if with_weights := results["experiment"].startswith("full-narrow-"):
        saved = Checkpoints(run.checkpoints).newest()
    if figures is None or (with_weights and saved is None):
        raise InputError(f"{run.path}: figures or weights are missing: run the experiment again")
    target = RunFolder(to / results["experiment"])
    target.clear()
    target.path.mkdir(parents=True, exist_ok=True)
    if saved:
        state = saved[1]
        weights = {**state["model"], **state["average"].get("weights", {})}
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        state |= {"model": weights, "average": {}, "optimizer": {}, "scaler": {}}
        Checkpoints(target.checkpoints).save(state)
    one = {key: getattr(figures, key)[:1] for key in ("images", "labels", "predictions", "names")}
    files.write_figures(target.figures, replace(figures, **one))
    if vocabulary:
        files.write_json(target.vocabulary, vocabulary)
    files.write_json(target.results, results)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Copy finished runs of the demo, small.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", type=Path, default=CARRIED, help="default: where the demo's are")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        carry(RunFolder(folder), options.to)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
