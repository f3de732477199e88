"""Command line: `python -m camvid_lang COMMAND`, also installed as `camvid-lang`.

Exit codes: 0 done; 1 a failure, told in one line; 2 wrong usage. What a command needs is imported
when it runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from camvid_lang.arguments import parser
from camvid_lang.errors import InputError

__all__ = ["main"]


def demo(args: argparse.Namespace) -> None:
    from camvid_lang.demo import run_demo

    run_demo(args.out, seed=args.seed, device=args.device, fresh=args.fresh)


def list_experiments(args: argparse.Namespace) -> None:
    from camvid_lang.experiments import EXPERIMENTS, THESIS_ROWS, configure

    entries = [configure(name, args.profile) for name in EXPERIMENTS]
    if args.json:
        rows = [{**entry.settings(), "thesis": THESIS_ROWS.get(entry.name)} for entry in entries]
        print(json.dumps(rows, indent=1))
        return
    print(f"profile {args.profile}; mIoU is the thesis's, on CamVid test, in %")
    print(f"{'name':26}{'table':>6}{'mIoU':>7}{'epochs':>8}{'batch':>7}  encoder")
    for entry in entries:
        row = THESIS_ROWS.get(entry.name, {})
        table, miou = row.get("table", "-"), row.get("miou", "-")
        numbers = f"{table:>6}{miou:>7}{entry.epochs:>8}{entry.batch_size:>7}"
        print(f"{entry.name:26}{numbers}  {entry.encoder}")


def run(args: argparse.Namespace) -> None:
    from camvid_lang.experiments import configure
    from camvid_lang.run_reports import report_runs
    from camvid_lang.runs import run as run_experiment

    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as key=value, as in --set epochs=10")
        overrides[key.strip()] = value.strip()
    for key in ("weights", "text_bank"):
        if (value := getattr(args, key)) is not None:
            overrides[key] = value
    experiment = configure(args.name, args.profile, overrides)
    results = run_experiment(
        experiment,
        args.data,
        args.out,
        args.device,
        args.fresh,
        command=args.command_line,
        mirror=args.mirror,
    )
    page = report_runs([args.out])
    told = f"{experiment.name}: mIoU {_percent(results['miou'])}"
    thesis = results["thesis"].get("miou")
    print(f"{told}{f' (thesis, on CamVid: {thesis} %)' if thesis else ''}; {page}")


def report(args: argparse.Namespace) -> None:
    from camvid_lang.run_reports import report_runs

    print(report_runs(args.runs, args.out))


def score(args: argparse.Namespace) -> None:
    from camvid_lang.evaluation import score_folders
    from camvid_lang.metrics import ABSENT_CLASS_RULE

    found = score_folders(args.predictions, args.labels)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for key, title in (
        ("accuracy", "accuracy"),
        ("mean_accuracy", "mean accuracy"),
        ("miou", "mIoU"),
    ):
        print(f"{title:14}{_percent(found[key]):>9}")
    for name, value in found["iou"].items():
        print(f"  IoU {name:12}{_percent(value):>7}")
    print(f"Void pixels are ignored. {ABSENT_CLASS_RULE}")


def verify(args: argparse.Namespace) -> None:
    from camvid_lang.data import verify as verify_data

    report = verify_data(args.directory)
    print(report.summary())
    wrong = len(report.problems) + len(report.missing)
    if wrong:
        raise InputError(f"{args.directory}: {wrong} thing(s) wrong, listed above")


def segment(args: argparse.Namespace) -> None:
    from camvid_lang.segment import segment_files
    from camvid_lang.text import parse_classes

    classes = parse_classes(args.classes)
    for path in segment_files(
        args.images, classes, args.run, args.out, args.device, args.checkpoint
    ):
        print(path)


def bench(args: argparse.Namespace) -> None:
    from camvid_lang import bench as benchmark
    from camvid_lang.figures import bench_bars
    from camvid_lang.plotting import to_png
    from camvid_lang.results import write_json

    if args.sweep and args.figure:
        raise InputError("--figure draws one comparison, not a sweep: leave out one of the two")
    for file in (args.json, args.figure):
        if file and not Path(file).parent.is_dir():  # told before minutes are spent
            raise InputError(f"{file}: there is no folder {Path(file).parent}")
    budget = benchmark.parse_bytes(args.budget) if args.budget else None
    if args.sweep:
        results = benchmark.sweep(args.device, budget or benchmark.parse_bytes("15GB"))
    else:
        results = benchmark.bench(args.experiment, args.batch, args.device, budget)
        print(benchmark.summary(results))
    if args.json:
        write_json(args.json, {**results, "command": args.command_line})
    if args.figure:
        Path(args.figure).write_bytes(to_png(bench_bars(results)))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


ACTIONS = {
    action.__name__: action
    for action in (demo, list_experiments, run, report, score, verify, segment, bench)
}


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that temporaries are removed and the reason is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        interruption = KeyboardInterrupt("terminated: what was saved is kept")
        interruption.signal = number
        raise interruption

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know all letters of a path
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(arguments)
    args.command_line = shlex.join(["python", "-m", "camvid_lang", *arguments])
    try:
        with terminated_like_interrupted():
            ACTIONS[args.action](args)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, say) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{Path(error.filename)}: " if isinstance(error.filename, str) else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        from camvid_lang.faults import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(
            "error: out of memory; smaller pictures, batches or settings need less", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt as interruption:
        told = str(interruption) or "interrupted: what was saved is kept"
        print(told, file=sys.stderr)
        return 128 + getattr(interruption, "signal", signal.SIGINT)
    return 0
