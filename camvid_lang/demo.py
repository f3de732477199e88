"""The whole thesis on drawn scenes: nine experiments, one page. No download, no accelerator.

The package carries runs of it, so that notebooks show something on a machine where none was run:

    python -m camvid_lang.demo RUN ...    # copy runs to camvid_lang/assets/demo, reduced

A run's weights are copied where it is named `*full-narrow*`; of the others only the results.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from camvid_lang.data.camvid import load_camvid
from camvid_lang.device import pick_device
from camvid_lang.evaluation import chance_scores
from camvid_lang.experiments import configure
from camvid_lang.report.html import report_runs
from camvid_lang.report.tables import CHANCE
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_figures, read_results, versions, write_figures, write_results
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.training.checkpoint import Checkpoints

__all__ = ["CARRIED", "carry", "demo_settings", "run_demo"]

CARRIED = Path(__file__).parent / "assets" / "demo"  # run folders
NONE = dict.fromkeys(("name", "weights", "text"), "none")
COMMAND = "python -m camvid_lang demo"
# On top of the `cpu` profile: small crops for small scenes, and a higher rate for few steps.
DEMO_SETTINGS = {"crop": 128, "batch_size": 8, "epochs": 14, "lr": 1e-3}
# ResNet-18 starts from random weights here, so it needs a higher rate; it is the slowest row.
SWIFTNET_SETTINGS = {"epochs": 8, "encoder_lr": 1e-3}


def demo_settings(name: str) -> dict:
    """What replaces the `cpu` profile's settings of an experiment on drawn scenes."""
    if name.startswith("bilinear"):
        return {}
    return DEMO_SETTINGS | (SWIFTNET_SETTINGS if name == "swiftnet" else {})


def run_demo(
    out: str | Path, seed: int = 0, device: str = "auto", fresh: bool = False
) -> dict[str, dict]:
    """Draw the scenes, run every row of the thesis on them and write report.html.

    Args:
        out: folder of the run folders; runs that are finished there are read, not run again.
        seed: of the scenes and of training.
        fresh: run everything again.

    Returns:
        {experiment: results}, with the random baseline as "chance".
    """
    out = Path(out)
    experiments = [configure(name, "cpu", **demo_settings(name), seed=seed) for name in THESIS_ROWS]
    pick_device(device)  # raises before anything is drawn
    write_scenes(out / "scenes", seed=seed)
    results: dict[str, dict] = {}
    for number, experiment in enumerate(experiments, start=1):
        print(f"[{number}/{len(experiments)}] {experiment.name}", flush=True)
        folder, options = out / experiment.name, {"device": device, "fresh": fresh}
        results[experiment.name] = run(
            experiment, out / "scenes", folder, **options, command=COMMAND
        )
    results[CHANCE] = {
        **{"experiment": CHANCE, "miou_train": None, "confusion": [], "history": [], "seconds": 0},
        **{"settings": {}, "prompts": None, "encoder": NONE, "device": "cpu", "command": COMMAND},
        **{"data": results["bilinear-names"]["data"], "versions": versions()},
        **chance_scores(load_camvid(out / "scenes", "test"), seed),
    }
    (out / CHANCE).mkdir(exist_ok=True)
    write_results(out / CHANCE / "results.json", results[CHANCE])
    page = report_runs([out], out / "report.html")
    print(f"{'':28}{'mIoU on scenes':>15}")
    for name in (CHANCE, *THESIS_ROWS):
        print(f"{name:28}{results[name]['miou']:>13.1f} %")
    print(f"open {page}")
    return results


def carry(runs: Sequence[str | Path], target: Path = CARRIED) -> None:
    """Copy runs to `target`, small: one frame each, and weights in float16 of `full-narrow-*`."""
    for run_folder in map(Path, runs):
        results = read_results(run_folder / "results.json")
        folder = target / results["experiment"]
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_results(folder / "results.json", results)
        figures = read_figures(run_folder / "figures.npz")
        one = {
            key: getattr(figures, key)[:1] for key in ("images", "labels", "predictions", "names")
        }
        write_figures(folder / "figures.npz", replace(figures, **one))
        if results["experiment"].startswith("full-narrow"):
            path, state = Checkpoints(run_folder / "checkpoints").newest()
            weights = {
                k: v.half() if v.is_floating_point() else v for k, v in state["model"].items()
            }
            state |= {"model": weights, "optimizer": {}, "scaler": {}, "random": {}}
            torch.save(state, folder / "checkpoints" / path.name)


if __name__ == "__main__":
    carry(sys.argv[1:])
