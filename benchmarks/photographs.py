"""What a model loses on photographs unlike the frames it was trained on: mIoU after each change.

    python benchmarks/photographs.py --data DIR [--run camvid] [--limit N] [--json FILE]

Frames are changed in memory: cut to other shapes, turned, mirrored, of other sizes, darkened,
brightened, blurred, with noise, fog, drawn rain, strong JPEG compression, without colour. Labels
are cut and turned with them; `Segmenter.segment` reads the changed frame as a user's photograph.
Also timed, with the model loaded: a frame, and one upsampled to 12 megapixels.
"""

import argparse
import io
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import camvid_lang as cl
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.errors import InputError
from camvid_lang.evaluation import confusion_matrix, scores
from camvid_lang.results import versions, write_json

Change = Callable[[Image.Image], Image.Image]  # of a frame, RGB, or of its label, mode L
LARGE = (4000, 3000)  # 12 megapixels


def cut(shape: float) -> Change:
    """The largest part of this width / height around the centre."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        size = min(width, round(height * shape)), min(height, round(width / shape))
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        return image.crop((left, top, left + size[0], top + size[1]))

    return change


def scale(factor: float) -> Change:
    """Another size: bicubic for frames, nearest for labels."""

    def change(image: Image.Image) -> Image.Image:
        sampling = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.BICUBIC
        return image.resize([round(side * factor) for side in image.size], sampling)

    return change


def turn(degrees: float) -> Change:
    """Turned around the centre; corners are grey, and void in the label."""

    def change(image: Image.Image) -> Image.Image:
        is_label = image.mode == "L"
        sampling = Image.Resampling.NEAREST if is_label else Image.Resampling.BICUBIC
        return image.rotate(degrees, sampling, fillcolor=VOID if is_label else (128, 128, 128))

    return change


def pixels(function: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """A function of RGB values in 0..1 and of random numbers, the same for every frame."""

    def change(image: Image.Image) -> Image.Image:
        values = function(np.asarray(image, np.float32) / 255, np.random.default_rng(0))
        return Image.fromarray((255 * values.clip(0, 1) + 0.5).astype(np.uint8))

    return change


def night(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A fifth of the light, bluish, with the noise of a sensor."""
    dark = values**1.5 * np.float32([0.18, 0.2, 0.25])
    return dark + random.normal(0, 0.02, values.shape)


def rain(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Half of the contrast, less light, and 400 bright streaks of 15 pixels."""
    grey = 0.35 + 0.5 * (values - 0.5)
    height, width = values.shape[:2]
    starts = random.integers(width, size=400), random.integers(height, size=400)
    for x, y in zip(*starts, strict=True):
        for step in range(15):
            row, column = (y + step) % height, (x + step // 4) % width
            grey[row, column] = 0.6 * grey[row, column] + 0.4 * 0.85
    return grey


def jpeg(quality: int) -> Change:
    """Compressed and read again."""

    def change(image: Image.Image) -> Image.Image:
        image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


# {name: (change of the frame, change of the label)}
SHAPES = {
    "16:9": cut(16 / 9),
    "square": cut(1),
    "portrait, 3:4": cut(3 / 4),
    "portrait, 9:16": cut(9 / 16),
    "mirrored": ImageOps.mirror,
    "turned by 10 degrees": turn(10),
    "upside down": turn(180),
    "half the size": scale(0.5),
    "upsampled to 640x480": scale(640 / 480),
    "upsampled to 800x600": scale(800 / 480),
    "upsampled to 1024x768": scale(1024 / 480),
}
LOOKS = {
    "dusk, half the light": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "night": pixels(night),
    "overexposed": lambda image: ImageEnhance.Brightness(image).enhance(1.7),
    "fog": pixels(lambda values, _: 0.45 * values + 0.55 * 0.8),
    "rain": pixels(rain),
    "noise": pixels(lambda values, random: values + random.normal(0, 0.08, values.shape)),
    "blurred by 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "JPEG of quality 10": jpeg(10),
    "without colour": lambda image: image.convert("L").convert("RGB"),
}


def changed(frames: Frames, look: Change, shape: Change) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each frame (H, W, 3) and its label (H, W), changed."""
    images = frames.images.permute(0, 2, 3, 1).numpy()
    for image, label in zip(images, frames.labels.numpy(), strict=True):
        frame = look(shape(Image.fromarray(image)))
        yield np.asarray(frame), np.array(shape(Image.fromarray(label)))


def measure(segmenter: cl.Segmenter, frames: Frames) -> dict[str, float]:
    """{change: mIoU in percent}, the unchanged frames first."""
    changes = {"unchanged": (Image.Image.copy, Image.Image.copy)}
    changes |= {name: (Image.Image.copy, shape) for name, shape in SHAPES.items()}
    changes |= {name: (look, Image.Image.copy) for name, look in LOOKS.items()}
    found = {}
    for name, (look, shape) in changes.items():
        pairs = (
            (torch.from_numpy(segmenter.segment(image).ids), torch.from_numpy(label))
            for image, label in changed(frames, look, shape)
        )
        found[name] = scores(confusion_matrix(pairs))["miou"]
        print(f"{name:24}{found[name]:7.1f}{found[name] - found['unchanged']:+7.1f}", flush=True)
    return found


def seconds(segmenter: cl.Segmenter, image: Image.Image) -> float:
    """The median time to segment an image in five attempts, after one more."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        segmenter.segment(image)
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[2]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="mIoU on frames that are changed in memory.")
    parser.add_argument("--data", required=True, help="a data set in CamVid's layout")
    parser.add_argument("--run", default="camvid", help="a run, or a model of the package")
    parser.add_argument("--limit", type=int, help="test frames, evenly spaced (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    options = parser.parse_args(arguments)
    segmenter = cl.load(options.run, device="cpu")
    frames = cl.load_camvid(options.data, "test", options.limit)
    frame = Image.fromarray(frames.images[0].permute(1, 2, 0).numpy())
    times = {
        "frame": seconds(segmenter, frame),
        "12 megapixels": seconds(segmenter, frame.resize(LARGE)),
    }
    print(*(f"{name}: {value:.3f} s" for name, value in times.items()), sep="\n")
    found = {"miou": measure(segmenter, frames), "seconds": times}
    if options.json:
        made = {"run": options.run, "frames": len(frames), "digest": frames.digest}
        machine = {"threads": torch.get_num_threads(), "processor": platform.machine()}
        write_json(options.json, {**made, **found, **machine, "versions": versions()})


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
