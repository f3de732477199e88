"""What stands along a street: houses, trees, hedges, fences, poles, signs, and bins.

Each function draws one thing on a `SceneCanvas` at a place given in metres.
"""

import math

import numpy as np

from camvid_lang.scenes.canvas import DARK, GLASS, LEAVES, SIGNAL

__all__ = [
    "building",
    "fence",
    "hedge",
    "litter",
    "pole",
    "sign",
    "tree",
]


def building(c, x, z0, z1, lit=False):
    """A house whose street front stands at `x` from `z0` to `z1`; windows glow if `lit`."""
    rng, side, z = c.rng, np.sign(x), (z0 + z1) / 2
    storey = rng.uniform(2.7, 3.4)
    floors = int(rng.integers(1, 4 if rng.random() < 0.6 else 8))
    top, colour = storey * floors + 0.6, c.material()
    back = x + side * rng.uniform(6, 12)
    front_gain, gable_gain = (1.0, 0.72) if side == -c.sun else (0.7, 0.88)
    if rng.random() < 0.5:
        ridge, roof, mid = top + rng.uniform(1.5, 3), c.material(jitter=14), x + side * 3.5
        c.poly([(x, top, z0), (x, top, z1), (mid, ridge, z1), (mid, ridge, z0)],
               c.tone(roof, z, 0.85), "building")  # fmt: skip
        c.poly([(x, top, z0), (mid, ridge, z0), (back, top, z0)],
               c.tone(colour, z0, gable_gain), "building")  # fmt: skip
    c.slab(x, back, 0, top, z0, c.tone(colour, z0, gable_gain), "building")
    c.wall(x, z0, z1, 0, top, c.tone(colour, z, front_gain), "building")
    glow = (238, 206, 130)
    glass, trim = c.material(jitter=5) * 0.45 + np.array(GLASS) * 0.4, c.material() * 0.5 + 110
    wide, pitch = rng.uniform(0.8, 1.6), rng.uniform(2.3, 3.4)
    shop = rng.random() < 0.35
    if c.focal / z * 1.4 < 3:
        return
    for floor in range(floors):
        low = floor * storey + (0.2 if shop and floor == 0 else 0.95)
        high = floor * storey + storey * 0.82
        for start in np.arange(z0 + 0.5, z1 - wide, pitch):
            end = min(start + (pitch * 0.8 if shop and floor == 0 else wide), z1 - 0.3)
            pane = glow if lit and rng.random() < 0.4 else glass * rng.uniform(0.8, 1.25)
            if z < 22:
                c.wall(
                    x,
                    start - 0.12,
                    end + 0.12,
                    low - 0.12,
                    high + 0.12,
                    c.tone(trim, z),
                    "building",
                )
            gain = 1 / c.light[1] if pane is glow else front_gain
            c.wall(x, start, end, low, high, c.tone(pane, z, gain), "building")
        for start in np.arange(abs(x) + 0.8, abs(back) - 1.6, pitch):
            c.slab(side * start, side * (start + wide), floor * storey + 0.95, high, z0,
                   c.tone(glass, z0, gable_gain), "building")  # fmt: skip
    if not shop and z1 - z0 > 3:
        door = rng.uniform(z0 + 0.5, z1 - 1.5)
        c.wall(x, door, door + 1.0, 0, 2.1, c.tone(c.material(), z, front_gain), "building")
    elif shop and rng.random() < 0.5:
        c.wall(x, z0 + 0.6, z1 - 0.6, storey * 0.84, storey * 1.06,
               c.tone(c.material(SIGNAL), z), "sign")  # fmt: skip


def tree(c, x, z):
    """A trunk under a crown of overlapping clumps; now and then a bush without a trunk."""
    rng, leaf, trunk = c.rng, c.material(LEAVES, 10), c.material() * 0.3 + 50
    bush = rng.random() < 0.3
    height, spread = (0.8, 0.9) if bush else (rng.uniform(2.6, 5.5), rng.uniform(1.0, 2.2))
    if not bush:
        half = rng.uniform(0.09, 0.2)
        c.poly([(x - half * 1.4, 0, z), (x + half * 1.4, 0, z), (x + half, height, z),
                (x - half, height, z)], c.tone(trunk, z), "tree")  # fmt: skip
    clumps = []
    for turn, away, shade, size in rng.random((16 if z < 30 else 8, 4)).tolist():
        away = spread * math.sqrt(away)
        clumps.append((0.85 * away * math.sin(math.tau * turn), away * math.cos(math.tau * turn),
                       shade, spread * (0.25 + 0.25 * size)))  # fmt: skip
    for dy, dx, shade, size in sorted(clumps):
        gain = 0.72 + 0.2 * dy / spread + 0.12 * c.sun * dx / spread + 0.25 * shade
        c.disc(x + dx, height + dy, z, size, size * 0.85, c.tone(leaf, z, gain), "tree")


def hedge(c, x, z0, z1):
    """A clipped hedge along the pavement."""
    top, leaf = c.rng.uniform(0.8, 1.7), c.material(LEAVES, 10)
    c.slab(x, x + np.sign(x) * 0.8, 0, top, z0, c.tone(leaf, z0, 0.75), "tree")
    c.wall(x, z0, z1, 0, top, c.tone(leaf, z0, 0.95), "tree")


def fence(c, x, z0, z1, style):
    """Boards, bars or rails along the pavement; the gaps between belong to the fence."""
    colour, top, gap = style["colour"], style["top"], style["gap"]
    c.wall(x, z0, z1, 0, top, c.tone(gap, z0), "fence")
    width = style["width"]
    for start in np.arange(z0, z1 - 1e-6, style["pitch"]):
        if c.focal / start * abs(x) / start * style["pitch"] > 1.2:
            c.wall(x, start, start + width, 0, top, c.tone(colour, start), "fence")
    for y in (0.25 * top, top - 0.09):
        c.wall(x, z0, z1, y, y + 0.09, c.tone(colour, z0, 0.9), "fence")


def pole(c, x, z):
    """A lamp post with its arm over the road, a plain post, or a bollard."""
    rng, colour = c.rng, c.tone(c.material() * 0.7 + 20, z)
    kind = rng.random()
    half, top = rng.uniform(0.045, 0.09), 1.0 if kind < 0.2 else rng.uniform(4.5, 8)
    c.slab(x - half, x + half, 0, top, z, colour, "pole")
    if kind > 0.5:
        reach = -np.sign(x) * rng.uniform(0.8, 1.8)
        c.poly([(x, top - 0.1, z), (x + reach, top + 0.25, z), (x + reach, top + 0.37, z),
                (x, top + 0.05, z)], colour, "pole")  # fmt: skip
        c.disc(x + reach, top + 0.28, z, 0.3, 0.13, colour, "pole")


def sign(c, x, z):
    """A traffic sign or a set of traffic lights on its post."""
    rng, post, half = c.rng, c.tone(c.material() * 0.6 + 40, z), c.rng.uniform(0.35, 0.65)
    low, ground = rng.uniform(2.0, 2.6), c.tone(c.material(SIGNAL, 6), z)
    inner = c.tone(c.material(SIGNAL, 6), z)
    c.slab(x - 0.04, x + 0.04, 0, low + half, z, post, "pole")
    kind, y = rng.integers(5), low + half
    if kind == 0:
        c.disc(x, y, z, half, half, ground, "sign")
        c.disc(x, y, z, half * 0.65, half * 0.65, inner, "sign")
    elif kind == 1:
        for k, colour in ((1.0, ground), (0.55, inner)):
            c.poly([(x - half * k, y - half * k * 0.8, z), (x + half * k, y - half * k * 0.8, z),
                    (x, y + half * k, z)], colour, "sign")  # fmt: skip
    elif kind == 2:
        c.slab(x - half * 0.5, x + half * 0.5, y - half, y + half, z, c.tone(DARK, z), "sign")
        for k, colour in enumerate(((60, 190, 110), (190, 140, 40), (210, 50, 40))):
            glow = c.tone(colour, z, 1.3 if rng.random() < 0.4 else 0.5)
            c.disc(x, y + (k - 1) * half * 0.62, z, half * 0.25, half * 0.25, glow, "sign")
    else:
        wide = half * rng.uniform(0.8, 1.9)
        c.slab(x - wide, x + wide, y - half, y + half, z, ground, "sign")
        c.slab(x - wide * 0.7, x + wide * 0.7, y - half * 0.3, y + half * 0.3, z, inner, "sign")


def litter(c, x, z):
    """A bin, a box or a heap: something that belongs to none of the classes."""
    half, top = c.rng.uniform(0.2, 0.4), c.rng.uniform(0.6, 1.2)
    c.slab(x - half, x + half, 0, top, z, c.tone(c.material(), z), "void")
    c.slab(x - half, x + half, top * 0.8, top, z, c.tone(c.material(), z, 0.8), "void")
