"""Procedurally drawn road scenes: data with exact labels for a machine that has no data.

`draw_scene` makes one picture and its label out of a seed, `write_scenes` a whole dataset in
CamVid's folder layout. Weather, light, the course of the road and everything along it vary; colours
are shared between the classes, so shape, texture and place have to tell them apart.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from camvid_lang.errors import InputError
from camvid_lang.scenes import backdrop, road_users, scenery
from camvid_lang.scenes.canvas import CLASS_ID, LEAVES, SceneCanvas

__all__ = [
    "DEFAULT_COUNTS",
    "DEFAULT_SIZE",
    "draw_scene",
    "scene_seed",
    "write_scenes",
]

DEFAULT_SIZE = (192, 256)
DEFAULT_COUNTS = {"train": 160, "val": 40, "test": 60}
SPLITS = ("train", "val", "test")
SEEDS_PER_SPLIT = 100_000
VERSION = 1  # of the drawing: raise it when the same seed gives another picture
OBJECTS = {
    "building": scenery.building, "tree": scenery.tree, "hedge": scenery.hedge,
    "fence": scenery.fence, "pole": scenery.pole, "sign": scenery.sign, "void": scenery.litter,
    "car": road_users.car, "pedestrian": road_users.pedestrian, "bicyclist": road_users.bicyclist,
}  # fmt: skip
# Light per channel, colour of haze, sight in metres, top of the sky.
WEATHERS = {
    "sunny": ((1.12, 1.08, 1.0), (186, 200, 214), 260, (96, 142, 206)),
    "overcast": ((0.86, 0.87, 0.9), (182, 184, 188), 160, (164, 168, 176)),
    "dusk": ((0.52, 0.48, 0.54), (148, 112, 104), 140, (62, 66, 104)),
    "rain": ((0.68, 0.71, 0.75), (158, 162, 168), 70, (138, 144, 152)),
}


def draw_scene(seed, size=DEFAULT_SIZE):
    """Draw one street as seen from a car.

    Args:
        seed: whole number >= 0; the same seed and size give the same bytes.
        size: (height, width) in pixels.

    Returns:
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W), class ids 0..10 and 11 for void, exact to the pixel.
    """
    rng = np.random.default_rng(seed)
    weather = rng.choice(list(WEATHERS), p=(0.42, 0.28, 0.15, 0.15))
    light, haze, sight, zenith = (np.asarray(v, float) for v in WEATHERS[weather])
    light = light * rng.uniform(0.85, 1.1)
    sight = float(sight) * rng.uniform(0.7, 1.4)
    haze = haze + rng.normal(0, 8) + rng.normal(0, 4, 3)
    canvas = SceneCanvas(rng, size, light, haze, sight, sun=rng.choice((-1, 1)))
    street = _street(rng)
    zenith = zenith + rng.normal(0, 10) + rng.normal(0, 4, 3)
    sky = backdrop.sky(canvas, zenith, clear=weather == "sunny")
    canvas.paste(sky, np.full(size, CLASS_ID["sky"], np.uint8))
    backdrop.skyline(canvas)
    canvas.paste(*backdrop.ground(canvas, street, weather))
    for item in _layout(canvas, street, lit=weather == "dusk"):
        OBJECTS[item[0]](canvas, *item[1])
    backdrop.bonnet(canvas)
    label = np.array(canvas.label)
    return backdrop.finish(canvas, label, weather), label


def _street(rng):
    """Where the kerbs, the building lines and a side street lie, in metres."""
    left, right = -rng.uniform(2.4, 5.5), rng.uniform(2.2, 3.8)
    walk = rng.uniform(2.0, 4.5, 2)
    side = rng.choice((-1, 1))
    start = rng.uniform(8, 35)
    corner = (side, start, start + rng.uniform(5, 8)) if rng.random() < 0.4 else None
    return {"kerbs": (left, right), "lines": (left - walk[0], right + walk[1]), "corner": corner}


def _layout(c, street, lit):
    """All things of a scene as (kind, arguments), farthest first."""
    rng, items = c.rng, []
    for side, kerb, line in zip((-1, 1), street["kerbs"], street["lines"], strict=True):
        _lots(c, side, line, street["corner"], items, lit)
        walk = abs(line - kerb)
        for z in np.arange(rng.uniform(4, 12), 55, rng.uniform(12, 24)):
            items.append((z, "pole", (kerb + side * 0.35, z)))
        for z in rng.uniform(5, 30, rng.integers(0, 4)):
            items.append((z, "sign", (kerb + side * rng.uniform(0.3, 0.8), z)))
        if rng.random() < 0.35:
            for z in np.arange(rng.uniform(5, 12), 50, rng.uniform(6, 12)):
                items.append((z, "tree", (kerb + side * 0.7, z)))
        for _ in range(rng.integers(0, 5)):
            z = rng.uniform(4.5, 24)
            items.append((z, "pedestrian", (kerb + side * rng.uniform(0.4, walk), z)))
        if rng.random() < 0.45:
            for z in np.arange(rng.uniform(5, 22), 55, rng.uniform(5.5, 9)):
                if rng.random() < 0.75:
                    items.append((z, "car", (kerb - side * 1.0, z)))
        elif rng.random() < 0.3:
            style, start = _fence_style(c), rng.uniform(4, 14)
            for z in np.arange(start, start + rng.uniform(4, 16), 2.0):
                items.append((z, "fence", (kerb + side * 0.2, z, z + 2.0, style)))
        for z in rng.uniform(5, 20, rng.integers(0, 2)):
            items.append((z, "void", (kerb + side * rng.uniform(0.5, walk), z)))
    left, right = street["kerbs"]
    for z in rng.uniform(7, 40, rng.integers(0, 5)):
        items.append((z, "car", (rng.uniform(left + 1.6, right - 1.6), z, rng.random() < 0.2)))
    for _ in range(rng.integers(0, 4)):
        z = rng.uniform(4.5, 18)
        items.append((z, "bicyclist", (rng.uniform(left, right), z)))
    if rng.random() < 0.35:
        z = rng.uniform(6, 18)
        for x in rng.uniform(left, right, rng.integers(1, 4)):
            items.append((z, "pedestrian", (x, z)))
    return [item[1:] for item in sorted(items, key=lambda item: -item[0])]


def _fence_style(c):
    """What all panels of one fence have in common."""
    rng, colour = c.rng, c.material()
    solid = rng.random() < 0.4
    pitch, width = (0.3, 0.26) if solid else (rng.uniform(0.35, 0.9), rng.uniform(0.07, 0.14))
    gap = colour * 0.6 if solid else c.material() * 0.4 + c.material(LEAVES) * 0.4
    top = rng.uniform(0.9, 1.9)
    return {"colour": colour, "gap": gap, "top": top, "pitch": pitch, "width": width}


def _lots(c, side, line, corner, items, lit):
    """Houses, gardens, fences and hedges along one side of the street, added to `items`."""
    rng, z = c.rng, 1.2
    built, style = rng.uniform(0.35, 0.95), _fence_style(c)
    while z < 85:
        end = z + rng.uniform(5, 13)
        if corner and corner[0] == side and z < corner[2] and end > corner[1]:
            if corner[1] - z > 3:
                end = corner[1]
            else:
                z = corner[2]
                continue
        house = rng.random() < built
        setback = 0.0 if rng.random() < 0.6 else rng.uniform(2, 5)
        if house:
            # Behind whatever stands before its front: keyed by its far end.
            items.append((end + 20, "building", (line + side * setback, z, end, lit)))
        else:
            for at in rng.uniform(z, end, rng.integers(2, 5)):
                items.append((at + 10, "tree", (line + side * rng.uniform(1.5, 7), at)))
        if (setback or not house) and rng.random() < 0.8:
            kind = "hedge" if rng.random() < 0.35 else "fence"
            for at in np.arange(z, end, 2.0):
                panel = (line, at, min(at + 2.0, end))
                args = panel if kind == "hedge" else (*panel, style)
                items.append((at + 2.0, kind, args))
        z = end + (rng.uniform(0, 3) if rng.random() < 0.4 else 0.0)


def scene_seed(seed, split, index):
    """Seed of picture `index` of a split; no two splits of one dataset share a seed."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def write_scenes(root, counts=None, size=DEFAULT_SIZE, seed=0):
    """Write a dataset of scenes as PNG in CamVid's layout; does nothing if it is there already.

    Args:
        root: folder to hold {train,val,test} and {train,val,test}annot; made if need be.
        counts: pictures per split, for example {"train": 160, "val": 40, "test": 60}.
        size: (height, width) in pixels.
        seed: whole number; another seed, other scenes.

    Returns:
        The folder. `dataset.json` is written last: where it stands, the folder is whole.

    Raises:
        InputError: unknown split, or a count outside 1..99999.
    """
    root, counts = Path(root), dict(counts or DEFAULT_COUNTS)
    for split, count in counts.items():
        if split not in SPLITS:
            raise InputError(f"counts: unknown split {split!r}; use {', '.join(SPLITS)}")
        if not 0 < count < SEEDS_PER_SPLIT:
            raise InputError(f"counts: {split} is {count}; give 1 to {SEEDS_PER_SPLIT - 1}")
    note = f"drawn by camvid_lang.scenes, version {VERSION}, seed {seed}"
    told = {"name": "scenes", "counts": counts, "size": list(size), "note": note}
    marker = root / "dataset.json"
    if marker.is_file() and _same(marker, told):
        return root
    marker.unlink(missing_ok=True)
    jobs = [(split, index) for split in counts for index in range(counts[split])]
    for split in counts:
        for folder in (root / split, root / f"{split}annot"):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("scene_*.png"):
                old.unlink()
    for split, index in tqdm(jobs, desc="drawing scenes", unit="scene"):
        image, label = draw_scene(scene_seed(seed, split, index), size)
        name = f"scene_{index:05d}.png"
        Image.fromarray(image).save(root / split / name, compress_level=1)
        Image.fromarray(label).save(root / f"{split}annot" / name)
    handle, temporary = tempfile.mkstemp(dir=root, suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(told, file, indent=1)
    os.replace(temporary, marker)
    return root


def _same(marker, told):
    try:
        return json.loads(marker.read_text(encoding="utf-8")) == told
    except ValueError:
        return False
