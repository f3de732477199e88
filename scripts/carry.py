"""Copies finished runs of the demo into the package, small, for notebooks and `load("demo")`.

    python scripts/carry.py RUN ... [--to camvid_lang/assets/demo]

Of each run the results and one frame of its figures are copied; of `full-narrow-*` and
`full-names` also the weights, in float16.
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


def carry(run: RunFolder, target: RunFolder, images: int = 1) -> None:
    """Copy a run to `target`, with so many frames; what was there is deleted.

    Weights are averaged, and the path of those that training started from is left out.
    """
    results, figures = files.read_results(run.results), files.read_figures(run.figures)
    vocabulary, saved = files.read_vocabulary(run.vocabulary), None
    if with_weights := results["experiment"].startswith(("full-narrow-", "full-names")):
        saved = Checkpoints(run.checkpoints).newest()
    if figures is None or (with_weights and saved is None):
        raise InputError(f"{run.path}: figures or weights are missing: run the experiment again")
    target.clear()
    target.path.mkdir(parents=True, exist_ok=True)
    if saved:
        state = saved[1]
        weights = {**state["model"], **state["average"].get("weights", {})}
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        state |= {"model": weights, "average": {}, "optimizer": {}, "scaler": {}}
        state["identity"]["size"] = results["data"]["size"]  # earlier runs lack it
        state["settings"]["weights"] = results["settings"]["weights"] = ""
        Checkpoints(target.checkpoints).save(state)
    some = ("images", "labels", "predictions", "names")
    some = {key: getattr(figures, key)[:images] for key in some}
    files.write_figures(target.figures, replace(figures, **some))
    if vocabulary:
        files.write_json(target.vocabulary, vocabulary)
    files.write_json(target.results, results)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Copy finished runs of the demo, small.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--to", type=Path, default=CARRIED, help="default: where the demo's are")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        name = files.read_results(folder / "results.json")["experiment"]
        carry(RunFolder(folder), RunFolder(options.to / name))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
