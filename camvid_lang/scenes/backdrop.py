"""The stage of a scene: sky and ground before the things are drawn, grain and lens after it."""

import numpy as np
from PIL import Image

from camvid_lang.data.classes import NUM_CLASSES, VOID
from camvid_lang.scenes.canvas import CLASS_ID, LEAVES

__all__ = [
    "bonnet",
    "finish",
    "ground",
    "sky",
    "skyline",
]

# Grain of each class's surface: strength of coarse blotches and of fine noise, in grey levels.
GRAIN = np.zeros((NUM_CLASSES + 1, 2), np.float32)
for _name, _grain in {"building": (6, 4), "road": (5, 6), "pavement": (4, 5), "tree": (14, 18),
                      "fence": (4, 6), "car": (3, 2), "pedestrian": (3, 4)}.items():  # fmt: skip
    GRAIN[CLASS_ID[_name]] = _grain


def _noise(rng, size, cell):
    """Smooth noise of about unit strength with blotches `cell` pixels wide: float32 (H, W)."""
    coarse = rng.normal(0, 1, (size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.BICUBIC))


def sky(c, zenith, clear):
    """Gradient and clouds over the whole picture: float32 (H, W, 3)."""
    height, _ = c.size
    fade = np.clip(np.arange(height) / c.horizon, 0, 1)[:, None, None]
    shade = zenith * (1 - fade) + (np.array(c.fog) + 12) * fade
    cloud = _noise(c.rng, c.size, 40) + 0.5 * _noise(c.rng, c.size, 14)
    cover = np.clip(cloud - c.rng.uniform(-0.4, 1.2), 0, 1)[..., None] * (0.75 if clear else 0.3)
    tint = np.array(c.fog) + (45 if clear else c.rng.uniform(-35, 30))
    return (shade * (1 - cover) + tint * cover).astype(np.float32)


def ground(c, street, weather):
    """Road, markings, kerbs, pavements and verges: colour (H, W, 3), label (H, W; void above)."""
    rng, (height, width) = c.rng, c.size
    label = np.full(c.size, VOID, np.uint8)
    colour = np.zeros((height, width, 3), np.float32)
    first = int(np.ceil(c.horizon + 0.5))
    z = (c.focal * c.eye / (np.arange(first, height) - c.horizon))[:, None].astype(np.float32)
    x = (np.arange(width, dtype=np.float32) - c.centre) * (z / c.focal) - c.bend * z * z
    (left, right), lines = street["kerbs"], street["lines"]
    road = (x > left) & (x < right)
    if street["corner"]:
        side, start, end = street["corner"]
        road |= (x * side > 0) & (z > start) & (z < end)
    verge = ~road & ((x < lines[0]) | (x > lines[1]))
    grass = verge & ((x > 0) == (rng.random() < 0.5))
    tar, stone = rng.uniform(70, 135), rng.uniform(85, 175)
    warm = rng.normal(0, 6, (2, 3))
    area = np.where(road[..., None], tar + warm[0], stone + warm[1])
    joints = (np.abs(x) % 1.1 < 0.07) | (z % 1.1 < 0.07)
    area[~road & joints & (z < 14)] *= rng.uniform(0.78, 0.95)
    kerb = ~road & ((np.abs(x - left) < 0.2) | (np.abs(x - right) < 0.2))
    area[kerb] *= rng.uniform(0.8, 1.25)
    area[grass] = LEAVES[rng.integers(len(LEAVES))] * 1.1
    paint = np.zeros_like(road)
    if rng.random() < 0.8:
        middle, phase = rng.choice(((left + right) / 2, left + 3.0)), rng.uniform(0, 6)
        paint |= (np.abs(x - middle) < 0.09) & ((z + phase) % 6 < rng.choice((2.5, 4.0, 6.0)))
    if rng.random() < 0.5:
        paint |= (np.abs(x - left - 0.35) < 0.07) | (np.abs(x - right + 0.35) < 0.07)
    if rng.random() < 0.3:
        start = rng.uniform(5, 18)
        paint |= (z > start) & (z < start + 2.8) & (x % 1.1 < 0.55)
    hue = np.array((225, 190, 70)) if rng.random() < 0.2 else np.array((222, 222, 216))
    fresh = paint & road & (z < 45)
    area[fresh] = area[fresh] * 0.25 + hue * 0.75
    if weather == "sunny" and rng.random() < 0.7:
        reach = rng.uniform(-3, 3) + 1.2 * np.sign(np.sin(z * rng.uniform(0.2, 0.5)))
        area[x * c.sun > reach] *= rng.uniform(0.5, 0.7)
    if weather == "rain":
        area += _noise(rng, c.size, 24)[first:, :, None] * 14 + 12
    far = np.exp(-z / c.sight)[..., None]
    colour[first:] = area * c.light * far + np.array(c.fog) * (1 - far)
    kinds = (CLASS_ID["road"], CLASS_ID["tree"], CLASS_ID["pavement"])
    label[first:] = np.select([road, grass], kinds[:2], kinds[2])
    return colour, label


def skyline(c):
    """What closes the view at the end of the road: woods, houses, or nothing."""
    rng, z = c.rng, 95.0
    if rng.random() < 0.15:
        return
    reach, x = z * c.size[1] / c.focal, -z * c.size[1] / c.focal
    name = rng.choice(("tree", "building"))
    while x < reach:
        wide, top = rng.uniform(5, 16), rng.uniform(4, 14)
        at = x - c.bend * z * z
        if name == "tree":
            leaf = c.tone(c.material(LEAVES, 5), z)
            c.disc(at + wide / 2, 0, z, wide * 0.8, top * 0.8, leaf, "tree")
        elif rng.random() < 0.85:
            c.slab(at, at + wide, -1, top, z, c.tone(c.material(), z), "building")
        x += wide


def bonnet(c):
    """The strip of the own car that many dashboard cameras see; unlabelled."""
    if c.rng.random() < 0.4:
        height, width = c.size
        top, colour = height * c.rng.uniform(0.93, 0.98), c.tone(c.material(), 1.0)
        box = (-0.2 * width, top, 1.2 * width, height * 1.4)
        c.pens[0].ellipse(box, fill=colour)
        c.pens[1].ellipse(box, fill=VOID)


def finish(c, label, weather):
    """Grain of the surfaces, rain, lens and sensor: uint8 (H, W, 3)."""
    rng = c.rng
    if weather == "rain":
        for x, y, drop in rng.uniform(0, 1, (60, 3)):
            u, v = x * c.size[1], y * c.size[0]
            c.pens[0].line((u, v, u - 1 - drop, v + 4 + 6 * drop), fill=c.tone((205, 208, 212), 15))
    image = np.asarray(c.picture, np.float32)
    if rng.random() < 0.5:
        edge = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        image = image * 0.5 + (edge[:-2, 1:-1] + edge[2:, 1:-1] + edge[1:-1, :-2]
                               + edge[1:-1, 2:]) * 0.125  # fmt: skip
    coarse, fine = np.moveaxis(GRAIN[label], -1, 0)
    speck = rng.standard_normal(c.size, np.float32)
    grain = coarse * _noise(rng, c.size, 6) + (fine + 1.5) * speck
    image = image + (grain * c.light[1])[..., None]
    image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 4)
    return np.clip(image, 0, 255).astype(np.uint8)
