"""What moves along a street: cars and lorries, people on foot, people on bicycles.

Each function draws one thing on a `SceneCanvas` at a place given in metres.
"""

import math

import numpy as np

from camvid_lang.scenes.canvas import DARK, GLASS, SKIN, WHITE

__all__ = [
    "bicyclist",
    "car",
    "pedestrian",
]

RING = [(math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12)]


def car(c, x, z, across=False):
    """A car, van or lorry seen from behind or from the front, or passing across the road."""
    rng, colour = c.rng, c.material()
    big = rng.random() < 0.15
    width, long = (2.3, rng.uniform(5.5, 8)) if big else (1.75, rng.uniform(3.6, 4.6))
    belt, top, floor = (1.3, rng.uniform(2.4, 3.1), 0.35) if big else (0.85, 1.45, 0.22)
    glass, lamp = c.tone(GLASS, z, 0.8), (200, 40, 40) if rng.random() < 0.5 else (240, 235, 200)
    sx, sz = (long, width) if across else (width, long)
    edge = x - np.sign(x) * sx / 2  # the flank turned to the camera
    flank = lambda t, y: (edge, y, z + t * sz)  # noqa: E731
    face = lambda t, y: (x + (t - 0.5) * sx, y, z)  # noqa: E731
    sunny = 1.0 if np.sign(x) == c.sun else 0.78
    shade = [(x - sx * 0.55, 0, z - 0.1), (x + sx * 0.55, 0, z - 0.1),
             (x + sx * 0.55, 0, z + sz), (x - sx * 0.55, 0, z + sz)]  # fmt: skip
    c.poly(shade, c.tone((42, 42, 46), z), None)
    side = face if across else flank
    lean = 0.0 if big else 0.16
    for part, gain in ((flank, sunny), (face, 0.9)):
        body, shut = c.tone(colour, z, gain), c.tone(GLASS, z, 0.7 * gain)
        if part is side:
            for hub in (0.18, 0.8):
                wheel = [part(hub + 0.33 / long * dx, 0.33 + 0.33 * dy) for dx, dy in RING]
                c.poly(wheel, c.tone(DARK, z), "car")
            c.poly([part(0, floor), part(1, floor), part(1, belt), part(0, belt)], body, "car")
            a, b = (0.02, 0.98) if big else (0.05, 0.72)
            roof = [part(a, belt), part(b + lean, belt), part(b, top), part(a + lean, top)]
            c.poly(roof, body, "car")
            if not big or rng.random() < 0.5:
                low, high = belt + 0.05, top - (0.12 if not big else 0.5)
                for p, q in ((0.0, 0.46), (0.54, 1.0)):
                    w0, w1 = a + 0.5 * lean + p * (b - a), a + 0.5 * lean + q * (b - a)
                    c.poly([part(w0, low), part(w1, low), part(w1 - lean * 0.2, high),
                            part(w0 + lean * 0.2, high)], shut, "car")  # fmt: skip
        else:
            for t in (0.04, 0.80):
                c.poly([part(t, 0), part(t + 0.16, 0), part(t + 0.16, 0.4), part(t, 0.4)],
                       c.tone(DARK, z), "car")  # fmt: skip
            c.poly([part(0, floor), part(1, floor), part(1, belt), part(0, belt)], body, "car")
            c.poly([part(0.02, belt), part(0.98, belt), part(0.86, top), part(0.14, top)],
                   body, "car")  # fmt: skip
            low = belt + 0.06
            c.poly([part(0.1, low), part(0.9, low), part(0.82, top - 0.1), part(0.18, top - 0.1)],
                   glass, "car")  # fmt: skip
            for t in (0.04, 0.78):
                low, high = belt - 0.28, belt - 0.1
                c.poly([part(t, low), part(t + 0.18, low), part(t + 0.18, high), part(t, high)],
                       c.tone(lamp, z * 0.5), "car")  # fmt: skip
            c.poly([part(0.36, 0.42), part(0.64, 0.42), part(0.64, 0.55), part(0.36, 0.55)],
                   c.tone(WHITE, z), "car")  # fmt: skip


def person(c, x, z, name, seat=0.0, tall=None):
    """Head, coat, arms and legs; seated `seat` metres higher as a rider."""
    rng = c.rng
    tall = tall or (rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.6, 1.9))
    coat, trousers = c.tone(c.material(), z), c.tone(c.material() * 0.75, z)
    skin, hair = c.tone(c.material(SKIN, 6), z), c.tone(c.material(SKIN, 6) * 0.4, z)
    hip, neck, wide = tall * 0.5 + seat, tall * 0.84 + seat, tall * rng.uniform(0.12, 0.15)
    stride = rng.uniform(0.02, 0.3) if not seat else 0.1
    foot = seat * 0.8
    for way in (-1, 1):
        c.poly([(x + way * wide * 0.1, hip, z), (x + way * wide * 0.9, hip, z),
                (x + way * (stride + wide * 0.6), foot, z),
                (x + way * stride, foot, z)], trousers, name)  # fmt: skip
        swing = rng.uniform(-0.05, 0.2)
        c.poly([(x + way * wide, neck - 0.05, z), (x + way * wide * 1.45, neck - 0.12, z),
                (x + way * (wide * 1.3 + swing), hip, z), (x + way * (wide + swing), hip, z)],
               coat, name)  # fmt: skip
    c.poly([(x - wide * 0.85, hip - 0.08, z), (x + wide * 0.85, hip - 0.08, z),
            (x + wide * 1.1, neck - 0.06, z), (x, neck + 0.03, z),
            (x - wide * 1.1, neck - 0.06, z)], coat, name)  # fmt: skip
    c.disc(x, tall * 0.925 + seat, z, tall * 0.06, tall * 0.075, hair, name)
    c.disc(x + 0.01, tall * 0.91 + seat, z, tall * 0.05, tall * 0.06, skin, name)


def pedestrian(c, x, z):
    """Somebody on foot."""
    person(c, x, z, "pedestrian")


def bicyclist(c, x, z):
    """A rider on a bicycle, seen from the side or end on."""
    rng, frame = c.rng, c.tone(c.material(), z)
    tyre, spokes = c.tone(DARK, z), c.tone((120, 118, 115), z)
    if rng.random() < 0.55:
        way = rng.choice((-1, 1))
        for hub in (-0.52, 0.52):
            c.disc(x + hub, 0.34, z, 0.34, 0.34, tyre, "bicyclist")
            c.disc(x + hub, 0.34, z, 0.26, 0.26, spokes, "bicyclist")
        for a, b in (((-0.52, 0.34), (-0.12, 0.85)), ((-0.12, 0.8), (0.42, 0.85)),
                     ((0.0, 0.34), (0.42, 0.85)), ((0.52, 0.34), (0.4, 1.05))):  # fmt: skip
            (u, v), (p, q) = a, b
            c.poly([(x + way * u, v, z), (x + way * p, q, z), (x + way * (p + 0.07), q, z),
                    (x + way * (u + 0.07), v, z)], frame, "bicyclist")  # fmt: skip
        coat = c.tone(c.material(), z)
        c.poly([(x - way * 0.1, 0.9, z), (x + way * 0.12, 0.35, z), (x + way * 0.24, 0.4, z),
                (x + way * 0.1, 0.95, z)], c.tone(c.material() * 0.7, z), "bicyclist")  # fmt: skip
        c.poly([(x - way * 0.24, 0.88, z), (x + way * 0.06, 0.88, z), (x + way * 0.3, 1.4, z),
                (x + way * 0.06, 1.46, z)], coat, "bicyclist")  # fmt: skip
        c.poly([(x + way * 0.18, 1.38, z), (x + way * 0.28, 1.3, z), (x + way * 0.47, 1.02, z),
                (x + way * 0.38, 1.02, z)], coat, "bicyclist")  # fmt: skip
        c.disc(x + way * 0.27, 1.58, z, 0.11, 0.13, c.tone(c.material(SKIN, 6), z), "bicyclist")
        c.disc(x + way * 0.25, 1.64, z, 0.12, 0.08, c.tone(c.material(), z), "bicyclist")
    else:
        person(c, x, z, "bicyclist", seat=0.35, tall=1.45)
        c.disc(x, 0.34, z, 0.07, 0.36, tyre, "bicyclist")
        c.slab(x - 0.28, x + 0.28, 0.98, 1.05, z, frame, "bicyclist")
