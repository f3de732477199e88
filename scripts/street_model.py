"""Trains the small model of real streets that the package carries: load("camvid").

    python scripts/street_model.py --data data/camvid --out runs/street [--seed N] [--carry]

The image encoder of `load("demo")`, trained on 600 small drawn scenes, is trained on 2,400 of
CamVid's size (in START, for all seeds), then on CamVid, each time with a new upsampler. `--carry`
copies the run into the package: weights in float16, averaged, no frame of CamVid. A killed run
resumes.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from carry import carry
from draw_scenes import draw_scene
from PIL import Image
from safetensors.torch import save
from tqdm import tqdm

import camvid_lang as cl
from camvid_lang.errors import InputError
from camvid_lang.models import TINY
from camvid_lang.models.encoder import load_clip
from camvid_lang.results import RunFolder, atomic_write, write_json

ASSETS = Path(cl.__file__).parent / "assets"
SETTINGS = {"crop": 320, "batch_size": 3, "epochs": 30, "lr": 8e-3, "encoder_lr": 4e-3}
SETTINGS |= {"ema": 0.99, "scale_min": 0.75, "scale_max": 1.5}
SETTINGS |= {"width": 128, "spp_bottleneck": 128, "spp_width": 32}
# What differs on drawn scenes, of which there are enough for strong augmentation. The upsampler is
# not kept, so a narrow one does.
ON_SCENES = {"epochs": 4, "warmup_epochs": 1, "width": 64, "spp_bottleneck": 64, "spp_width": 64}
ON_SCENES |= {"colour_jitter": 0.4, "scale_min": 0.5, "scale_max": 2.0}
# Number of scenes, and the seed of the first: none that the package carries or is tested on.
SCENES = {"train": (2400, 900_000), "val": (4, 800_000), "test": (60, 700_000)}
SIZE = (360, 480)


def draw(folder: Path) -> None:
    """Draw what is missing of the scenes; one core draws ten in a second."""
    for split, (count, first) in SCENES.items():
        for index in tqdm(range(count), desc=f"drawing {split}"):
            pair = [folder / kind / f"s_{index:05}.png" for kind in (split, f"{split}annot")]
            if all(path.exists() for path in pair):
                continue
            for path, pixels in zip(pair, draw_scene(first + index, SIZE), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    write_json(folder / "dataset.json", {"name": "scenes"})


def weights_of(run: str, path: Path) -> Path:
    """The tiny CLIP with the image encoder of a run, in open_clip's format, in a file."""
    clip = load_clip(TINY)
    clip.visual.load_state_dict(cl.load(run, device="cpu").model.encoder.visual.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save(clip.state_dict()))
    return path


def pretrained(start: Path) -> Path:
    """Weights after training on drawn scenes, in the folder `start`, where they are kept."""
    if not (weights := start / "pretrained.safetensors").exists():
        draw(start / "scenes")
        initial = weights_of("demo", start / "demo-encoder.safetensors")
        settings = {**SETTINGS, **ON_SCENES, "encoder": TINY, "weights": str(initial)}
        experiment = cl.experiment("full-names", profile="cpu", **settings)
        cl.run(experiment, start / "scenes", start / "run", device="cpu")
        weights_of(str(start / "run"), weights)
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small model of real streets.")
    parser.add_argument("--data", required=True, help="folder of CamVid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--start", type=Path, metavar="START",
                        help="folder of the drawn scenes and the training on them "
                             "(default: street-start beside OUT)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of order and crops (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="replace one of SETTINGS")  # fmt: skip
    parser.add_argument("--carry", action="store_true", help="copy the run into the package")
    options = parser.parse_args(arguments)
    pairs = [text.partition("=") for text in options.set]
    if odd := [key for key, equals, _ in pairs if not equals]:
        raise InputError(f"--set {odd[0]}: write it as key=value, as in --set epochs=10")
    settings = {**SETTINGS, "seed": options.seed, **{key: value for key, _, value in pairs}}
    if made := settings.keys() & {"encoder", "weights"}:
        raise InputError(f"--set {min(made)}: it is what this script trains; leave it out")
    experiment = cl.experiment("full-names", profile="cpu", encoder=TINY, **settings)
    weights = pretrained(options.start or options.out.parent / "street-start")
    experiment = replace(experiment, weights=str(weights))
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
