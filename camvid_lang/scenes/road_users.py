"""What moves along a street: cars and lorries, pedestrians, bicyclists.

Each function draws one object on a `SceneCanvas` at a position in metres.
"""

import math

import numpy as np

from camvid_lang.scenes.canvas import DARK, GLASS, SKIN, WHITE, SceneCanvas

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


def person(
    c: SceneCanvas, x: float, z: float, name: str, seat: float = 0.0, tall: float | None = None
) -> None:
    """Head, coat, arms and legs; a rider sits `seat` metres higher."""
    rng = c.rng
    tall = tall or (rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.6, 1.9))
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
    c.disc(x, tall * 0.925 + seat, z, tall * 0.06, tall * 0.075, hair, name)
    c.disc(x + 0.01, tall * 0.91 + seat, z, tall * 0.05, tall * 0.06, skin, name)


def pedestrian(c: SceneCanvas, x: float, z: float) -> None:
    """Somebody on foot."""
    person(c, x, z, "pedestrian")


# Frame tubes, legs, trunk and arm of a bicyclist seen from the side, in metres from the middle.
TUBES = [
    ((-0.52, 0.34), (-0.12, 0.85)),
    ((-0.12, 0.8), (0.42, 0.85)),
    ((0.0, 0.34), (0.42, 0.85)),
    ((0.52, 0.34), (0.4, 1.05)),
]
LEGS = ((-0.1, 0.9), (0.12, 0.35), (0.24, 0.4), (0.1, 0.95))
TRUNK = ((-0.24, 0.88), (0.06, 0.88), (0.3, 1.4), (0.06, 1.46))
ARM = ((0.18, 1.38), (0.28, 1.3), (0.47, 1.02), (0.38, 1.02))


def bicyclist(c: SceneCanvas, x: float, z: float) -> None:
    """A rider on a bicycle, seen from the side or from the front."""
    rng, frame, name = c.rng, c.tone(c.material(), z), "bicyclist"
    tyre, spokes = c.tone(DARK, z), c.tone((120, 118, 115), z)
    if rng.random() >= 0.55:
        person(c, x, z, name, seat=0.35, tall=1.45)
        c.disc(x, 0.34, z, 0.07, 0.36, tyre, name)
        c.slab(x - 0.28, x + 0.28, 0.98, 1.05, z, frame, name)
        return
    way = rng.choice((-1, 1))
    for hub in (-0.52, 0.52):
        c.disc(x + hub, 0.34, z, 0.34, 0.34, tyre, name)
        c.disc(x + hub, 0.34, z, 0.26, 0.26, spokes, name)
    for (u, v), (p, q) in TUBES:
        tube = [(u, v), (p, q), (p + 0.07, q), (u + 0.07, v)]
        c.facing([(x + way * dx, y) for dx, y in tube], z, frame, name)
    coat = c.tone(c.material(), z)
    for part, colour in ((LEGS, c.tone(c.material() * 0.7, z)), (TRUNK, coat), (ARM, coat)):
        c.facing([(x + way * dx, y) for dx, y in part], z, colour, name)
    c.disc(x + way * 0.27, 1.58, z, 0.11, 0.13, c.tone(c.material(SKIN, 6), z), name)
    c.disc(x + way * 0.25, 1.64, z, 0.12, 0.08, c.tone(c.material(), z), name)
