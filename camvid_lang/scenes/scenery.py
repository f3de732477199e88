"""What stands along a street: houses, trees, hedges, fences, poles, signs and bins.

Each function draws one object on a `SceneCanvas` at a position in metres.
"""

import math
from typing import NamedTuple

import numpy as np

from camvid_lang.scenes.canvas import DARK, GLASS, LEAVES, SIGNAL, SceneCanvas

WINDOW_LIGHT = (238, 206, 130)
TRAFFIC_LIGHTS = ((60, 190, 110), (190, 140, 40), (210, 50, 40))


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
    c.slab(x, back, 0, top, z0, gable, "building")
    c.wall(x, z0, z1, 0, top, c.tone(colour, z, front_gain), "building")
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
                c.wall(x, *frame, c.tone(trim, z), "building")
            c.wall(x, start, end, low, high, pane, "building")
        pane, low = c.tone(glass, z0, gable_gain), floor * storey + 0.95
        for start in np.arange(abs(x) + 0.8, abs(back) - 1.6, pitch):
            c.slab(side * start, side * (start + wide), low, high, z0, pane, "building")
    if not shop and z1 - z0 > 3:
        door = rng.uniform(z0 + 0.5, z1 - 1.5)
        c.wall(x, door, door + 1.0, 0, 2.1, c.tone(c.material(), z, front_gain), "building")
    elif shop and rng.random() < 0.5:
        board = c.tone(c.material(SIGNAL), z)
        c.wall(x, z0 + 0.6, z1 - 0.6, storey * 0.84, storey * 1.06, board, "sign")


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
        away, turn = spread * math.sqrt(away), math.tau * turn
        size = spread * (0.25 + 0.25 * size)
        clumps.append((0.85 * away * math.sin(turn), away * math.cos(turn), shade, size))
    for dy, dx, shade, size in sorted(clumps):
        gain = 0.72 + 0.2 * dy / spread + 0.12 * c.sun * dx / spread + 0.25 * shade
        c.disc(x + dx, height + dy, z, size, size * 0.85, c.tone(leaf, z, gain), "tree")


def hedge(c: SceneCanvas, x: float, z0: float, z1: float) -> None:
    """A clipped hedge along the pavement."""
    top, leaf = c.rng.uniform(0.8, 1.7), c.material(LEAVES, 10)
    c.slab(x, x + np.sign(x) * 0.8, 0, top, z0, c.tone(leaf, z0, 0.75), "tree")
    c.wall(x, z0, z1, 0, top, c.tone(leaf, z0, 0.95), "tree")


class FenceStyle(NamedTuple):
    """What all panels of one fence have in common: colours, and sizes in metres."""

    colour: np.ndarray
    gap: np.ndarray
    top: float
    pitch: float
    width: float

    @classmethod
    def random(cls, c: SceneCanvas) -> "FenceStyle":
        rng, colour = c.rng, c.material()
        solid = rng.random() < 0.4
        pitch, width = (0.3, 0.26) if solid else (rng.uniform(0.35, 0.9), rng.uniform(0.07, 0.14))
        gap = colour * 0.6 if solid else c.material() * 0.4 + c.material(LEAVES) * 0.4
        return cls(colour, gap, rng.uniform(0.9, 1.9), pitch, width)


def fence(c: SceneCanvas, x: float, z0: float, z1: float, style: FenceStyle) -> None:
    """Boards, bars or rails along the pavement; the gaps between them are labelled as fence."""
    colour, gap, top, pitch, width = style
    c.wall(x, z0, z1, 0, top, c.tone(gap, z0), "fence")
    for start in np.arange(z0, z1 - 1e-6, pitch):
        if c.focal / start * abs(x) / start * pitch > 1.2:  # boards can be told apart
            c.wall(x, start, start + width, 0, top, c.tone(colour, start), "fence")
    for y in (0.25 * top, top - 0.09):
        c.wall(x, z0, z1, y, y + 0.09, c.tone(colour, z0, 0.9), "fence")


def pole(c: SceneCanvas, x: float, z: float) -> None:
    """A lamp post with its arm over the road, a plain post, or a bollard."""
    rng, colour = c.rng, c.tone(c.material() * 0.7 + 20, z)
    kind = rng.random()
    half, top = rng.uniform(0.045, 0.09), 1.0 if kind < 0.2 else rng.uniform(4.5, 8)
    c.slab(x - half, x + half, 0, top, z, colour, "pole")
    if kind > 0.5:
        end = x - np.sign(x) * rng.uniform(0.8, 1.8)
        arm = [(x, top - 0.1), (end, top + 0.25), (end, top + 0.37), (x, top + 0.05)]
        c.facing(arm, z, colour, "pole")
        c.disc(end, top + 0.28, z, 0.3, 0.13, colour, "pole")


def sign(c: SceneCanvas, x: float, z: float) -> None:
    """A round or triangular traffic sign, traffic lights, or a board, on its post."""
    rng, post, half = c.rng, c.tone(c.material() * 0.6 + 40, z), c.rng.uniform(0.35, 0.65)
    y = rng.uniform(2.0, 2.6) + half
    outer, inner = c.tone(c.material(SIGNAL, 6), z), c.tone(c.material(SIGNAL, 6), z)
    c.slab(x - 0.04, x + 0.04, 0, y, z, post, "pole")
    kind = rng.integers(5)
    if kind == 0:
        c.disc(x, y, z, half, half, outer, "sign")
        c.disc(x, y, z, half * 0.65, half * 0.65, inner, "sign")
    elif kind == 1:
        for k, colour in ((1.0, outer), (0.55, inner)):
            base = y - half * k * 0.8
            corners = [(x - half * k, base), (x + half * k, base), (x, y + half * k)]
            c.facing(corners, z, colour, "sign")
    elif kind == 2:
        c.slab(x - half * 0.5, x + half * 0.5, y - half, y + half, z, c.tone(DARK, z), "sign")
        for k, colour in enumerate(TRAFFIC_LIGHTS):
            glow = c.tone(colour, z, 1.3 if rng.random() < 0.4 else 0.5)
            c.disc(x, y + (k - 1) * half * 0.62, z, half * 0.25, half * 0.25, glow, "sign")
    else:
        wide = half * rng.uniform(0.8, 1.9)
        c.slab(x - wide, x + wide, y - half, y + half, z, outer, "sign")
        c.slab(x - wide * 0.7, x + wide * 0.7, y - half * 0.3, y + half * 0.3, z, inner, "sign")


def litter(c: SceneCanvas, x: float, z: float) -> None:
    """A bin or a box: something that belongs to none of the classes."""
    half, top = c.rng.uniform(0.2, 0.4), c.rng.uniform(0.6, 1.2)
    c.slab(x - half, x + half, 0, top, z, c.tone(c.material(), z), "void")
    c.slab(x - half, x + half, top * 0.8, top, z, c.tone(c.material(), z, 0.8), "void")
