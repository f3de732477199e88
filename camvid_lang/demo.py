"""The thesis on drawn scenes, and other words: one page. No download, no accelerator."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.download import unpack_scenes
from camvid_lang.device import pick_device
from camvid_lang.errors import InputError
from camvid_lang.evaluation import chance_scores
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.report.html import report_runs
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import RunFolder, read_results, write_json
from camvid_lang.runs import run
from camvid_lang.segmenter import load
from camvid_lang.training.checkpoint import Checkpoints

CARRIED = Path(__file__).parent / "assets" / "demo"  # run folders
ROWS = ("bilinear-names", "adapter-names", "frozen-names", "full-narrow-descriptions")
ASKED = ("frozen-names", "full-narrow-descriptions")  # in other words, too
EPOCHS, ALL_EPOCHS = 12, 18  # for ROWS, and for all rows of the thesis
# On top of the `cpu` profile: small crops for small scenes, and small batches for few epochs.
SETTINGS = {"crop": 128, "batch_size": 4}
SWIFTNET = {"lr": 2e-3, "encoder_lr": 1e-3, "temperature": 0.07, "boundary_weight": 8.0}


def demo_settings(name: str, epochs: int = ALL_EPOCHS) -> dict:
    """What replaces the `cpu` profile's settings of an experiment; `epochs` as in `run_demo`."""
    if name.startswith("bilinear"):
        return {}
    if name == "swiftnet":  # the slowest row by far; ResNet-18 starts from random weights here
        return SETTINGS | SWIFTNET | {"epochs": max(1, epochs // 6)}
    if name.startswith("adapter"):  # 14 instead of 5 gained half a point
        return SETTINGS | {"epochs": max(1, min(6, epochs))}
    epochs = max(1, epochs * EXPERIMENTS[name].epochs // 240)
    return SETTINGS | {"epochs": epochs, "warmup_epochs": max(1, epochs // 8)}


def demo_experiments(names: Sequence[str], epochs: int) -> list[Experiment]:
    """The experiments as the demo runs them: untrained ones, which are quick, then the longest."""
    rows = [configure(name, "cpu", **demo_settings(name, epochs)) for name in names]
    return sorted(rows, key=lambda row: (row.epochs > 0, -row.train_encoder, -row.epochs))


def run_demo(
    out: str,
    device: str = "auto",
    fresh: bool = False,
    epochs: int | None = None,
    every_row: bool = False,
) -> None:
    """Run rows of the thesis on drawn scenes, ask in other words, and write report.html.

    On a CPU two rows run side by side in processes with one thread each: two threads are far from
    twice as fast as one in layers as small as these. What they print is in OUT/NAME.log.

    Args:
        out: folder of the run folders; finished runs are read, not run again, unless `fresh`.
        epochs: of the rows with a frozen encoder (None: 12, or 18 of every row). Those that train
            it whole take 5/3 of it, as in the thesis, the adapter at most 6, `swiftnet` a sixth.
        every_row: of the thesis, instead of ROWS.
    """
    folder, names = Path(out), [*THESIS_ROWS] if every_row else ROWS
    default = ALL_EPOCHS if every_row else EPOCHS
    epochs = default if epochs is None else epochs
    rows = demo_experiments(names, epochs)
    unpack_scenes(folder / "scenes")
    for row in rows:
        (folder / f"{row.name}.log").unlink(missing_ok=True)  # so that no old error is repeated
        if fresh:
            with (run_folder := RunFolder(folder / row.name)).lock():
                run_folder.clear()
    _run_rows(folder, rows, [str(epochs), device, *names])
    results = {name: read_results(RunFolder(folder / name).results) for name in names}
    print(f"{'':28}{'mIoU on scenes':>15}")
    chance = chance_scores(next(iter(results.values()))["confusion"])["miou"]
    for name, miou in {"chance": chance, **{n: r["miou"] for n, r in results.items()}}.items():
        print(f"{name:28}{miou:>13.1f} %")
    print("open", report_runs([folder]))


def _run_rows(out: Path, rows: list[Experiment], arguments: list[str]) -> None:
    """Run the rows in processes, see `_work`, with one bar; `InputError` where one fails."""
    command = [sys.executable, "-m", "camvid_lang.demo", str(out), *arguments]
    # Standard input ends when this process does, however it ends; Ctrl-C does not reach a session.
    options = {"stdin": subprocess.PIPE, "start_new_session": True}
    options["env"] = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    count = 2 if pick_device(arguments[1]).type == "cpu" else 1
    folders = [RunFolder(out / row.name) for row in rows]
    checkpoints, written = [Checkpoints(folder.checkpoints) for folder in folders], 0
    with ExitStack() as stack:  # closes the pipes, then waits
        bar = stack.enter_context(tqdm(desc="demo", total=sum(row.epochs for row in rows)))
        workers = [stack.enter_context(subprocess.Popen(command, **options)) for _ in range(count)]
        while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
            time.sleep(0.5)
            bar.update(sum(max(0, saved.epoch) for saved in checkpoints) - bar.n)
            coming = [folder.path.name for folder in folders if not folder.is_finished]
            if written < len(rows) - len(coming) < len(rows):  # so that there is something to read
                written = len(rows) - len(coming)
                with suppress(InputError):  # which ends the row, or the demo, later
                    bar.set_postfix_str(f"see {report_runs([out], coming=coming)}")
    if any(codes):
        for log in filter(Path.exists, [out / f"{row.name}.log" for row in rows]):
            _, error, line = log.read_text(encoding="utf-8").rpartition("\nerror: ")
            if error:
                raise InputError(f"{log.stem}: {line.strip()}")
        raise InputError(f"a row was stopped: see {out}/*.log; run again to resume")


def _work(out: Path, epochs: int, device: str, *names: str) -> None:
    """Run the next row that no other process runs, until there is none."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if pick_device(device).type == "cpu":
        torch.set_num_threads(1)
    for row in demo_experiments(names, epochs):
        # Not the run's lock, which does not cover reading the data and the scores of other words.
        lock = filelock.FileLock(out / f".{row.name}.lock", timeout=0)
        with suppress(filelock.Timeout), lock:
            _run_row(row, out, device)


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin.read, whose buffer is locked when this process ends
    while True:  # the first signal may end a training only
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _run_row(row: Experiment, out: Path, device: str) -> None:
    """A row as the command that its results keep, then with other words; prints to OUT/NAME.log."""
    default = configure(row.name, row.profile).settings()
    settings = [f"--set={k}={v}" for k, v in row.settings().items() if v != default[k]]
    command = ["python", "-m", "camvid_lang", "run", row.name, "--profile", row.profile, *settings]
    folder, data, log = RunFolder(out / row.name), out / "scenes", out / f"{row.name}.log"
    command = shlex.join([*command, "--out", str(folder.path), "--data", str(data)])
    options = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
    with open(log, "a", **options) as file, redirect_stdout(file), redirect_stderr(file):
        try:
            run(row, data, folder.path, device=device, command=command)
            if row.name in ASKED and not folder.vocabulary.exists():
                model = load(folder.path, device=device)
                write_json(folder.vocabulary, model.vocabulary_shift(load_camvid(data, "test")))
        except (Exception, KeyboardInterrupt) as error:
            line = " ".join(str(error).split())
            if not isinstance(error, InputError | KeyboardInterrupt):  # a defect
                traceback.print_exc()
                line = f"{type(error).__name__}: {line}; see {log}"
            print(line if isinstance(error, KeyboardInterrupt) else f"\nerror: {line}")
            sys.exit(1)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
