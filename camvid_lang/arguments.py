"""The commands, their options and their help texts."""

import argparse
import contextlib
from collections.abc import Callable

__all__ = ["parser"]


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
        "OUT/report.html and OUT/results.json.",
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

    made = command(
        "bench",
        "bench",
        "Measure the exact cosine head and our training step beside the thesis's",
        "Time, peak memory, frames per second and the share of the device's matmul rate, of the "
        "head,\na training step and inference, each in a process of its own. Random weights.",
    )
    made.add_argument("--experiment", default="frozen-names", help="default: frozen-names")
    made.add_argument(
        "--batch", type=whole(2), default=2, help="crops of 224x224 a step (default: 2)"
    )
    made.add_argument(
        "--budget", metavar="SIZE", help="also find the largest batch within it, as in 15GB"
    )
    made.add_argument(
        "--sweep",
        action="store_true",
        help="instead: three experiments, crops to 720x960 frames, batches 2 to 32; for a GPU",
    )
    made.add_argument("--json", metavar="FILE", help="write all figures there")
    made.add_argument("--figure", metavar="FILE", help="write a bar chart there (PNG)")
    device(made)
    return top
