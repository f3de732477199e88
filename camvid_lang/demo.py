"""The whole thesis on drawn scenes, and other words: one page. No download, no accelerator.

The package carries runs of it (`benchmarks/carry.py` copies them), so that notebooks show something
on a machine where none was run.
"""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from camvid_lang.data.camvid import Frames, load_camvid
from camvid_lang.device import pick_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import chance_scores
from camvid_lang.experiments import Experiment, configure
from camvid_lang.report.html import report_runs
from camvid_lang.report.tables import CHANCE
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import (
    VOCABULARY,
    read_vocabulary,
    versions,
    write_results,
)
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.training.checkpoint import Checkpoints, epoch_of
from camvid_lang.training.mirror import CHECKPOINTS

__all__ = ["CARRIED", "demo_settings", "run_demo"]

CARRIED = Path(__file__).parent / "assets" / "demo"  # run folders
ROWS = (*THESIS_ROWS, "held-out")
ASKED = ("frozen-names", "full-narrow-descriptions", "held-out")
COUNTS = {"train": 560, "val": 40, "test": 60}  # scenes
NONE = dict.fromkeys(("name", "weights", "text"), "none")
COMMAND = "python -m camvid_lang demo"
EPOCHS = 14  # a quarter of an hour on two slow cores; 50 take the IoU of thin classes far higher
# On top of the `cpu` profile: small crops for small scenes, and higher rates for few steps.
SETTINGS = {"crop": 128, "batch_size": 8, "lr": 2e-3, "encoder_lr": 2e-3}


def demo_settings(name: str, epochs: int = EPOCHS) -> dict:
    """What replaces the `cpu` profile's settings of an experiment on drawn scenes."""
    if name.startswith("bilinear"):
        return {}
    if name == "swiftnet":  # the slowest row by far; ResNet-18 starts from random weights here
        return SETTINGS | {"epochs": max(1, epochs // 4), "encoder_lr": 1e-3}
    return SETTINGS | {"epochs": max(1, epochs // 2) if name == "held-out" else epochs}


def run_demo(
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    epochs: int | None = None,
) -> dict[str, dict]:
    """Draw the scenes, run every row of the thesis on them, ask in other words, write report.html.

    Each row is a `camvid-lang run` of its own, with its output in OUT/NAME.log. On a CPU two rows
    run side by side with one thread each: two threads are far from twice as fast as one in layers
    as small as these.

    Args:
        out: folder of the run folders; runs that are finished there are read, not run again.
        seed: of the scenes and of training.
        fresh: run everything again.
        epochs: of most rows (None: 14); `held-out` trains for half, `swiftnet` for a quarter.

    Returns:
        {experiment: results}, with the random baseline as "chance".

    Raises:
        InputError: a row failed.
    """
    out = Path(out)
    epochs = EPOCHS if epochs is None else epochs
    experiments = [
        configure(name, "cpu", **demo_settings(name, epochs), seed=seed) for name in ROWS
    ]
    pick_device(device)  # raises before anything is drawn
    write_scenes(out / "scenes", counts=COUNTS, seed=seed)
    data = ["--data", str(out / "scenes")]
    new = [e for e in experiments if fresh or not (out / e.name / "results.json").exists()]
    # The longest first.
    new.sort(key=lambda e: (e.model == "swiftnet", e.train_encoder, e.epochs), reverse=True)
    options = [*data, *["--fresh"] * fresh]
    commands = {e.name: [*_run_command(e), "--out", str(out / e.name), *options] for e in new}
    _run_side_by_side(commands, sum(e.epochs for e in new), out, device, "demo")
    results: dict[str, dict] = {}
    for experiment in experiments:
        with contextlib.redirect_stdout(io.StringIO() if experiment in new else sys.stdout):
            folder = out / experiment.name
            results[experiment.name] = run(experiment, out / "scenes", folder, device=device)
    test = load_camvid(out / "scenes", "test")
    results[CHANCE] = {
        **{"experiment": CHANCE, "miou_train": None, "confusion": [], "history": [], "seconds": 0},
        **{"settings": {}, "prompts": None, "encoder": NONE, "device": "cpu", "command": COMMAND},
        **{"data": results["bilinear-names"]["data"], "versions": versions()},
        **chance_scores(test, seed),
    }
    asked = [e for e in experiments if e.name in ASKED and not _is_asked(out / e.name, test)]
    commands = {e.name: ["vocabulary", str(out / e.name), *data] for e in asked}
    _run_side_by_side(commands, 0, out, device, "other words")
    (out / CHANCE).mkdir(exist_ok=True)
    write_results(out / CHANCE / "results.json", results[CHANCE])
    page = report_runs([out], out / "report.html")
    print(f"{'':28}{'mIoU on scenes':>15}")
    for name in (CHANCE, *ROWS):
        print(f"{name:28}{results[name]['miou']:>13.1f} %")
    print(f"open {page}")
    return results


def _run_command(experiment: Experiment) -> list[str]:
    """The command that runs an experiment of the profile `cpu`, without data and folder."""
    profile = configure(experiment.name, experiment.profile).settings()
    changed = {k: v for k, v in experiment.settings().items() if v != profile[k]}
    settings = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    return ["run", experiment.name, "--profile", experiment.profile, *settings]


def _is_asked(folder: Path, test: Frames) -> bool:
    """Whether the scores with other words are there; `run` deletes those of other weights."""
    found = read_vocabulary(folder / VOCABULARY)
    return found is not None and found["digest"] == test.digest


def _run_side_by_side(
    commands: Mapping[str, Sequence[str]], epochs: int, out: Path, device: str, title: str
) -> None:
    """Run {name: command} in this order, two at a time on a CPU, with one bar for all.

    Args:
        epochs: of all of them; 0 counts the commands.
        out: of the folders NAME of runs, and NAME.log of what a command prints.
    """
    on_cpu = pick_device(device).type == "cpu"
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if on_cpu else {})}
    waiting, running = list(commands), {}

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "camvid_lang", *commands[name], "--device", device]
        with open(out / f"{name}.log", "wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def check(name: str, code: int) -> None:
        if code:
            log = out / f"{name}.log"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise InputError(f"{name} failed, see {log}: {(lines or [f'exit code {code}'])[-1]}")
        bar.write(f"{title}: {name} finished")

    units = {"total": epochs or len(commands), "unit": "epoch" if epochs else "run"}
    with tqdm(desc=title, **units, disable=not commands) as bar:
        try:
            while waiting or running:
                for name in waiting[: 1 + on_cpu - len(running)]:
                    waiting.remove(name)
                    running[name] = start(name)
                time.sleep(0.5)
                for name in [name for name in running if running[name].poll() is not None]:
                    check(name, running.pop(name).returncode)
                done = len(commands) - len(waiting) - len(running)
                epochs_done = sum(_epochs_done(out / name) for name in commands)
                bar.update((epochs_done if epochs else done) - bar.n)
        finally:  # after an interruption too: a run that is stopped resumes from its last epoch
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def _epochs_done(folder: Path) -> int:
    files = Checkpoints(folder / CHECKPOINTS).files()
    return max(map(epoch_of, files), default=0)
