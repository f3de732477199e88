"""What is drawn before and after the objects of a scene: sky and ground; grain and lens."""

import numpy as np
from PIL import Image

from camvid_lang.data.classes import NUM_CLASSES, VOID
from camvid_lang.scenes.canvas import CLASS_ID, LEAVES, Colour, SceneCanvas

# Grain of each class's surface: strength of coarse blotches and of fine noise, in grey levels.
GRAIN = np.zeros((NUM_CLASSES + 1, 2), np.float32)
for _name, _grain in {"building": (6, 4), "road": (5, 6), "pavement": (4, 5), "tree": (14, 18),
                      "fence": (4, 6), "car": (3, 2), "pedestrian": (3, 4)}.items():  # fmt: skip
    GRAIN[CLASS_ID[_name]] = _grain


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise of about unit strength with blotches `cell` pixels wide: float32 (H, W)."""
    coarse = rng.normal(0, 1, (size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.BICUBIC))


def sky(c: SceneCanvas, zenith: Colour, clear: bool) -> np.ndarray:
    """Gradient and clouds over the whole image: float32 (H, W, 3)."""
    fog = np.array(c.fog)
    fade = np.clip(np.arange(c.size[0]) / c.horizon, 0, 1)[:, None, None]
    shade = zenith * (1 - fade) + (fog + 12) * fade
    cloud = _noise(c.rng, c.size, 40) + 0.5 * _noise(c.rng, c.size, 14)
    cover = np.clip(cloud - c.rng.uniform(-0.4, 1.2), 0, 1)[..., None] * (0.75 if clear else 0.3)
    tint = fog + (45 if clear else c.rng.uniform(-35, 30))
    return (shade * (1 - cover) + tint * cover).astype(np.float32)


def ground(c: SceneCanvas, street: dict, weather: str) -> tuple[np.ndarray, np.ndarray]:
    """Road, markings, kerbs, pavements and verges.

    Returns:
        Colours, float32 (H, W, 3), and ids, uint8 (H, W); void above the horizon.
    """
    rng, (height, width) = c.rng, c.size
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
    asphalt, stone = rng.uniform(70, 135), rng.uniform(85, 175)
    warm = rng.normal(0, 6, (2, 3))
    area = np.where(road[..., None], asphalt + warm[0], stone + warm[1])
    joints = (np.abs(x) % 1.1 < 0.07) | (z % 1.1 < 0.07)
    area[~road & joints & (z < 14)] *= rng.uniform(0.78, 0.95)
    kerb = ~road & ((np.abs(x - left) < 0.2) | (np.abs(x - right) < 0.2))
    area[kerb] *= rng.uniform(0.8, 1.25)
    area[grass] = LEAVES[rng.integers(len(LEAVES))] * 1.1

    paint = np.zeros_like(road)
    if rng.random() < 0.8:  # middle line
        middle, phase = rng.choice(((left + right) / 2, left + 3.0)), rng.uniform(0, 6)
        paint |= (np.abs(x - middle) < 0.09) & ((z + phase) % 6 < rng.choice((2.5, 4.0, 6.0)))
    if rng.random() < 0.5:  # lines along the kerbs
        paint |= (np.abs(x - left - 0.35) < 0.07) | (np.abs(x - right + 0.35) < 0.07)
    if rng.random() < 0.3:  # zebra crossing
        start = rng.uniform(5, 18)
        paint |= (z > start) & (z < start + 2.8) & (x % 1.1 < 0.55)
    hue = np.array((225, 190, 70)) if rng.random() < 0.2 else np.array((222, 222, 216))
    painted = paint & road & (z < 45)
    area[painted] = area[painted] * 0.25 + hue * 0.75

    if weather == "sunny" and rng.random() < 0.7:  # shadow of the houses
        reach = rng.uniform(-3, 3) + 1.2 * np.sign(np.sin(z * rng.uniform(0.2, 0.5)))
        area[x * c.sun > reach] *= rng.uniform(0.5, 0.7)
    if weather == "rain":  # wet patches
        area += _noise(rng, c.size, 24)[first:, :, None] * 14 + 12

    colour = np.zeros((height, width, 3), np.float32)
    clear = np.exp(-z / c.sight)[..., None]
    colour[first:] = area * c.light * clear + np.array(c.fog) * (1 - clear)
    label = np.full(c.size, VOID, np.uint8)
    label[first:] = np.select(
        [road, grass], [CLASS_ID["road"], CLASS_ID["tree"]], CLASS_ID["pavement"]
    )
    return colour, label


def skyline(c: SceneCanvas) -> None:
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
            c.disc((at + wide / 2, 0, z), wide * 0.8, top * 0.8, leaf, "tree")
        elif rng.random() < 0.85:
            c.slab((at, at + wide, -1, top), z, c.tone(c.material(), z), "building")
        x += wide


def bonnet(c: SceneCanvas) -> None:
    """The strip of the own car that many dashboard cameras see; void."""
    if c.rng.random() < 0.4:
        height, width = c.size
        top, colour = height * c.rng.uniform(0.93, 0.98), c.tone(c.material(), 1.0)
        box = (-0.2 * width, top, 1.2 * width, height * 1.4)
        c.image_pen.ellipse(box, fill=colour)
        c.label_pen.ellipse(box, fill=VOID)


def finish(c: SceneCanvas, label: np.ndarray, weather: str) -> np.ndarray:
    """Rain, blur of the lens, grain of the surfaces, noise of the sensor: uint8 (H, W, 3)."""
    rng, (height, width) = c.rng, c.size
    if weather == "rain":
        for x, y, drop in rng.uniform(0, 1, (60, 3)):
            u, v = x * width, y * height
            c.image_pen.line((u, v, u - 1 - drop, v + 4 + 6 * drop), c.tone((205, 208, 212), 15))
    image = np.asarray(c.image, np.float32)
    if rng.random() < 0.5:
        p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        around = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
        image = image * 0.5 + around * 0.125
    coarse, fine = np.moveaxis(GRAIN[label], -1, 0)
    speck = rng.standard_normal(c.size, np.float32)
    grain = coarse * _noise(rng, c.size, 6) + (fine + 1.5) * speck
    image = image + (grain * c.light[1])[..., None]
    image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 4)
    return np.clip(image, 0, 255).astype(np.uint8)
