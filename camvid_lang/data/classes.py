"""The classes of CamVid: names, descriptions, other words, colours, the original 32.

The 11 classes have ids 0 to 10 in the order of `CLASSES`; id 11 is void: pixels without a label,
which count in neither the loss nor any score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from camvid_lang.errors import InputError

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
NUM_CLASSES = len(CLASSES)
VOID = NUM_CLASSES

# Two sentences each, as in an encyclopaedia. The thesis used the opening of each class's Wikipedia
# page; these were written for this project, so scores with descriptions will differ slightly from
# the thesis's. All fit CLIP's context (a test counts the tokens).
DESCRIPTIONS = {
    "sky": (
        "The sky is the open expanse of air seen above the horizon. By day it is blue or covered "
        "with white and grey clouds."
    ),
    "building": (
        "A building is a roofed structure with walls, windows and doors that stands permanently "
        "in one place. Houses, shops and office blocks line the streets of a town."
    ),
    "pole": (
        "A pole is a tall, thin, upright column of metal, wood or concrete fixed in the ground. "
        "Along a street it carries lamps, cables or signs."
    ),
    "road": (
        "A road is a hard, level strip of asphalt laid out for the traffic of vehicles. White "
        "markings painted on its grey surface divide it into lanes."
    ),
    "pavement": (
        "A pavement, or sidewalk, is a paved path for people on foot beside a street. A raised "
        "kerb separates it from the traffic."
    ),
    "tree": (
        "A tree is a tall plant with a woody trunk and a crown of branches and green leaves. "
        "Trees, bushes and hedges make up the vegetation beside a street."
    ),
    "sign": (
        "A traffic sign is a flat panel with symbols or words, put up to instruct drivers. Its "
        "bright colours and plain shape make it easy to read from a distance."
    ),
    "fence": (
        "A fence is a low barrier of posts joined by rails, boards or wire mesh. It encloses a "
        "garden or keeps people away from the traffic."
    ),
    "car": (
        "A car is a motor vehicle on four wheels that carries a few people along the roads. It has "
        "a painted metal body with windows, lights and a number plate."
    ),
    "pedestrian": (
        "A pedestrian is a person who travels on foot, walking or standing in the street. "
        "Pedestrians keep to the pavement and cross the road at crossings."
    ),
    "bicyclist": (
        "A bicyclist is a person who rides a bicycle by turning its pedals. The rider sits upright "
        "on a saddle between two thin wheels, holding the handlebars."
    ),
}

# Other words for a class, tried in this order when a text bank does not have its name.
# The first is the word in Cityscapes.
ALIASES = {
    "pavement": ("sidewalk",),
    "tree": ("vegetation",),
    "sign": ("traffic sign", "road sign", "street sign"),
    "pedestrian": ("person",),
    "bicyclist": ("rider", "cyclist"),
}


@dataclass(frozen=True)
class Wording:
    """Other words for CamVid's classes.

    Attributes:
        reason: why these words.
        words: {"tree": ["bush", "hedge"], "road+pavement": ["ground"], ...}: a class, or several
            that are taken as one, and its phrases. A pixel goes to the class with the phrase that
            fits best. Together the keys are the 11 classes, each once.

    Raises:
        InputError: other keys.
    """

    reason: str
    words: Mapping[str, Sequence[str]]

    def __post_init__(self):
        named = sorted(name for key in self.words for name in key.split("+"))
        if named != sorted(CLASSES):
            raise InputError(
                f"wording: its keys are {', '.join(self.words)}; give each of the classes "
                f"{', '.join(CLASSES)} once ('road+pavement' takes two as one)"
            )

    @property
    def groups(self) -> list[list[int]]:
        """The ids of the classes that each key stands for."""
        return [[CLASSES.index(name) for name in key.split("+")] for key in self.words]


def _wording(reason: str, words: str, keys: Sequence[str] = CLASSES) -> Wording:
    phrases = [entry.strip().split(" | ") for entry in words.split(",")]
    return Wording(reason, dict(zip(keys, phrases, strict=True)))


# Near and far words, and unrelated ones, are from COCO-Stuff (Caesar et al., 2018), so that text
# banks of its classes have them. The tiny CLIP knows those of "synonyms", "coarser" and "finer".
WORDINGS = {
    "names": _wording("the class names", ", ".join(CLASSES)),
    "descriptions": Wording(
        "two sentences on each class", {name: [text] for name, text in DESCRIPTIONS.items()}
    ),
    "reversed": _wording(
        "the class names in reverse order, which must not matter",
        ", ".join(reversed(CLASSES)),
        CLASSES[::-1],
    ),
    "synonyms": _wording(
        "another common word for each class",
        "cloudy sky, house, lamp post, street, sidewalk, vegetation, traffic sign, railing, "
        "vehicle, person, cyclist",
    ),
    "near": _wording(
        "words of another data set for the same things",
        "clouds, house, pole, road, pavement, tree, stop sign, railing, car, person, bicycle",
    ),
    "far": _wording(
        "words for things that are only related",
        "fog, skyscraper, pole, road, pavement, bush, stop sign, railing, bus, person, bicycle",
    ),
    "finer": _wording(
        "several kinds of a class; the kind that fits best counts for the class",
        "sky | clouds, house | shop | tower, lamp post | mast | bollard, lane | asphalt, kerb | "
        "footpath, tree | bush | hedge, traffic sign | traffic light, railing | picket fence, "
        "car | lorry | bus | van, man on foot | woman walking | child, cyclist | bicycle",
    ),
    "coarser": _wording(
        "one word for several classes, which are then taken as one",
        "sky, facade | barrier, column, street, vegetation, vehicle, human",
        ("sky", "building+fence", "pole+sign", "road+pavement", "tree", "car",
         "pedestrian+bicyclist"),
    ),
    "unrelated": _wording(
        "words for things that no frame shows: what is left is chance",
        "banana, pizza, elephant, laptop, sheep, cake, giraffe, spoon, teddy bear, toilet, kite",
    ),
}  # fmt: skip

# Colours of the original 720x960 release (Brostow et al., 2008), RGB in 0..255.
ORIGINAL_COLOURS = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}

# The usual grouping of the 32 into the 11; what is in no group ("Void") is void.
GROUPS = {
    "sky": ("Sky",),
    "building": ("Building", "Archway", "Bridge", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"),
    "pedestrian": ("Pedestrian", "Animal", "CartLuggagePram", "Child"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}

# A class has the original colour of the first member of its group; void is black.
PALETTE = (*(ORIGINAL_COLOURS[GROUPS[name][0]] for name in CLASSES), (0, 0, 0))
