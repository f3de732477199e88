"""Trains the small model of real streets that the package carries: load("camvid").

    python scripts/street_model.py --data data/camvid --out runs/street [--seed N] [--carry]

The image encoder of `load("demo")`, trained on drawn scenes, is trained further on CamVid, with a
new upsampler. `--carry` copies the run into the package: weights in float16, averaged, no frame of
CamVid. A killed run resumes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from carry import carry
from safetensors.torch import save_file

import camvid_lang as cl
from camvid_lang.errors import InputError
from camvid_lang.models import TINY
from camvid_lang.models.encoder import load_clip
from camvid_lang.results import RunFolder, write_json

ASSETS = Path(cl.__file__).parent / "assets"
SETTINGS = {"width": 128, "spp_bottleneck": 128, "spp_width": 32}
SETTINGS |= {"crop": 320, "batch_size": 3, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3}
SETTINGS |= {"ema": 0.99, "scale_min": 0.75, "scale_max": 1.5}


def start_weights(path: Path) -> Path:
    """The tiny CLIP with the image encoder of `load("demo")`, in open_clip's format."""
    clip = load_clip(TINY)
    clip.visual.load_state_dict(cl.load("demo", device="cpu").model.encoder.visual.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(clip.state_dict(), path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small model of real streets.")
    parser.add_argument("--data", required=True, help="folder of CamVid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of order and crops (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="replace one of SETTINGS")  # fmt: skip
    parser.add_argument("--carry", action="store_true", help="copy the run into the package")
    options = parser.parse_args(arguments)
    pairs = [text.partition("=") for text in options.set]
    if odd := [key for key, equals, _ in pairs if not equals]:
        raise InputError(f"--set {odd[0]}: write it as key=value, as in --set epochs=10")
    settings = {**SETTINGS, **{key: value for key, _, value in pairs}}
    settings |= {"weights": str(start_weights(options.out / "demo-encoder.safetensors"))}
    settings |= {"encoder": TINY, "seed": options.seed}
    experiment = cl.experiment("full-names", profile="cpu", **settings)
    chosen = [f"--set={text}" for text in options.set]
    command = shlex.join(
        ["python", "scripts/street_model.py", "--seed", str(options.seed), *chosen]
    )
    cl.run(experiment, options.data, options.out, device="cpu", command=command)
    folder = RunFolder(options.out)
    if not folder.vocabulary.exists():
        test = cl.load_camvid(options.data, "test")
        write_json(folder.vocabulary, cl.load(folder.path).vocabulary_shift(test))
    if options.carry:
        carry(folder, RunFolder(ASSETS / "camvid"), images=0)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
