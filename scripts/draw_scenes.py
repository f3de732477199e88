"""Draws the street scenes that the package carries and writes them as one archive.

    python scripts/draw_scenes.py OUT.zip [--seed 0] [--train 560 --val 40 --test 60] [--quality 80]

The defaults wrote `camvid_lang/assets/scenes.zip` in half a minute on one core, with Pillow 13.0.0.
The same version gives the same bytes again; other versions may not (Pillow 10.1 does not).

Weather, light, the course of the road and everything along it vary. Coordinates are in metres: the
camera looks along +z from (0, camera height, 0); x points right, y up. A bend of the road shifts x
by an amount that grows with the square of the distance. Each shape is drawn without anti-aliasing
on image and label, so labels are exact. All man-made objects share one list of colours, so colour
alone does not give away the class.
"""

import argparse
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.results import atomic_write

SIZE = (192, 256)
COUNTS = {"train": 560, "val": 40, "test": 60}
SPLITS = tuple(COUNTS)
SEEDS_PER_SPLIT = 100_000
TIMESTAMP = (2026, 1, 1, 0, 0, 0)  # of all files, so that the archive is reproducible
CLASS_ID = {name: index for index, name in enumerate(CLASSES)} | {"void": VOID}

MATERIALS = np.array([
    (150, 148, 145), (112, 112, 116), (78, 80, 86), (205, 200, 190), (232, 230, 226),
    (156, 92, 72), (176, 120, 88), (122, 66, 54), (198, 172, 128), (106, 88, 70),
    (70, 92, 130), (44, 54, 88), (128, 156, 178), (92, 112, 80), (62, 82, 60),
    (168, 38, 36), (34, 34, 38), (200, 168, 80), (136, 132, 112), (182, 182, 186),
])  # fmt: skip
LEAVES = np.array([
    (64, 96, 40), (88, 116, 52), (46, 76, 44), (104, 112, 60), (132, 98, 48), (90, 78, 62),
])  # fmt: skip
SKIN = np.array([(224, 186, 160), (190, 142, 112), (122, 84, 62), (86, 60, 48)])
SIGNAL = np.array([(200, 36, 40), (36, 76, 168), (238, 236, 230), (32, 116, 72), (232, 188, 44)])
DARK, GLASS, WHITE = (30, 30, 34), (64, 76, 92), (235, 235, 228)
WINDOW_LIGHT, TRAFFIC_LIGHTS = (238, 206, 130), ((60, 190, 110), (190, 140, 40), (210, 50, 40))

Colour = tuple[float, float, float] | np.ndarray
RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
Item = tuple[float, Callable, tuple]  # distance, function that draws it, arguments


class SceneCanvas:
    """An image and its label, with the camera and the light in which they are drawn.

    Args:
        rng: draws the camera here, and every object later.
        size: (height, width) in pixels.
        light: factor of each colour channel.
        fog: colour that distant objects fade into.
        sight: distance in metres over which they do so.
        sun: the sunlit side, -1 left or +1 right.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], light: Colour, fog: Colour,
                 sight: float, sun: int):  # fmt: skip
        height, width = size
        self.rng, self.size, self.sun, self.sight = rng, size, sun, sight
        self.light, self.fog = tuple(map(float, light)), tuple(map(float, fog))
        self.focal = width * rng.uniform(0.8, 1.0)
        self.eye = rng.uniform(1.3, 1.9)
        self.horizon = height * rng.uniform(0.42, 0.52)
        self.centre = width * rng.uniform(0.40, 0.60)
        self.bend = rng.normal(0, 0.0008)
        self.image = Image.new("RGB", (width, height))
        self.label = Image.new("L", (width, height), VOID)
        self.image_pen, self.label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """World coordinates in metres to image coordinates (column, row)."""
        scale = self.focal / z
        return self.centre + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale

    def tone(self, colour: Colour, z: float, gain: float = 1.0) -> RGB:
        """The colour as lit by the scene's light and seen through `z` metres of fog."""
        clear = math.exp(-z / self.sight)
        gain, haze = gain * clear, 1 - clear
        channels = zip(colour, self.light, self.fog, strict=True)
        return tuple(min(255, max(0, int(c * lit * gain + fog * haze))) for c, lit, fog in channels)

    def material(self, palette: np.ndarray = MATERIALS, jitter: float = 9.0) -> np.ndarray:
        """A random colour of a palette, slightly varied."""
        return palette[self.rng.integers(len(palette))] + jitter * self.rng.standard_normal(3)

    def poly(self, corners: Iterable[tuple], colour: RGB, name: str | None) -> None:
        """A filled polygon; `name` is its class, None leaves the label unchanged."""
        flat = [self.project(*corner) for corner in corners]
        self.image_pen.polygon(flat, fill=colour)
        if name is not None:
            self.label_pen.polygon(flat, fill=CLASS_ID[name])

    def facing(self, corners: Iterable[tuple], z: float, colour: RGB, name: str) -> None:
        """A polygon of (x, y) corners that faces the camera."""
        self.poly([(x, y, z) for x, y in corners], colour, name)

    def slab(self, box: Box, z: float, colour: RGB, name: str) -> None:
        """An upright rectangle (x0, x1, y0, y1) that faces the camera."""
        x0, x1, y0, y1 = box
        self.facing([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], z, colour, name)

    def wall(self, x: float, box: Box, colour: RGB, name: str) -> None:
        """An upright rectangle (z0, z1, y0, y1) along the road."""
        z0, z1, y0, y1 = box
        self.poly([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], colour, name)

    def disc(self, at: tuple, rx: float, ry: float, colour: RGB, name: str) -> None:
        """A filled ellipse around (x, y, z) that faces the camera, radii in metres."""
        (u, v), scale = self.project(*at), self.focal / at[2]
        box = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        self.image_pen.ellipse(box, fill=colour)
        self.label_pen.ellipse(box, fill=CLASS_ID[name])

    def paste(self, colour: np.ndarray, label: np.ndarray) -> None:
        """Draw colours (H, W, 3) and ids (H, W) over everything, except where the id is void."""
        drawn = Image.fromarray((label != VOID) * np.uint8(255))
        self.image.paste(Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8)), mask=drawn)
        self.label.paste(Image.fromarray(label), mask=drawn)


# Grain of each class's surface: strength of coarse blotches and of fine noise, in grey levels.
_GRAIN = {"building": (6, 4), "road": (5, 6), "pavement": (4, 5), "tree": (14, 18),
          "fence": (4, 6), "car": (3, 2), "pedestrian": (3, 4)}  # fmt: skip
GRAIN = np.array([_GRAIN.get(name, (0, 0)) for name in CLASS_ID], np.float32)


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise of about unit strength with blotches `cell` pixels wide: float32 (H, W)."""
    coarse = rng.normal(0, 1, (size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.BICUBIC))


def sky(c: SceneCanvas, zenith: Colour, clear: bool) -> None:
    """Gradient and clouds over the whole image."""
    fog = np.array(c.fog)
    fade = np.clip(np.arange(c.size[0]) / c.horizon, 0, 1)[:, None, None]
    shade = zenith * (1 - fade) + (fog + 12) * fade
    cloud = _noise(c.rng, c.size, 40) + 0.5 * _noise(c.rng, c.size, 14)
    cover = np.clip(cloud - c.rng.uniform(-0.4, 1.2), 0, 1)[..., None] * (0.75 if clear else 0.3)
    tint = fog + (45 if clear else c.rng.uniform(-35, 30))
    colour = (shade * (1 - cover) + tint * cover).astype(np.float32)
    c.paste(colour, np.full(c.size, CLASS_ID["sky"], np.uint8))


def ground(c: SceneCanvas, street: dict, weather: str) -> None:
    """Road, markings, kerbs, pavements and verges: all below the horizon."""
    rng, (height, width) = c.rng, c.size
    first = int(np.ceil(c.horizon + 0.5))
    z = (c.focal * c.eye / (np.arange(first, height) - c.horizon))[:, None].astype(np.float32)
    x = (np.arange(width, dtype=np.float32) - c.centre) * (z / c.focal) - c.bend * z * z
    (left, right), lines = street["kerbs"], street["lines"]
    road = (x > left) & (x < right)
    if street["corner"]:
        side, start, end = street["corner"]
        road |= (x * side > 0) & (z > start) & (z < end)
    grass = ~road & ((x < lines[0]) | (x > lines[1])) & ((x > 0) == (rng.random() < 0.5))
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
    beside = np.where(grass, CLASS_ID["tree"], CLASS_ID["pavement"])
    label[first:] = np.where(road, CLASS_ID["road"], beside)
    c.paste(colour, label)


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
    grain = (fine + 1.5) * rng.standard_normal(c.size, np.float32)
    grain += coarse * _noise(rng, c.size, 6)
    image = image + (grain * c.light[1])[..., None]
    image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 4)
    return np.clip(image, 0, 255).astype(np.uint8)


def building(c: SceneCanvas, x: float, z0: float, z1: float, lit: bool = False) -> None:
    """A house whose street front stands at `x` from `z0` to `z1`; windows glow if `lit`."""
    rng, side, z = c.rng, np.sign(x), (z0 + z1) / 2
    storey = rng.uniform(2.7, 3.4)
    floors = int(rng.integers(1, 4 if rng.random() < 0.6 else 8))
    top, colour = storey * floors + 0.6, c.material()
    back = x + side * rng.uniform(6, 12)
    front_gain, gable_gain = (1.0, 0.72) if side == -c.sun else (0.7, 0.88)
    gable = c.tone(colour, z0, gable_gain)
    if rng.random() < 0.5:
        ridge, roof, mid = top + rng.uniform(1.5, 3), c.material(jitter=14), x + side * 3.5
        slope = [(x, top, z0), (x, top, z1), (mid, ridge, z1), (mid, ridge, z0)]
        c.poly(slope, c.tone(roof, z, 0.85), "building")
        c.facing([(x, top), (mid, ridge), (back, top)], z0, gable, "building")
    c.slab((x, back, 0, top), z0, gable, "building")
    c.wall(x, (z0, z1, 0, top), c.tone(colour, z, front_gain), "building")
    glass, trim = c.material(jitter=5) * 0.45 + np.array(GLASS) * 0.4, c.material() * 0.5 + 110
    wide, pitch = rng.uniform(0.8, 1.6), rng.uniform(2.3, 3.4)
    shop = rng.random() < 0.35
    if c.focal / z * 1.4 < 3:  # too far away for windows to be seen
        return
    for floor in range(floors):
        shop_window = shop and floor == 0
        low, high = floor * storey + (0.2 if shop_window else 0.95), floor * storey + storey * 0.82
        for start in np.arange(z0 + 0.5, z1 - wide, pitch):
            end = min(start + (pitch * 0.8 if shop_window else wide), z1 - 0.3)
            if lit and rng.random() < 0.4:
                pane = c.tone(WINDOW_LIGHT, z, 1 / c.light[1])
            else:
                pane = c.tone(glass * rng.uniform(0.8, 1.25), z, front_gain)
            if z < 22:
                frame = (start - 0.12, end + 0.12, low - 0.12, high + 0.12)
                c.wall(x, frame, c.tone(trim, z), "building")
            c.wall(x, (start, end, low, high), pane, "building")
        pane, low = c.tone(glass, z0, gable_gain), floor * storey + 0.95
        for start in np.arange(abs(x) + 0.8, abs(back) - 1.6, pitch):
            c.slab((side * start, side * (start + wide), low, high), z0, pane, "building")
    if not shop and z1 - z0 > 3:
        door = rng.uniform(z0 + 0.5, z1 - 1.5)
        c.wall(x, (door, door + 1.0, 0, 2.1), c.tone(c.material(), z, front_gain), "building")
    elif shop and rng.random() < 0.5:
        board = c.tone(c.material(SIGNAL), z)
        c.wall(x, (z0 + 0.6, z1 - 0.6, storey * 0.84, storey * 1.06), board, "sign")


def tree(c: SceneCanvas, x: float, z: float) -> None:
    """A trunk under a crown of overlapping clumps; sometimes a bush without a trunk."""
    rng, leaf, trunk = c.rng, c.material(LEAVES, 10), c.material() * 0.3 + 50
    bush = rng.random() < 0.3
    height, spread = (0.8, 0.9) if bush else (rng.uniform(2.6, 5.5), rng.uniform(1.0, 2.2))
    if not bush:
        half = rng.uniform(0.09, 0.2)
        corners = [(x - half * 1.4, 0), (x + half * 1.4, 0), (x + half, height), (x - half, height)]
        c.facing(corners, z, c.tone(trunk, z), "tree")
    clumps = []
    for turn, away, shade, size in rng.random((16 if z < 30 else 8, 4)).tolist():
        away, turn, size = spread * math.sqrt(away), math.tau * turn, spread * (0.25 + 0.25 * size)
        clumps.append((0.85 * away * math.sin(turn), away * math.cos(turn), shade, size))
    for dy, dx, shade, size in sorted(clumps):
        gain = 0.72 + 0.2 * dy / spread + 0.12 * c.sun * dx / spread + 0.25 * shade
        c.disc((x + dx, height + dy, z), size, size * 0.85, c.tone(leaf, z, gain), "tree")


def hedge(c: SceneCanvas, x: float, z0: float, z1: float) -> None:
    """A clipped hedge along the pavement."""
    top, leaf = c.rng.uniform(0.8, 1.7), c.material(LEAVES, 10)
    c.slab((x, x + np.sign(x) * 0.8, 0, top), z0, c.tone(leaf, z0, 0.75), "tree")
    c.wall(x, (z0, z1, 0, top), c.tone(leaf, z0, 0.95), "tree")


def fence_style(c: SceneCanvas) -> tuple:
    """What all panels of a fence share: two colours, and height, pitch and width of its boards."""
    rng, colour = c.rng, c.material()
    solid = rng.random() < 0.4
    pitch, width = (0.3, 0.26) if solid else (rng.uniform(0.35, 0.9), rng.uniform(0.07, 0.14))
    gap = colour * 0.6 if solid else c.material() * 0.4 + c.material(LEAVES) * 0.4
    return colour, gap, rng.uniform(0.9, 1.9), pitch, width


def fence(c: SceneCanvas, x: float, z0: float, z1: float, style: tuple) -> None:
    """Boards, bars or rails in a `fence_style`; the gaps between them are labelled as fence."""
    colour, gap, top, pitch, width = style
    c.wall(x, (z0, z1, 0, top), c.tone(gap, z0), "fence")
    for start in np.arange(z0, z1 - 1e-6, pitch):
        if c.focal / start * abs(x) / start * pitch > 1.2:  # boards are distinguishable
            c.wall(x, (start, start + width, 0, top), c.tone(colour, start), "fence")
    for y in (0.25 * top, top - 0.09):
        c.wall(x, (z0, z1, y, y + 0.09), c.tone(colour, z0, 0.9), "fence")


def pole(c: SceneCanvas, x: float, z: float) -> None:
    """A lamp post with its arm over the road, a plain post, or a bollard."""
    rng, colour = c.rng, c.tone(c.material() * 0.7 + 20, z)
    kind = rng.random()
    half, top = rng.uniform(0.045, 0.09), 1.0 if kind < 0.2 else rng.uniform(4.5, 8)
    c.slab((x - half, x + half, 0, top), z, colour, "pole")
    if kind > 0.5:
        end = x - np.sign(x) * rng.uniform(0.8, 1.8)
        arm = [(x, top - 0.1), (end, top + 0.25), (end, top + 0.37), (x, top + 0.05)]
        c.facing(arm, z, colour, "pole")
        c.disc((end, top + 0.28, z), 0.3, 0.13, colour, "pole")


def sign(c: SceneCanvas, x: float, z: float) -> None:
    """A round or triangular traffic sign, traffic lights, or a board, on its post."""
    rng, post, half = c.rng, c.tone(c.material() * 0.6 + 40, z), c.rng.uniform(0.35, 0.65)
    y = rng.uniform(2.0, 2.6) + half
    outer, inner = c.tone(c.material(SIGNAL, 6), z), c.tone(c.material(SIGNAL, 6), z)
    c.slab((x - 0.04, x + 0.04, 0, y), z, post, "pole")
    kind = rng.integers(5)
    if kind == 0:
        c.disc((x, y, z), half, half, outer, "sign")
        c.disc((x, y, z), half * 0.65, half * 0.65, inner, "sign")
    elif kind == 1:
        for k, colour in ((1.0, outer), (0.55, inner)):
            base = y - half * k * 0.8
            corners = [(x - half * k, base), (x + half * k, base), (x, y + half * k)]
            c.facing(corners, z, colour, "sign")
    elif kind == 2:
        c.slab((x - half * 0.5, x + half * 0.5, y - half, y + half), z, c.tone(DARK, z), "sign")
        for k, colour in enumerate(TRAFFIC_LIGHTS):
            glow = c.tone(colour, z, 1.3 if rng.random() < 0.4 else 0.5)
            c.disc((x, y + (k - 1) * half * 0.62, z), half * 0.25, half * 0.25, glow, "sign")
    else:
        wide = half * rng.uniform(0.8, 1.9)
        c.slab((x - wide, x + wide, y - half, y + half), z, outer, "sign")
        c.slab((x - wide * 0.7, x + wide * 0.7, y - half * 0.3, y + half * 0.3), z, inner, "sign")


def litter(c: SceneCanvas, x: float, z: float) -> None:
    """A bin or a box: something that belongs to none of the classes."""
    half, top = c.rng.uniform(0.2, 0.4), c.rng.uniform(0.6, 1.2)
    c.slab((x - half, x + half, 0, top), z, c.tone(c.material(), z), "void")
    c.slab((x - half, x + half, top * 0.8, top), z, c.tone(c.material(), z, 0.8), "void")


WHEEL = [(math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12)]


def car(c: SceneCanvas, x: float, z: float, across: bool = False) -> None:
    """A car, van or lorry seen from behind or from the front, or crossing the road."""
    rng, colour = c.rng, c.material()
    big = rng.random() < 0.15
    width, long = (2.3, rng.uniform(5.5, 8)) if big else (1.75, rng.uniform(3.6, 4.6))
    belt, top, floor = (1.3, rng.uniform(2.4, 3.1), 0.35) if big else (0.85, 1.45, 0.22)
    lamp = (200, 40, 40) if rng.random() < 0.5 else (240, 235, 200)
    sx, sz = (long, width) if across else (width, long)
    edge = x - np.sign(x) * sx / 2  # the flank turned to the camera

    # Two faces are visible. Their corners are (t, y): t runs from 0 to 1 along the face.
    def flank(corners, colour):
        c.poly([(edge, y, z + t * sz) for t, y in corners], colour, "car")

    def front(corners, colour):
        c.poly([(x + (t - 0.5) * sx, y, z) for t, y in corners], colour, "car")

    def long_side(draw, gain):
        body, window = c.tone(colour, z, gain), c.tone(GLASS, z, 0.7 * gain)
        for hub in (0.18, 0.8):
            draw([(hub + 0.33 / long * u, 0.33 + 0.33 * v) for u, v in WHEEL], c.tone(DARK, z))
        draw([(0, floor), (1, floor), (1, belt), (0, belt)], body)
        lean, a, b = (0.0, 0.02, 0.98) if big else (0.16, 0.05, 0.72)
        draw([(a, belt), (b + lean, belt), (b, top), (a + lean, top)], body)
        if not big or rng.random() < 0.5:
            low, high = belt + 0.05, top - (0.5 if big else 0.12)
            for p, q in ((0.0, 0.46), (0.54, 1.0)):
                p, q = a + 0.5 * lean + p * (b - a), a + 0.5 * lean + q * (b - a)
                draw([(p, low), (q, low), (q - lean * 0.2, high), (p + lean * 0.2, high)], window)

    def short_side(draw, gain):
        body, glass, dark = c.tone(colour, z, gain), c.tone(GLASS, z, 0.8), c.tone(DARK, z)
        for t in (0.04, 0.80):
            draw([(t, 0), (t + 0.16, 0), (t + 0.16, 0.4), (t, 0.4)], dark)
        draw([(0, floor), (1, floor), (1, belt), (0, belt)], body)
        draw([(0.02, belt), (0.98, belt), (0.86, top), (0.14, top)], body)
        draw([(0.1, belt + 0.06), (0.9, belt + 0.06), (0.82, top - 0.1), (0.18, top - 0.1)], glass)
        low, high = belt - 0.28, belt - 0.1
        for t in (0.04, 0.78):
            draw([(t, low), (t + 0.18, low), (t + 0.18, high), (t, high)], c.tone(lamp, z * 0.5))
        draw([(0.36, 0.42), (0.64, 0.42), (0.64, 0.55), (0.36, 0.55)], c.tone(WHITE, z))

    shadow = [(x - sx * 0.55, 0, z - 0.1), (x + sx * 0.55, 0, z - 0.1),
              (x + sx * 0.55, 0, z + sz), (x - sx * 0.55, 0, z + sz)]  # fmt: skip
    c.poly(shadow, c.tone((42, 42, 46), z), None)
    sunny = 1.0 if np.sign(x) == c.sun else 0.78
    (short_side if across else long_side)(flank, sunny)
    (long_side if across else short_side)(front, 0.9)


def pedestrian(c: SceneCanvas, x: float, z: float) -> None:
    """A child or an adult on foot."""
    child = c.rng.random() < 0.12
    person(c, x, z, c.rng.uniform(1.1, 1.4) if child else c.rng.uniform(1.6, 1.9), "pedestrian")


def person(c: SceneCanvas, x: float, z: float, tall: float, name: str, seat: float = 0.0) -> None:
    """Head, coat, arms and legs; a rider sits `seat` metres higher."""
    rng, coat, trousers = c.rng, c.tone(c.material(), z), c.tone(c.material() * 0.75, z)
    skin, hair = c.tone(c.material(SKIN, 6), z), c.tone(c.material(SKIN, 6) * 0.4, z)
    hip, neck, wide = tall * 0.5 + seat, tall * 0.84 + seat, tall * rng.uniform(0.12, 0.15)
    stride, foot = 0.1 if seat else rng.uniform(0.02, 0.3), seat * 0.8
    for way in (-1, 1):
        leg = [(x + way * wide * 0.1, hip), (x + way * wide * 0.9, hip),
               (x + way * (stride + wide * 0.6), foot), (x + way * stride, foot)]  # fmt: skip
        c.facing(leg, z, trousers, name)
        swing = rng.uniform(-0.05, 0.2)
        arm = [(x + way * wide, neck - 0.05), (x + way * wide * 1.45, neck - 0.12),
               (x + way * (wide * 1.3 + swing), hip), (x + way * (wide + swing), hip)]  # fmt: skip
        c.facing(arm, z, coat, name)
    trunk = [(x - wide * 0.85, hip - 0.08), (x + wide * 0.85, hip - 0.08),
             (x + wide * 1.1, neck - 0.06), (x, neck + 0.03),
             (x - wide * 1.1, neck - 0.06)]  # fmt: skip
    c.facing(trunk, z, coat, name)
    c.disc((x, tall * 0.925 + seat, z), tall * 0.06, tall * 0.075, hair, name)
    c.disc((x + 0.01, tall * 0.91 + seat, z), tall * 0.05, tall * 0.06, skin, name)


# Frame tubes, legs, trunk and arm of a bicyclist seen from the side, in metres from the middle.
TUBES = (((-0.52, 0.34), (-0.12, 0.85)), ((-0.12, 0.8), (0.42, 0.85)),
         ((0.0, 0.34), (0.42, 0.85)), ((0.52, 0.34), (0.4, 1.05)))  # fmt: skip
LEGS = ((-0.1, 0.9), (0.12, 0.35), (0.24, 0.4), (0.1, 0.95))
TRUNK = ((-0.24, 0.88), (0.06, 0.88), (0.3, 1.4), (0.06, 1.46))
ARM = ((0.18, 1.38), (0.28, 1.3), (0.47, 1.02), (0.38, 1.02))


def bicyclist(c: SceneCanvas, x: float, z: float) -> None:
    """A rider on a bicycle, seen from the side or from the front."""
    rng, frame, name = c.rng, c.tone(c.material(), z), "bicyclist"
    tyre, spokes = c.tone(DARK, z), c.tone((120, 118, 115), z)
    if rng.random() >= 0.55:
        person(c, x, z, 1.45, name, seat=0.35)
        c.disc((x, 0.34, z), 0.07, 0.36, tyre, name)
        c.slab((x - 0.28, x + 0.28, 0.98, 1.05), z, frame, name)
        return
    way = rng.choice((-1, 1))
    for hub in (-0.52, 0.52):
        c.disc((x + hub, 0.34, z), 0.34, 0.34, tyre, name)
        c.disc((x + hub, 0.34, z), 0.26, 0.26, spokes, name)
    for (u, v), (p, q) in TUBES:
        tube = [(u, v), (p, q), (p + 0.07, q), (u + 0.07, v)]
        c.facing([(x + way * dx, y) for dx, y in tube], z, frame, name)
    coat = c.tone(c.material(), z)
    for part, colour in ((LEGS, c.tone(c.material() * 0.7, z)), (TRUNK, coat), (ARM, coat)):
        c.facing([(x + way * dx, y) for dx, y in part], z, colour, name)
    c.disc((x + way * 0.27, 1.58, z), 0.11, 0.13, c.tone(c.material(SKIN, 6), z), name)
    c.disc((x + way * 0.25, 1.64, z), 0.12, 0.08, c.tone(c.material(), z), name)


# Light of each channel, colour of the fog, sight in metres, colour of the zenith.
WEATHERS = {
    "sunny": ((1.12, 1.08, 1.0), (186, 200, 214), 260, (96, 142, 206)),
    "overcast": ((0.86, 0.87, 0.9), (182, 184, 188), 160, (164, 168, 176)),
    "dusk": ((0.52, 0.48, 0.54), (148, 112, 104), 140, (62, 66, 104)),
    "rain": ((0.68, 0.71, 0.75), (158, 162, 168), 70, (138, 144, 152)),
}


def draw_scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """One street as seen from a car; the same seed and size (H, W) give the same bytes.

    Returns:
        image: uint8 (H, W, 3), RGB.
        label: uint8 (H, W), class ids 0..10 and 11 for void.
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
    sky(canvas, zenith, clear=weather == "sunny")
    skyline(canvas)
    ground(canvas, street, weather)
    for _, draw, arguments in _objects(canvas, street, lit=weather == "dusk"):
        draw(canvas, *arguments)
    bonnet(canvas)
    label = np.array(canvas.label)
    return finish(canvas, label, weather), label


def _street(rng: np.random.Generator) -> dict:
    """Positions in metres: x of both kerbs and building lines; (side, start, end) of a corner."""
    left, right = -rng.uniform(2.4, 5.5), rng.uniform(2.2, 3.8)
    walk = rng.uniform(2.0, 4.5, 2)
    side, start = rng.choice((-1, 1)), rng.uniform(8, 35)
    corner = (side, start, start + rng.uniform(5, 8)) if rng.random() < 0.4 else None
    return {"kerbs": (left, right), "lines": (left - walk[0], right + walk[1]), "corner": corner}


def _objects(c: SceneCanvas, street: dict, lit: bool) -> list[Item]:
    """All objects of a scene, farthest first."""
    rng, items = c.rng, []
    uniform, (left, right) = rng.uniform, street["kerbs"]
    for side, kerb, line in zip((-1, 1), street["kerbs"], street["lines"], strict=True):
        items += _lots(c, side, line, street["corner"], lit)
        items += _pavement(c, side, kerb, line)
    for z in uniform(7, 40, rng.integers(0, 5)):
        x, across = uniform(left + 1.6, right - 1.6), rng.random() < 0.2
        items.append((z, car, (x, z, across)))
    for _ in range(rng.integers(0, 4)):
        z = uniform(4.5, 18)
        items.append((z, bicyclist, (uniform(left, right), z)))
    if rng.random() < 0.35:  # pedestrians who cross the road
        z = uniform(6, 18)
        items += [(z, pedestrian, (x, z)) for x in uniform(left, right, rng.integers(1, 4))]
    return sorted(items, key=lambda item: -item[0])


def _pavement(c: SceneCanvas, side: int, kerb: float, line: float) -> list[Item]:
    """Poles, signs, trees, pedestrians, parked cars, fences and litter between kerb and houses."""
    rng, uniform, walk = c.rng, c.rng.uniform, abs(line - kerb)
    poles = np.arange(uniform(4, 12), 55, uniform(12, 24))
    items = [(z, pole, (kerb + side * 0.35, z)) for z in poles]
    signs = uniform(5, 30, rng.integers(0, 4))
    items += [(z, sign, (kerb + side * uniform(0.3, 0.8), z)) for z in signs]
    if rng.random() < 0.35:
        trees = np.arange(uniform(5, 12), 50, uniform(6, 12))
        items += [(z, tree, (kerb + side * 0.7, z)) for z in trees]
    for _ in range(rng.integers(0, 5)):
        z = uniform(4.5, 24)
        items.append((z, pedestrian, (kerb + side * uniform(0.4, walk), z)))
    if rng.random() < 0.45:  # parked cars
        parked = np.arange(uniform(5, 22), 55, uniform(5.5, 9))
        items += [(z, car, (kerb - side * 1.0, z)) for z in parked if rng.random() < 0.75]
    elif rng.random() < 0.3:
        style, start = fence_style(c), uniform(4, 14)
        for z in np.arange(start, start + uniform(4, 16), 2.0):
            items.append((z, fence, (kerb + side * 0.2, z, z + 2.0, style)))
    for z in uniform(5, 20, rng.integers(0, 2)):
        items.append((z, litter, (kerb + side * uniform(0.5, walk), z)))
    return items


def _lots(c: SceneCanvas, side: int, line: float, corner: tuple | None, lit: bool) -> list[Item]:
    """Houses, gardens, fences and hedges along one side of the street."""
    rng, z, items = c.rng, 1.2, []
    built, style = rng.uniform(0.35, 0.95), fence_style(c)
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
            items.append((end + 20, building, (line + side * setback, z, end, lit)))
        else:
            for at in rng.uniform(z, end, rng.integers(2, 5)):
                items.append((at + 10, tree, (line + side * rng.uniform(1.5, 7), at)))
        if (setback or not house) and rng.random() < 0.8:
            hedged = rng.random() < 0.35
            for at in np.arange(z, end, 2.0):
                draw, more = (hedge, ()) if hedged else (fence, (style,))
                items.append((at + 2.0, draw, (line, at, min(at + 2.0, end), *more)))
        z = end + (rng.uniform(0, 3) if rng.random() < 0.4 else 0.0)
    return items


def scene_seed(seed: int, split: str, index: int) -> int:
    """Seed of image `index` of a split; no two splits share a seed."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def _add(archive: zipfile.ZipFile, name: str, pixels: np.ndarray, **options) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    archive.writestr(zipfile.ZipInfo(name, TIMESTAMP), file.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw street scenes and write them as an archive.")
    parser.add_argument("out", type=Path, metavar="OUT.zip", help="archive to write")
    parser.add_argument("--seed", type=int, default=0)
    for split, count in COUNTS.items():
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help="scenes")
    parser.add_argument("--quality", type=int, default=80, help="of the WebP images, 0 to 100")
    options = parser.parse_args()
    if options.out.is_dir() or min(getattr(options, split) for split in SPLITS) < 1:
        parser.error("OUT.zip is a file, and at least one scene of each split is needed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jobs = [(split, index) for split in SPLITS for index in range(getattr(options, split))]
    with atomic_write(options.out) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("dataset.json", TIMESTAMP), json.dumps({"name": "scenes"}))
        for split, index in tqdm(jobs, desc="drawing scenes", unit="scene"):
            image, label = draw_scene(scene_seed(options.seed, split, index))
            name, lossy = f"scene_{index:05d}", {"quality": options.quality, "method": 6}
            _add(archive, f"{split}/{name}.webp", image, format="WEBP", **lossy)
            _add(archive, f"{split}annot/{name}.png", label, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
