"""The classes of CamVid: names, descriptions, aliases, colours, shares of the pixels.

The 11 classes have ids 0 to 10 in the order of `CLASSES`; id 11 is void: pixels without a label,
which count in neither the loss nor any score.
"""

CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
           "pedestrian", "bicyclist")  # fmt: skip
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

# RGB in 0..255, of the original release (Brostow et al., 2008); void is black.
PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
)  # fmt: skip

# Percent of the pixels in the 701 labels of the release, void last (measured).
SHARES = (15.8, 24.1, 1.0, 29.3, 6.7, 11.2, 1.1, 1.4, 4.6, 0.6, 0.5, 3.6)
