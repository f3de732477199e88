"""Procedurally drawn street scenes: data with exact labels where no data set is available.

Weather, light, the course of the road and everything along it vary; colours are shared between the
classes, so shape, texture and position have to tell them apart.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from camvid_lang.scenes import backdrop, objects
from camvid_lang.scenes.canvas import CLASS_ID, SceneCanvas

SIZE = (192, 256)
COUNTS = {"train": 160, "val": 40, "test": 60}
SPLITS = ("train", "val", "test")
SEEDS_PER_SPLIT = 100_000
VERSION = 1  # of the drawing; raise it when a seed gives another image than before
# Light of each channel, colour of the fog, sight in metres, colour of the zenith.
WEATHERS = {
    "sunny": ((1.12, 1.08, 1.0), (186, 200, 214), 260, (96, 142, 206)),
    "overcast": ((0.86, 0.87, 0.9), (182, 184, 188), 160, (164, 168, 176)),
    "dusk": ((0.52, 0.48, 0.54), (148, 112, 104), 140, (62, 66, 104)),
    "rain": ((0.68, 0.71, 0.75), (158, 162, 168), 70, (138, 144, 152)),
}


def draw_scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street as seen from a car.

    Args:
        seed: integer >= 0; the same seed and size give the same bytes.
        size: (height, width) in pixels.

    Returns:
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W), class ids 0..10 and 11 for void, exact to the pixel.

    Example:
        >>> image, label = draw_scene(0, size=(48, 64))
        >>> image.shape, label.shape
        ((48, 64, 3), (48, 64))
    """
    rng = np.random.default_rng(seed)
    weather = rng.choice(list(WEATHERS), p=(0.42, 0.28, 0.15, 0.15))
    light, fog, sight, zenith = (np.asarray(v, float) for v in WEATHERS[weather])
    light = light * rng.uniform(0.85, 1.1)
    sight = float(sight) * rng.uniform(0.7, 1.4)
    fog = fog + rng.normal(0, 8) + rng.normal(0, 4, 3)
    canvas = SceneCanvas(rng, size, light, fog, sight, sun=rng.choice((-1, 1)))
    street = _street(rng)
    zenith = zenith + rng.normal(0, 10) + rng.normal(0, 4, 3)
    sky = backdrop.sky(canvas, zenith, clear=weather == "sunny")
    canvas.paste(sky, np.full(size, CLASS_ID["sky"], np.uint8))
    backdrop.skyline(canvas)
    canvas.paste(*backdrop.ground(canvas, street, weather))
    for _, draw, arguments in _objects(canvas, street, lit=weather == "dusk"):
        draw(canvas, *arguments)
    backdrop.bonnet(canvas)
    label = np.array(canvas.label)
    return backdrop.finish(canvas, label, weather), label


def _street(rng: np.random.Generator) -> dict:
    """Positions in metres: x of both kerbs and building lines; (side, start, end) of a corner."""
    left, right = -rng.uniform(2.4, 5.5), rng.uniform(2.2, 3.8)
    walk = rng.uniform(2.0, 4.5, 2)
    side = rng.choice((-1, 1))
    start = rng.uniform(8, 35)
    corner = (side, start, start + rng.uniform(5, 8)) if rng.random() < 0.4 else None
    return {"kerbs": (left, right), "lines": (left - walk[0], right + walk[1]), "corner": corner}


def _objects(c: SceneCanvas, street: dict, lit: bool) -> list[tuple]:
    """All objects of a scene as (distance, function that draws it, arguments), farthest first."""
    rng, items = c.rng, []
    uniform, (left, right) = rng.uniform, street["kerbs"]
    for side, kerb, line in zip((-1, 1), street["kerbs"], street["lines"], strict=True):
        items += _lots(c, side, line, street["corner"], lit)
        walk = abs(line - kerb)
        for z in np.arange(uniform(4, 12), 55, uniform(12, 24)):
            items.append((z, objects.pole, (kerb + side * 0.35, z)))
        for z in uniform(5, 30, rng.integers(0, 4)):
            items.append((z, objects.sign, (kerb + side * uniform(0.3, 0.8), z)))
        if rng.random() < 0.35:
            for z in np.arange(uniform(5, 12), 50, uniform(6, 12)):
                items.append((z, objects.tree, (kerb + side * 0.7, z)))
        for _ in range(rng.integers(0, 5)):
            z = uniform(4.5, 24)
            items.append((z, objects.pedestrian, (kerb + side * uniform(0.4, walk), z)))
        if rng.random() < 0.45:  # parked cars
            for z in np.arange(uniform(5, 22), 55, uniform(5.5, 9)):
                if rng.random() < 0.75:
                    items.append((z, objects.car, (kerb - side * 1.0, z)))
        elif rng.random() < 0.3:
            style, start = objects.fence_style(c), uniform(4, 14)
            for z in np.arange(start, start + uniform(4, 16), 2.0):
                items.append((z, objects.fence, (kerb + side * 0.2, z, z + 2.0, style)))
        for z in uniform(5, 20, rng.integers(0, 2)):
            items.append((z, objects.litter, (kerb + side * uniform(0.5, walk), z)))
    for z in uniform(7, 40, rng.integers(0, 5)):
        x, across = uniform(left + 1.6, right - 1.6), rng.random() < 0.2
        items.append((z, objects.car, (x, z, across)))
    for _ in range(rng.integers(0, 4)):
        z = uniform(4.5, 18)
        items.append((z, objects.bicyclist, (uniform(left, right), z)))
    if rng.random() < 0.35:  # pedestrians who cross the road
        z = uniform(6, 18)
        for x in uniform(left, right, rng.integers(1, 4)):
            items.append((z, objects.pedestrian, (x, z)))
    return sorted(items, key=lambda item: -item[0])


def _lots(c: SceneCanvas, side: int, line: float, corner: tuple | None, lit: bool) -> list[tuple]:
    """Houses, gardens, fences and hedges along one side of the street, as in `_objects`."""
    rng, z, items = c.rng, 1.2, []
    built, style = rng.uniform(0.35, 0.95), objects.fence_style(c)
    while z < 85:
        end = z + rng.uniform(5, 13)
        if corner and corner[0] == side and z < corner[2] and end > corner[1]:
            if corner[1] - z <= 3:
                z = corner[2]
                continue
            end = corner[1]
        house = rng.random() < built
        setback = 0.0 if rng.random() < 0.6 else rng.uniform(2, 5)
        if house:
            # Sorted by its far end plus 20 m: everything in front of it is drawn over it.
            items.append((end + 20, objects.building, (line + side * setback, z, end, lit)))
        else:
            for at in rng.uniform(z, end, rng.integers(2, 5)):
                items.append((at + 10, objects.tree, (line + side * rng.uniform(1.5, 7), at)))
        if (setback or not house) and rng.random() < 0.8:
            hedge = rng.random() < 0.35
            for at in np.arange(z, end, 2.0):
                panel = (line, at, min(at + 2.0, end))
                draw, more = (objects.hedge, ()) if hedge else (objects.fence, (style,))
                items.append((at + 2.0, draw, (*panel, *more)))
        z = end + (rng.uniform(0, 3) if rng.random() < 0.4 else 0.0)
    return items


def scene_seed(seed: int, split: str, index: int) -> int:
    """Seed of image `index` of a split; no two splits of one data set share a seed."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def write_scenes(
    root: str | Path, counts: Mapping[str, int] = COUNTS, size: tuple = SIZE, seed: int = 0
) -> Path:
    """Write a data set of scenes as PNG files in CamVid's layout, unless it is there unchanged.

    Args:
        root: folder for {train,val,test} and {train,val,test}annot; created if missing.
        counts: images per split.
        size: (height, width) in pixels.

    Returns:
        The folder. `dataset.json` describes the data and is written last, when all is complete.
    """
    root = Path(root)
    note = f"drawn by camvid_lang.scenes, version {VERSION}, seed {seed}"
    described = {"name": "scenes", "counts": dict(counts), "size": list(size), "note": note}
    marker = root / "dataset.json"

    def text() -> str:
        """The content of `marker`, with a digest of all scenes."""
        digest = hashlib.sha256()
        for path in sorted(root.glob("*/scene_*.png")):
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
        return json.dumps({**described, "digest": digest.hexdigest()}, indent=1)

    if marker.is_file() and marker.read_text(encoding="utf-8", errors="replace") == text():
        return root
    marker.unlink(missing_ok=True)
    for folder in (root / f"{split}{kind}" for split in counts for kind in ("", "annot")):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("scene_*.png"):
            old.unlink()
    jobs = [(split, index) for split in counts for index in range(counts[split])]
    for split, index in tqdm(jobs, desc="drawing scenes", unit="scene"):
        image, label = draw_scene(scene_seed(seed, split, index), size)
        name = f"scene_{index:05d}.png"
        Image.fromarray(image).save(root / split / name, compress_level=1)
        Image.fromarray(label).save(root / f"{split}annot" / name)
    marker.write_text(text(), encoding="utf-8")
    return root
