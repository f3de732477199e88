"""The canvas of the scenes: camera, light and pens that draw on picture and label at once.

The camera looks along +z from (0, camera height, 0); x points right, y up, all in metres. A bend
of the road is a shift of x that grows with the square of the distance, so everything follows it.
Every shape is drawn by the same call and without anti-aliasing on both images, hence a label is
exact by construction. Colours come from one list of materials shared by all man-made things:
colour alone tells no class.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from camvid_lang.data.classes import CLASSES, VOID

__all__ = [
    "CLASS_ID",
    "DARK",
    "GLASS",
    "LEAVES",
    "MATERIALS",
    "SIGNAL",
    "SKIN",
    "WHITE",
    "SceneCanvas",
]

CLASS_ID = {name: index for index, name in enumerate(CLASSES)} | {"void": VOID}

MATERIALS = np.array(
    [
        (150, 148, 145), (112, 112, 116), (78, 80, 86), (205, 200, 190), (232, 230, 226),
        (156, 92, 72), (176, 120, 88), (122, 66, 54), (198, 172, 128), (106, 88, 70),
        (70, 92, 130), (44, 54, 88), (128, 156, 178), (92, 112, 80), (62, 82, 60),
        (168, 38, 36), (34, 34, 38), (200, 168, 80), (136, 132, 112), (182, 182, 186),
    ],
    dtype=float,
)  # fmt: skip
LEAVES = np.array(
    [(64, 96, 40), (88, 116, 52), (46, 76, 44), (104, 112, 60), (132, 98, 48), (90, 78, 62)],
    dtype=float,
)
SKIN = np.array([(224, 186, 160), (190, 142, 112), (122, 84, 62), (86, 60, 48)], dtype=float)
SIGNAL = np.array(
    [(200, 36, 40), (36, 76, 168), (238, 236, 230), (32, 116, 72), (232, 188, 44)], dtype=float
)
DARK, GLASS, WHITE = (30, 30, 34), (64, 76, 92), (235, 235, 228)


class SceneCanvas:
    """A picture and its label, with the camera and the light they are drawn in.

    `light` multiplies colours per channel, `fog` is the colour far things fade into, `sight` the
    distance in metres over which they do so, `sun` the side (-1 left, +1 right) that lies in light.
    """

    def __init__(self, rng, size, light, fog, sight, sun):
        height, width = size
        self.rng, self.size, self.sun, self.sight = rng, size, sun, sight
        self.light, self.fog = tuple(map(float, light)), tuple(map(float, fog))
        self.focal = width * rng.uniform(0.8, 1.0)
        self.eye = rng.uniform(1.3, 1.9)
        self.horizon = height * rng.uniform(0.42, 0.52)
        self.centre = width * rng.uniform(0.40, 0.60)
        self.bend = rng.normal(0, 0.0008)
        self.picture = Image.new("RGB", (width, height))
        self.label = Image.new("L", (width, height), VOID)
        self.pens = (ImageDraw.Draw(self.picture), ImageDraw.Draw(self.label))

    def project(self, x, y, z):
        """World metres to picture pixels (column, row)."""
        scale = self.focal / z
        return self.centre + (x + self.bend * z * z) * scale, self.horizon + (self.eye - y) * scale

    def tone(self, colour, z, gain=1.0):
        """A material's colour as lit and seen through `z` metres of air: three ints, 0..255."""
        clear = math.exp(-z / self.sight)
        gain, haze = gain * clear, 1 - clear
        (r, g, b), (lr, lg, lb), (fr, fg, fb) = colour, self.light, self.fog
        return (
            min(255, max(0, int(r * lr * gain + fr * haze))),
            min(255, max(0, int(g * lg * gain + fg * haze))),
            min(255, max(0, int(b * lb * gain + fb * haze))),
        )

    def material(self, palette=MATERIALS, jitter=9.0):
        """A random colour out of a list, slightly changed."""
        return palette[self.rng.integers(len(palette))] + jitter * self.rng.standard_normal(3)

    def poly(self, points, colour, name):
        """A filled polygon of world points; `name` is its class, None leaves the label alone."""
        flat = [self.project(*p) for p in points]
        self.pens[0].polygon(flat, fill=colour)
        if name is not None:
            self.pens[1].polygon(flat, fill=CLASS_ID[name])

    def disc(self, x, y, z, rx, ry, colour, name):
        """A filled ellipse that faces the camera, radii in metres."""
        (u, v), scale = self.project(x, y, z), self.focal / z
        box = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        self.pens[0].ellipse(box, fill=colour)
        if name is not None:
            self.pens[1].ellipse(box, fill=CLASS_ID[name])

    def slab(self, x0, x1, y0, y1, z, colour, name):
        """An upright rectangle that faces the camera."""
        self.poly([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)], colour, name)

    def wall(self, x, z0, z1, y0, y1, colour, name):
        """An upright rectangle along the road."""
        self.poly([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], colour, name)

    def paste(self, colour, label):
        """Lay whole arrays (H, W, 3) and (H, W) over what is drawn, except where void."""
        drawn = Image.fromarray((label != VOID) * np.uint8(255))
        self.picture.paste(Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8)), mask=drawn)
        self.label.paste(Image.fromarray(label), mask=drawn)
