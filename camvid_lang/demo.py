"""The whole thesis on drawn scenes, and other words: one page. No download, no accelerator.

The package carries runs of it (`benchmarks/carry.py` copies them), so that notebooks show something
on a machine where none was run.
"""

import contextlib
import math
import multiprocessing
import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import torch
from tqdm import tqdm

from camvid_lang.data.camvid import load_camvid
from camvid_lang.device import pick_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import chance_scores
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.report.html import report_runs
from camvid_lang.report.tables import CHANCE
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import (
    VOCABULARY,
    read_results,
    read_vocabulary,
    versions,
    write_results,
)
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.segmenter import load
from camvid_lang.training.checkpoint import Checkpoints, epoch_of
from camvid_lang.training.mirror import CHECKPOINTS

CARRIED = Path(__file__).parent / "assets" / "demo"  # run folders
ROWS = (*THESIS_ROWS, "held-out")
ASKED = ("frozen-names", "full-narrow-descriptions", "held-out")
COUNTS = {"train": 560, "val": 40, "test": 60}  # scenes
RESULTS = "results.json"
EPOCHS = 18  # 20 minutes on two slow cores
# On top of the `cpu` profile: small crops for small scenes, and small batches for few epochs.
SETTINGS = {"crop": 128, "batch_size": 4, "lr": 2e-3, "encoder_lr": 1e-3}
# With so few steps a temperature above the thesis's 0.01 learns faster, and so do rates far above
# its own, after a linear rise; the boundary-aware loss helps thin classes (benchmarks/README.md).
SOFTER = {"temperature": 0.07, "boundary_weight": 8.0}
FASTER = {"lr": 1.6e-2, "encoder_lr": 8e-3}


def demo_settings(name: str, epochs: int = EPOCHS) -> dict:
    """What replaces the `cpu` profile's settings of an experiment on drawn scenes.

    Args:
        epochs: of the frozen rows; see `run_demo` for the others.
    """
    if name.startswith("bilinear"):
        return {}
    if name == "held-out":  # the thesis's loss
        return SETTINGS | {"batch_size": 8, "epochs": max(1, epochs // 2)}
    if name == "swiftnet":  # the slowest row by far; ResNet-18 starts from random weights here
        return SETTINGS | SOFTER | {"epochs": max(1, epochs // 6)}
    if name.startswith("adapter"):  # 14 instead of 5 gained half a point
        return SETTINGS | SOFTER | {"epochs": max(1, math.ceil(epochs / 3))}
    own = max(1, epochs * EXPERIMENTS[name].epochs // 240)
    return SETTINGS | SOFTER | FASTER | {"epochs": own, "warmup_epochs": max(1, own // 8)}


def run_demo(
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    epochs: int | None = None,
) -> dict[str, dict]:
    """Draw the scenes, run every row of the thesis on them, ask in other words, write report.html.

    On a CPU two rows run side by side with one thread each: two threads are far from twice as fast
    as one in layers as small as these. Each process imports the script that calls this, which
    therefore needs `if __name__ == "__main__":`.

    Args:
        out: folder of the run folders; runs that are finished there are read, not run again.
        seed: of the scenes and of training.
        fresh: run everything again.
        epochs: of the rows with a frozen encoder (None: 18). Those that train it whole take 5/3 of
            it, as in the thesis, `held-out` a half, the adapter a third and `swiftnet` a sixth.

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
    data = out / "scenes"
    write_scenes(data, counts=COUNTS, seed=seed)
    _run_side_by_side(experiments, data, out, device, fresh)
    results = {e.name: read_results(out / e.name / RESULTS) for e in experiments}
    chance = {
        "experiment": CHANCE,
        **chance_scores(load_camvid(data, "test"), seed),
        "miou_train": None,
        "settings": {},
        "prompts": None,
        "data": results["bilinear-names"]["data"],
        "encoder": dict.fromkeys(("name", "weights", "text"), "none"),
        "device": "cpu",
        "versions": versions(),
        "seconds": 0,
        "command": "python -m camvid_lang demo",
        "history": [],
    }
    (out / CHANCE).mkdir(exist_ok=True)
    write_results(out / CHANCE / RESULTS, chance)
    results = {CHANCE: chance, **results}
    page = report_runs([out], out / "report.html")
    print(f"{'':28}{'mIoU on scenes':>15}")
    for name, result in results.items():
        print(f"{name:28}{result['miou']:>13.1f} %")
    print(f"open {page}")
    return results


def _run_row(experiment: Experiment, data: Path, out: Path, device: str, fresh: bool) -> None:
    """As the command that is kept in the results; then the scores with other words."""
    profile = configure(experiment.name, experiment.profile).settings()
    changed = {k: v for k, v in experiment.settings().items() if v != profile[k]}
    settings = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    settings = ["--profile", experiment.profile, *settings, "--out", str(out), "--data", str(data)]
    command = shlex.join(["python", "-m", "camvid_lang", "run", experiment.name, *settings])
    run(experiment, data, out, device=device, fresh=fresh, command=command)
    if experiment.name in ASKED:
        test, found = load_camvid(data, "test"), read_vocabulary(out / VOCABULARY)
        if found is None or found["digest"] != test.digest:
            shift = load(out, device=device).vocabulary_shift(test)
            write_results(out / VOCABULARY, shift)


def _run_side_by_side(
    experiments: Sequence[Experiment], data: Path, out: Path, device: str, fresh: bool
) -> None:
    """Run the rows in processes, two at a time on a CPU, the longest first, with one bar.

    Processes are used for several rows, as torch takes seconds to load; finished rows are read in
    this one. What the processes print is in OUT/NAME.log.

    Raises:
        InputError: a row failed.
    """
    on_cpu = pick_device(device).type == "cpu"
    context, others = multiprocessing.get_context("spawn"), {*multiprocessing.active_children()}
    finished = [e for e in experiments if not fresh and (out / e.name / RESULTS).exists()]
    for row in finished:
        try:
            _run_row(row, data, out / row.name, device, fresh)
        except InputError as error:
            raise InputError(f"{row.name}: {error}") from error
    waiting = [e for e in experiments if e not in finished]
    waiting.sort(key=lambda e: (e.train_encoder, e.epochs), reverse=True)
    running: dict[Future, str] = {}
    with (
        tqdm(
            desc="demo",
            total=sum(e.epochs for e in experiments),
            initial=sum(e.epochs for e in finished),
            unit="epoch",
        ) as bar,
        ProcessPoolExecutor(1 + on_cpu, context, _start_worker, (on_cpu,)) as pool,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < 1 + on_cpu:
                    row = waiting.pop(0)
                    task = _run_row, row, data, out / row.name, device, fresh
                    running[pool.submit(_logged, out / f"{row.name}.log", *task)] = row.name
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    name, error = running.pop(future), future.exception()
                    if isinstance(error, InputError):  # which says how to fix it
                        raise InputError(f"{name}: {error}") from error
                    if error or not future.result():
                        what = f"failed, see {out / name}.log: {error}" if error else "was stopped"
                        raise InputError(f"{name} {what}; run again to resume") from error
                    bar.write(f"{name}: finished")
                bar.update(sum(_epochs_done(out / e.name) for e in experiments) - bar.n)
        except BaseException:  # an interruption too: a run that is stopped resumes
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()
            raise


def _start_worker(on_cpu: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process stops this one by SIGTERM
    if on_cpu:
        torch.set_num_threads(1)

    def follow() -> None:  # stop when the first process dies
        multiprocessing.parent_process().join()
        while True:  # the first signal may end a training only
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    threading.Thread(target=follow, daemon=True).start()


def _logged(log: Path, function: Callable, *arguments: object) -> bool:
    """Call a function in a worker; what it prints, and what it raises, is added to the file `log`.

    Returns whether it was not stopped by a signal.
    """
    with (
        open(log, "a", encoding="utf-8", errors="backslashreplace", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        contextlib.suppress(KeyboardInterrupt),  # by the first process, which knows
    ):
        try:
            function(*arguments)
            return True
        except Exception:
            traceback.print_exc()
            raise
    return False


def _epochs_done(folder: Path) -> int:
    files = Checkpoints(folder / CHECKPOINTS).files()
    return max(map(epoch_of, files), default=0)
