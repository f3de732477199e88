"""The commands, their options and their help texts.

Command line: `python -m camvid_lang COMMAND`, also installed as `camvid-lang`.

Exit codes: 0 done; 1 a failure, told in one line; 2 wrong usage. What a command needs is imported
when it runs, so that `--help` answers at once."""

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from camvid_lang.errors import InputError

__all__ = ["main"]


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` on."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} on is expected")

    return read


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command's `--help` is enough to use it.

    What it parses has `action`, the name of the function in `cli` that does it.
    """
    top = argparse.ArgumentParser(
        prog="camvid-lang",
        description="Semantic segmentation with language embeddings on CamVid.",
        epilog="Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: str, summary: str, detail: str = "", parent=commands):
        made = parent.add_parser(
            name,
            help=summary,
            description=f"{summary}. {detail}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(action=action)
        return made

    def device(made: argparse.ArgumentParser) -> None:
        made.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")

    def fresh(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--fresh", action="store_true", help="start over; the default goes on where it stopped"
        )

    made = command(
        "demo",
        "demo",
        "Run all nine experiments of the thesis on drawn scenes",
        "Needs no download and no accelerator;\nthree to six minutes on two cores. Writes "
        "OUT/report.html.",
    )
    made.add_argument("--out", default="runs/demo", help="folder (default: runs/demo)")
    made.add_argument("--seed", type=whole(0), default=0, help="of the scenes and of training")
    device(made)
    fresh(made)

    made = command("list", "list_experiments", "List the experiments, the thesis's figures beside")
    made.add_argument("--profile", default="thesis", help="thesis (default), cpu or smoke")
    made.add_argument("--json", action="store_true", help="all settings, as JSON")

    made = command(
        "run",
        "run",
        "Run one experiment on a data set, or go on with it",
        "Writes OUT/results.json and OUT/report.html.\n\n"
        "Profiles: thesis (as published), cpu (no accelerator; a quarter of an hour on CamVid),\n"
        "smoke (seconds, for tests).\n\n"
        "Real words on real frames without a hub or an accelerator:\n"
        "  camvid-lang run full-names --profile cpu --data data/camvid --out runs/full-names \\\n"
        "    --weights resnet18.safetensors --text-bank clip_text.npz",
    )
    made.add_argument("name", metavar="NAME", help="an experiment; see `camvid-lang list`")
    made.add_argument("--data", required=True, help="folder in CamVid's layout")
    made.add_argument("--out", required=True, help="folder of this run")
    made.add_argument("--profile", default="thesis", help="thesis (default), cpu or smoke")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one setting (repeatable); `camvid-lang list --json` shows the keys",
    )
    made.add_argument(
        "--weights",
        help="the encoder's: a tag of open_clip, a file in open_clip's format, or, for "
        "ResNet-18, a file under timm's key names (short for --set weights=...)",
    )
    made.add_argument(
        "--text-bank",
        help=".npz with `phrases` and `embeddings` in place of a text tower "
        "(short for --set text_bank=...)",
    )
    made.add_argument(
        "--mirror",
        metavar="DIR",
        help="a second folder, on a drive say, that gets a verified copy of all that is saved; "
        "an empty OUT goes on from it",
    )
    device(made)
    fresh(made)

    made = command(
        "report", "report", "Put finished runs side by side in one HTML page", "No run is repeated."
    )
    made.add_argument("runs", nargs="+", metavar="DIR", help="folders of runs, or of a demo")
    made.add_argument("--out", help="the page (default: report.html in the first DIR)")
    made.add_argument("--json", metavar="FILE", help="also write all results to this file")

    made = command(
        "score",
        "score",
        "Score a folder of predicted id PNGs, from any model, against labels",
        "Files are matched by name; ids 0..10 are classes, 11 is void.\n"
        "Pixels labelled void are ignored; a class in neither labels nor predictions is left out "
        "of the\nmeans (see the output for the rule).",
    )
    made.add_argument("predictions", metavar="PREDICTIONS", help="folder of id PNGs")
    made.add_argument("labels", metavar="LABELS", help="folder of id PNGs of the same names")
    made.add_argument("--json", action="store_true", help="print JSON")

    data = command("data", None, "Look after a data set").add_subparsers(
        dest="data_command", required=True, metavar="COMMAND"
    )
    made = command(
        "verify",
        "verify",
        "Check counts, names, sizes, ids and every file, and report all that is wrong",
        parent=data,
    )
    made.add_argument("directory", metavar="DIR", help="folder in CamVid's layout")

    made = command(
        "download",
        "download",
        "Put CamVid into a folder, or complete it there, every pixel checked",
        parent=data,
    )
    made.add_argument("directory", metavar="DIR", help="folder to fill")
    origin = made.add_mutually_exclusive_group()
    origin.add_argument("--from", dest="source", help="folder, archive, or its http address")
    origin.add_argument("--drive", metavar="ID", help="archive on Google Drive")

    made = command(
        "segment",
        "segment",
        "Segment pictures with any words, by a trained run",
        'Classes are separated by commas; "car|lorry" gives one class two phrases.\n'
        "Writes OUT/NAME.png (ids in the order of the classes) and OUT/NAME_overlay.png.",
    )
    made.add_argument("images", nargs="+", metavar="IMAGE")
    made.add_argument("--classes", required=True, help='as in "road, car|lorry, shop window"')
    made.add_argument("--run", required=True, help="folder of a finished run")
    made.add_argument("--out", required=True, help="folder for the results")
    made.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default="last",
        help="the end of training (default), or the best by mIoU over the training crops",
    )
    device(made)

    return top


def demo(args: argparse.Namespace) -> None:
    from camvid_lang.demo import run_demo

    run_demo(args.out, seed=args.seed, device=args.device, fresh=args.fresh)


def list_experiments(args: argparse.Namespace) -> None:
    from camvid_lang.experiments import EXPERIMENTS, configure
    from camvid_lang.report.thesis import THESIS_ROWS

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
    from camvid_lang.report.html import report_runs
    from camvid_lang.report.thesis import THESIS_ROWS
    from camvid_lang.run import run as run_experiment

    overrides = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as key=value, as in --set epochs=10")
        overrides[key.strip()] = value.strip()
    for key in ("weights", "text_bank"):
        if (value := getattr(args, key)) is not None:
            overrides[key] = value
    experiment = configure(args.name, **{"profile": args.profile, **overrides})
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
    thesis = THESIS_ROWS.get(experiment.name, {}).get("miou")
    print(f"{told}{f' (thesis, on CamVid: {thesis} %)' if thesis else ''}; {page}")


def report(args: argparse.Namespace) -> None:
    from camvid_lang.report.html import report_runs

    print(report_runs(args.runs, args.out, args.json))


def score(args: argparse.Namespace) -> None:
    from camvid_lang.evaluation import ABSENT_CLASS_RULE, score

    found = score(args.predictions, args.labels)
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
    from camvid_lang.data.camvid import verify as verify_data

    report = verify_data(args.directory)
    print(report.summary())
    wrong = len(report.problems) + len(report.differences)
    if wrong:
        raise InputError(f"{args.directory}: {wrong} thing(s) wrong, listed above")


def download(args: argparse.Namespace) -> None:
    from camvid_lang.data.download import download_camvid

    print(download_camvid(args.directory, args.source, args.drive).summary())


def segment(args: argparse.Namespace) -> None:
    from camvid_lang.models.text import parse_classes
    from camvid_lang.segmenter import segment_files

    classes = parse_classes(args.classes)
    for path in segment_files(
        args.images, classes, args.run, args.out, args.device, args.checkpoint
    ):
        print(path)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


ACTIONS = {
    action.__name__: action
    for action in (demo, list_experiments, run, report, score, verify, download, segment)
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
        from camvid_lang.training.loop import is_out_of_memory

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
