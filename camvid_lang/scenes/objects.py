"""The objects of a street: houses, trees, fences, poles, signs, cars, pedestrians, bicyclists.

Each function draws one object on a `SceneCanvas` at a position in metres.
"""

import math

import numpy as np

from camvid_lang.scenes.canvas import DARK, GLASS, LEAVES, SIGNAL, SKIN, WHITE, SceneCanvas

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
        away, turn = spread * math.sqrt(away), math.tau * turn
        size = spread * (0.25 + 0.25 * size)
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
            at = (x, y + (k - 1) * half * 0.62, z)
            c.disc(at, half * 0.25, half * 0.25, glow, "sign")
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
        low, high = belt + 0.06, top - 0.1
        draw([(0.1, low), (0.9, low), (0.82, high), (0.18, high)], glass)
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
    rng = c.rng
    coat, trousers = c.tone(c.material(), z), c.tone(c.material() * 0.75, z)
    skin, hair = c.tone(c.material(SKIN, 6), z), c.tone(c.material(SKIN, 6) * 0.4, z)
    hip, neck, wide = tall * 0.5 + seat, tall * 0.84 + seat, tall * rng.uniform(0.12, 0.15)
    stride = rng.uniform(0.02, 0.3) if not seat else 0.1
    foot = seat * 0.8
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
