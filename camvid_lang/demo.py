"""The whole thesis on drawn scenes: nine experiments, one page. No download, no accelerator."""

from pathlib import Path

from camvid_lang.data.camvid import load_camvid
from camvid_lang.device import pick_device
from camvid_lang.evaluation import chance_scores
from camvid_lang.experiments import configure
from camvid_lang.report.html import report_runs
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import write_json
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes

__all__ = [
    "DEMO_SETTINGS",
    "demo_settings",
    "run_demo",
]

# On top of the `cpu` profile: small crops for small scenes, and a higher rate for few steps.
DEMO_SETTINGS = {"crop": 128, "batch_size": 8, "epochs": 14, "lr": 1e-3}
# ResNet-18 starts from random weights here, so its rate is not held down; it is the dearest row.
SWIFTNET_SETTINGS = {"epochs": 8, "encoder_lr": 1e-3}


def run_demo(out: str | Path, seed: int = 0, device: str = "auto", fresh: bool = False) -> dict:
    """Draw the scenes, run every row of the thesis on them, write results.json and report.html.

    Args:
        out: folder; runs that are already finished there are read back.
        seed: of the scenes and of training.
        fresh: run everything again.

    Returns:
        {"chance": scores, "experiments": {name: results}}, as written to results.json.
    """
    out = Path(out)
    data = out / "scenes"
    entries = {
        name: configure(name, "cpu", {**demo_settings(name), "seed": seed}) for name in THESIS_ROWS
    }
    pick_device(device)  # what is wrong is told before anything is drawn
    write_scenes(data, seed=seed)
    experiments = {}
    for number, (name, experiment) in enumerate(entries.items(), start=1):
        print(f"[{number}/{len(entries)}] {name}", flush=True)
        experiments[name] = run(
            experiment, data, out / name, device, fresh, command="python -m camvid_lang demo"
        )
    results = {"chance": chance_scores(load_camvid(data, "test"), seed), "experiments": experiments}
    write_json(out / "results.json", results)
    page = report_runs([out], out / "report.html")
    print(f"{'':28}{'mIoU on scenes':>15}")
    print(f"{'chance':28}{results['chance']['miou']:>13.1f} %")
    for name, result in experiments.items():
        print(f"{name:28}{result['miou']:>13.1f} %")
    print(f"open {page}")
    return results


def demo_settings(name: str) -> dict:
    """What replaces the `cpu` profile's settings on drawn scenes."""
    if name.startswith("bilinear"):
        return {}
    return DEMO_SETTINGS | (SWIFTNET_SETTINGS if name == "swiftnet" else {})
