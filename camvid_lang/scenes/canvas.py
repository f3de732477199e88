"""The canvas of a scene: camera, lighting, and shapes drawn on image and label together.

The camera looks along +z from (0, camera height, 0); x points right, y up, all in metres. A bend
of the road shifts x by an amount that grows with the square of the distance, for every object.
Each shape is drawn without anti-aliasing on both images, so labels are exact by construction. All
man-made objects share one list of colours, so that colour alone does not give away the class.
"""

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from camvid_lang.data.classes import CLASSES, VOID

CLASS_ID = {name: index for index, name in enumerate(CLASSES)} | {"void": VOID}

MATERIALS = np.array([
    (150, 148, 145), (112, 112, 116), (78, 80, 86), (205, 200, 190), (232, 230, 226),
    (156, 92, 72), (176, 120, 88), (122, 66, 54), (198, 172, 128), (106, 88, 70),
    (70, 92, 130), (44, 54, 88), (128, 156, 178), (92, 112, 80), (62, 82, 60),
    (168, 38, 36), (34, 34, 38), (200, 168, 80), (136, 132, 112), (182, 182, 186),
], dtype=float)  # fmt: skip
LEAVES = np.array(
    [(64, 96, 40), (88, 116, 52), (46, 76, 44), (104, 112, 60), (132, 98, 48), (90, 78, 62)], float
)
SKIN = np.array([(224, 186, 160), (190, 142, 112), (122, 84, 62), (86, 60, 48)], float)
SIGNAL = np.array(
    [(200, 36, 40), (36, 76, 168), (238, 236, 230), (32, 116, 72), (232, 188, 44)], float
)
DARK, GLASS, WHITE = (30, 30, 34), (64, 76, 92), (235, 235, 228)

Colour = tuple[float, float, float] | np.ndarray
RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]


class SceneCanvas:
    """An image and its label, with the camera and the light they are drawn in.

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
