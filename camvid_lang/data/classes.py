"""The classes of CamVid: names, descriptions, aliases, colours, shares of the pixels.

The 11 classes have ids 0 to 10 in the order of `CLASSES`; id 11 is void: pixels without a label,
which count in neither the loss nor any score.
"""

import json
from pathlib import Path

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
           "pedestrian", "bicyclist")  # fmt: skip
NUM_CLASSES = len(CLASSES)
VOID = NUM_CLASSES

# Two sentences each, as in an encyclopaedia. The thesis used the opening of each class's Wikipedia
# page; these were written for this project, so scores with descriptions will differ slightly from
# the thesis's. All fit CLIP's context (a test counts the tokens).
_FILE = Path(__file__).parents[1] / "assets" / "descriptions.json"
DESCRIPTIONS: dict[str, str] = json.loads(_FILE.read_text(encoding="utf-8"))

# Other words for a class, tried in this order when a text bank does not have its name.
# The first is the word in Cityscapes.
ALIASES = {
    "pavement": ("sidewalk",),
    "tree": ("vegetation",),
    "sign": ("traffic sign", "road sign", "street sign"),
    "pedestrian": ("person",),
    "bicyclist": ("rider", "cyclist"),
}

# RGB in 0..255, of the original release (Brostow et al., 2008); void is black.
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
)  # fmt: skip

# Percent of the pixels in the 701 labels of the release, void last (measured).
SHARES = (15.8, 24.1, 1.0, 29.3, 6.7, 11.2, 1.1, 1.4, 4.6, 0.6, 0.5, 3.6)
