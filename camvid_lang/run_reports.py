"""From folders of finished runs to one HTML page."""

import json
from collections.abc import Sequence
from pathlib import Path

from camvid_lang.errors import InputError
from camvid_lang.experiments import THESIS_ROWS
from camvid_lang.report import write_report
from camvid_lang.report_samples import Samples
from camvid_lang.results import read_figures, read_results
from camvid_lang.results_check import what_is_wrong

__all__ = ["report_runs"]


def report_runs(folders: Sequence[str | Path], page: str | Path | None = None) -> Path:
    """Write the page of some runs; nothing is computed again.

    Args:
        folders: run folders, folders of runs, or a demo's folder.
        page: where to write; `report.html` in the first folder if not given.

    Raises:
        InputError: a folder without a finished run, or two runs of one experiment.
    """
    if not folders:
        raise InputError("no folder of a run is given")
    chance, found = None, {}
    for folder in map(Path, folders):
        chance = chance or _chance(folder)
        for run in _runs_below(folder):
            results = read_results(run / "results.json")
            name = results["experiment"]
            if name in found:
                raise InputError(f"{found[name][0]} and {run} are both runs of '{name}': give one")
            found[name] = (run, results)
    samples, similarities = {}, {}
    for name, (run, _) in found.items():
        data = read_figures(run / "figures.npz")
        if data is None:
            continue
        samples[name] = Samples(data.images, data.labels, data.predictions, data.names)
        similarities = similarities or data.similarities
    return write_report(
        page or Path(folders[0]) / "report.html",
        {"chance": chance, "experiments": {name: results for name, (_, results) in found.items()}},
        samples,
        similarities,
        THESIS_ROWS,
    )


def _runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it."""
    if (folder / "figures.npz").exists() or (folder / "checkpoints").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/results.json"))
    if not runs and (folder / "results.json").exists():
        return [folder]
    if not runs:
        raise InputError(f"{folder} holds no finished run (no results.json in it or just below)")
    return runs


def _chance(folder: Path) -> dict | None:
    """The chance row that a demo keeps beside its runs."""
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        chance = found.get("chance")
        usable = isinstance(chance, dict) and not what_is_wrong(
            {**chance, "experiment": "chance", "settings": {}}
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return chance if usable else None
