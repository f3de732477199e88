"""The command line: `python -m camvid_lang COMMAND`, also installed as `camvid-lang`.

A command is a function whose docstring is its help text. What it needs is imported when it runs,
after its arguments are checked, as torch takes seconds.
"""

import argparse
import glob
import inspect
import io
import itertools
import json
import os
import shlex
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from camvid_lang import __version__
from camvid_lang.data.words import Wording, parse_classes
from camvid_lang.errors import InputError, check_folder
from camvid_lang.experiments import EXPERIMENTS, SETTINGS, configure
from camvid_lang.report.thesis import THESIS_ROWS

Action = Callable[[argparse.Namespace], None]
COMMANDS: dict[str, tuple[Action, tuple]] = {}  # name: (function, arguments)


def argument(*flags: str, **options: object) -> tuple[tuple, dict]:
    """The arguments of `argparse.ArgumentParser.add_argument`."""
    return flags, options


def command(name: str, *arguments: tuple[tuple, dict]) -> Callable[[Action], Action]:
    """Add a function to `COMMANDS`; "data verify" is the command `verify` of the group `data`."""

    def add(action: Action) -> Action:
        COMMANDS[name] = action, arguments
        return action

    return add


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DEVICE = argument("--device", default="auto", help="cpu, cuda or auto (default)")
FRESH = argument("--fresh", action="store_true", help="start over; the default is to resume")
JSON = argument("--json", action="store_true", help="print JSON")
SETTING = {"dest": "set", "action": "append", "default": []}
MOVED = (
    argument("--text-bank", help="where the run's text bank is now, if it has moved"),
    argument("--weights", help="where the encoder's weights are now, if they have moved"),
)
PROFILE = argument("--profile", default="thesis", help="thesis (default), quick, cpu or smoke")
run_folder, data_folder = (partial(check_folder, what=what) for what in ("run", "data set"))
DATA = argument("--data", type=data_folder, required=True, help="folder in CamVid's layout")
FOLDER = argument("directory", metavar="DIR", help="folder in CamVid's layout")


@command(
    "demo",
    argument("--out", default="runs/demo", help="folder (default: runs/demo)"),
    argument("--epochs", type=int,
             help="of frozen encoders (default: 12, with --all 18); full ones get 5/3"),
    argument("--all", action="store_true", help="all nine experiments: 20 minutes"),
    DEVICE,
    FRESH,
)  # fmt: skip
def demo(args: argparse.Namespace) -> None:
    """Run four experiments of the thesis on drawn scenes.

    Takes six minutes on two slow cores; writes OUT/report.html and a folder per experiment.
    """
    from camvid_lang.demo import run_demo

    run_demo(args.out, args.device, args.fresh, args.epochs, args.all)


@command("list", PROFILE, JSON)
def list_experiments(args: argparse.Namespace) -> None:
    """List the experiments and the thesis's mIoU."""
    experiments = [configure(name, args.profile) for name in EXPERIMENTS]
    if args.json:
        print(json.dumps([entry.settings() for entry in experiments], indent=1))
        return
    print(f"profile {args.profile}; mIoU is the thesis's, on CamVid test, in %")
    print(f"{'name':26}{'table':>6}{'mIoU':>7}{'epochs':>8}{'batch':>7}  encoder")
    for entry in experiments:
        row = THESIS_ROWS.get(entry.name, {"table": "-", "miou": "-"})
        numbers = f"{row['table']:>6}{row['miou']:>7}{entry.epochs:>8}{entry.batch_size:>7}"
        print(f"{entry.name:26}{numbers}  {entry.encoder}")


@command(
    "run",
    argument("name", metavar="NAME", help="an experiment of `camvid-lang list`"),
    DATA,
    argument("--out", required=True, help="folder of this run"),
    PROFILE,
    argument("--set", **SETTING, metavar="KEY=VALUE", help="replace a setting of the list below"),
    argument("--weights", **SETTING, type="weights={}".format, metavar="WEIGHTS",
             help="of the encoder, a tag of open_clip or a file (short for --set weights=...)"),
    argument("--text-bank", **SETTING, type="text_bank={}".format, metavar="TEXT_BANK",
             help=".npz with `phrases` and `embeddings` (short for --set text_bank=...)"),
    argument("--mirror", metavar="DIR", help="second folder, on a drive for example, for a copy"),
    DEVICE,
    FRESH,
)  # fmt: skip
def run(args: argparse.Namespace) -> None:
    """Train and score one experiment on a data set, or resume it.

    Writes OUT/results.json and OUT/report.html. Profiles: thesis (as published, for a GPU), quick
    (30 epochs of it), cpu (no GPU; up to an hour of a core on CamVid), smoke (seconds, for tests).
    On several GPUs, which share each batch: torchrun --nproc_per_node=2 -m camvid_lang run ...
    """
    settings = {"profile": args.profile}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as key=value, as in --set epochs=10")
        settings[key.strip()] = value.strip()
    experiment = configure(args.name, **settings)
    from camvid_lang.distributed import is_main, processes
    from camvid_lang.report.html import report_runs
    from camvid_lang.report.tables import is_camvid
    from camvid_lang.runs import run as run_experiment

    options = {key: getattr(args, key) for key in ("data", "out", "fresh", "mirror", "command")}
    with processes(args.device) as device:
        results = run_experiment(experiment, **options, device=device)
        if not is_main():
            return
    _print_scores(results)
    page = report_runs([args.out])
    thesis = THESIS_ROWS.get(experiment.name)
    published = f" (thesis: {thesis['miou']} %)" if thesis and is_camvid(results) else ""
    print(f"{experiment.name}: mIoU {_percent(results['miou'])}{published}; {page}")


@command(
    "report",
    argument("runs", type=check_folder, nargs="+", metavar="DIR",
             help="folder of a run, or of several (a demo's)"),
    argument("--out", help="the page (default: report.html in the first DIR)"),
    argument("--json", metavar="FILE", help="also write the results of all runs to FILE"),
)  # fmt: skip
def report(args: argparse.Namespace) -> None:
    """Compare finished runs in one HTML page; nothing is run again."""
    from camvid_lang.report.html import report_runs

    print(report_runs(args.runs, args.out, json_file=args.json))


@command(
    "score",
    argument("predictions", type=check_folder, metavar="PREDICTIONS", help="folder of id PNGs"),
    argument("labels", type=check_folder, metavar="LABELS", help="as many, of the same names"),
    JSON,
)
def score(args: argparse.Namespace) -> None:
    """Score a folder of predicted id PNGs, of any model, against labels.

    Files are matched by name: grey PNGs of 8 bits with ids 0..10 of the classes and 11 for void,
    unless dataset.json in the folder says "first_id" and "void".
    """
    from camvid_lang import evaluation

    found = evaluation.score(args.predictions, args.labels)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print_scores(found)
        print(f"Void pixels are ignored. {evaluation.ABSENT_CLASS_RULE}")


@command(
    "vocabulary",
    argument("run", type=run_folder, metavar="RUN", help="folder of a finished run"),
    DATA,
    argument("--split", default="test", help="train, val, trainval or test (default)"),
    argument("--limit", type=int, help="frames, evenly spaced (default: all)"),
    argument("--wording", action="append", default=[], metavar="FILE",
             help='other words, .json {"tree": ["bush"], "road+pavement": "ground", ...}'),
    *MOVED,
    DEVICE,
    JSON,
)  # fmt: skip
def vocabulary(args: argparse.Namespace) -> None:
    """Score a run with other words for the classes than it was trained with.

    Prints mIoU with the trained words, and with others by `anchored` and by `cosine`; see `segment
    --help`. What was measured on the run's test frames is kept for `report`.
    """
    paths = [Path(name) for name in args.wording]
    asked = {path.stem: Wording(f"from {path.name}", parse_classes(path)) for path in paths}
    if len(asked) < len(paths):
        raise InputError("--wording: two files share a name; rename one")
    from camvid_lang.data.camvid import load_camvid
    from camvid_lang.results import RunFolder, read_results, read_vocabulary, write_json
    from camvid_lang.segmenter import load

    segmenter = load(args.run, args.device, args.text_bank, args.weights)
    frames = load_camvid(args.data, args.split, args.limit)
    found = segmenter.vocabulary_shift(frames, asked or None)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{'mIoU in %':16}{'trained':>9}{'anchored':>10}{'cosine':>8}")
        for name, row in found["wordings"].items():
            numbers = f"{row['trained']:9.1f}{row['anchored']['miou']:10.1f}"
            print(f"{name:16}{numbers}{row['cosine']['miou']:8.1f}  {row['reason']}")
    folder = RunFolder(args.run)
    measured = read_results(folder.results)["data"] if folder.is_finished else {}
    if frames.digest == measured.get("digest") and segmenter.folder == folder.path:
        kept = (read_vocabulary(folder.vocabulary) or {"wordings": {}})["wordings"]
        write_json(folder.vocabulary, {**found, "wordings": {**kept, **found["wordings"]}})


@command("data verify", FOLDER)
def verify(args: argparse.Namespace) -> None:
    """Check counts, names, sizes, ids and every file, and report all that is wrong.

    CamVid has to equal its release, pixel by pixel, unless DIR/dataset.json has another name.
    """
    from camvid_lang.data.camvid import verify as verify_data

    found = verify_data(args.directory)
    print(found.summary())
    if found.problems or (found.name.lower() == "camvid" and not found.complete):
        raise InputError(f"{args.directory}: fix what is listed above, or download CamVid again")


@command(
    "data download",
    FOLDER,
    argument("--from", dest="source", metavar="PATH", help="folder or archive (default: GitHub)"),
    argument("--drive", metavar="ID", help="Google Drive id of an archive"),
)
def download(args: argparse.Namespace) -> None:
    """Download CamVid (701 frames of 480x360) into DIR and check every pixel."""
    from camvid_lang.data.download import download_camvid

    print(download_camvid(args.directory, source=args.source, drive=args.drive).summary())


@command(
    "segment",
    argument("images", nargs="+", metavar="IMAGE", help="an image, a folder of images (such as "
             "DIR/test), or a pattern in quotes ('photos/*.jpg')"),
    argument("--run", type=run_folder, default="camvid", help="folder of a finished run; or a "
             "model of the package: camvid (default), of streets, or demo, of drawn scenes"),
    argument("--out", required=True, help="folder for the results"),
    argument("--max-side", type=int, metavar="N", help="a larger image is reduced to N pixels for "
             "the model (default: 4/3 of the frames it was trained on)"),
    argument("--tile", type=int, metavar="N", help="segment large images in overlapping tiles of "
             "NxN pixels, a multiple of 32, in place of reducing them"),
    argument("--compare", choices=("anchored", "cosine", "clip"), default="anchored",
             help="how words find pixels: through the classes of training (default), as `house` "
             "through `building`; by cosine, as in the thesis; or by CLIP's map where they are not "
             "of training (frozen-* and adapter-* runs)"),
    argument("--none-below", type=float, default=0.0, metavar="P", help="add the class `none of "
             "these` where no class agrees with a pixel with this probability, such as 0.5"),
    argument("--legend", action="store_true", help="put names and colours below the overlay"),
    argument("--probabilities", action="store_true", help="also write OUT/NAME_probabilities.npz: "
             "`classes`, and `probabilities` (K, H, W) float16"),
    argument("--classes", type=parse_classes, help='as "road, car|lorry", or a .txt or .json file'),
    *MOVED,
    DEVICE,
)  # fmt: skip
def segment(args: argparse.Namespace) -> None:
    """Segment images with any words, by the package's model of streets or a finished run.

    Classes are separated by commas (quotes protect them: '"a wide, empty road", sky'), by default
    those of the run; "car|lorry" is one class of two prompts. Writes OUT/NAME.png (ids in the order
    of the classes; 16 bits for other classes than CamVid's) and OUT/NAME_overlay.png. `score OUT
    DIR/testannot` scores what was segmented from DIR/test without --classes. A file that cannot be
    read does not stop the others.
    """
    images, out = _find_images(args.images), Path(args.out)
    options = {key: getattr(args, key) for key in ("tile", "max_side", "compare", "none_below")}
    ends = [".png", "_overlay.png"] + ["_probabilities.npz"] * args.probabilities
    _check_targets(images, out, ends)
    from camvid_lang.segmenter import load, read_rgb

    segmenter = load(args.run, args.device, args.text_bank, args.weights)
    result, failed, reduced, limit = None, [], 0, args.max_side or segmenter.max_side
    with tqdm(images, unit="image", disable=len(images) == 1, leave=False) as bar:
        for path in bar:
            try:
                image = read_rgb(path)
            except InputError as error:
                failed.append(str(error))
                continue
            reduced += args.tile is None and max(image.shape) > limit
            is_first, result = result is None, segmenter.segment(image, args.classes, **options)
            if is_first:
                for i, pair in enumerate(zip(result.colours, result.classes, strict=True)):
                    tqdm.write(f"{i:3}  #{bytes(pair[0]).hex()}  {pair[1]}")
            tqdm.write(str(result.save(out / path.stem, legend=args.legend)))
            if args.probabilities:
                found = segmenter.probabilities(result.image, args.classes, **options)
                place = out / f"{path.stem}{ends[-1]}"
                np.savez_compressed(place, classes=result.classes, probabilities=found)
    if reduced:
        print(f"note: {reduced} image(s) reduced to {limit} pixels; see --max-side, --tile")
    if failed:
        done = f"; the other {len(images) - len(failed)} are done" if len(images) > 1 else ""
        raise InputError("; ".join(failed) + done)


def _check_targets(images: Sequence[Path], out: Path, ends: Sequence[str]) -> None:
    """`InputError` where two images would write one file, or a result replace an image."""

    def key(path: Path) -> str:  # case and Unicode forms are one file on some disks
        return unicodedata.normalize("NFC", str(path.resolve())).casefold()

    written: dict[str, Path] = {}
    for path, end in itertools.product(images, ends):
        target = out / f"{path.stem}{end}"
        if (other := written.setdefault(key(target), path)) is not path:
            raise InputError(f"{path} and {other} would both write {target}: rename one")
    if lost := [path for path in images if key(path) in written]:
        raise InputError(f"{lost[0]} would be overwritten by a result: choose another --out")


def _find_images(arguments: Sequence[str]) -> list[Path]:
    """The images that are named, in a folder, or match a pattern, each once; others are noted."""
    found, skipped = {}, []
    for text in arguments:
        path = Path(text)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(text, recursive=True)))
        if not matches:
            raise InputError(f"{text}: no such file or folder, and no file matches it as a pattern")
        for match in matches:
            for file in sorted(match.glob("[!.]*")) if match.is_dir() else [match]:
                if file == path or (file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()):
                    found.setdefault(file.resolve(), file)
                else:
                    skipped.append(file)
    if not found:
        raise InputError(f"no image in {', '.join(arguments)}: give another folder")
    if skipped:
        print(f"note: skipped {len(skipped)} that are not images (first: {skipped[0]})")
    return list(found.values())


def _print_scores(found: dict) -> None:
    for title in ("accuracy", "mean accuracy", "mIoU"):
        print(f"{title:14}{_percent(found[title.lower().replace(' ', '_')]):>9}")
    for name, value in found["iou"].items():
        print(f"  IoU {name:12}{_percent(value):>7}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _with_flags(message: str) -> str:
    """An error of the API, which speaks of arguments, in one line and with the flags for them."""
    for name in ("fresh=True", "text_bank=PATH", "weights=PATH"):
        flag = name.removesuffix("=True").replace("=", " ").replace("_", "-")
        message = message.replace(name, f"--{flag}")
    if message.startswith(("none_below=", "compare=", "tile=", "max_side=")):
        message = f"--{message.replace('_', '-', 1).replace('=', ' ', 1)}"
    return " ".join(message.splitlines())


def _describe_settings() -> str:
    title = "settings and their defaults (`list --json` shows those of each experiment):"
    rows = [(f"{key}={x.default}", x.metadata["help"]) for key, x in SETTINGS.items()]
    return "\n".join([title, *(f"  {default:44} {text}" for default, text in rows)])


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has `action`."""
    top = argparse.ArgumentParser(
        prog="camvid-lang",
        description="Semantic segmentation with language embeddings on CamVid.",
        epilog="Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage.",
    )
    top.add_argument("--version", action="version", version=f"camvid-lang {__version__}")
    groups = {"": top.add_subparsers(required=True, metavar="COMMAND")}
    data = groups[""].add_parser("data", help="Download or verify CamVid")
    groups["data"] = data.add_subparsers(required=True, metavar="COMMAND")
    for name, (action, arguments) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        text = inspect.getdoc(action) or name  # without docstrings (python -OO)
        parser = groups[group].add_parser(
            word,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_describe_settings() if name == "run" else "",
        )
        parser.set_defaults(action=action)
        for flags, options in arguments:
            parser.add_argument(*flags, **options)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters of a path
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # unwinds
    try:
        args = build_parser().parse_args(arguments)
        args.command = shlex.join(["python", "-m", "camvid_lang", *arguments])
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_: tqdm.write(f"warning: {text}", sys.stderr)
            args.action(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`head`, for example) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        # By name, as torch may not have been imported: its error is a RuntimeError.
        full = type(error).__name__.endswith("MemoryError")
        if not (full or isinstance(error, InputError | OSError | Warning)):  # by python -W error
            raise
        text = "out of memory: give smaller images or batches" if full else str(error)
        print(f"error: {_with_flags(text)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        return 128 + getattr(interruption, "signal", signal.SIGINT)
    return 0
