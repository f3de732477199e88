"""Captions of each class that the tiny CLIP is trained on: words, short texts, definitions.

`caption` draws one to train on. `HELD_OUT` are kept back to test prompts that the model has not
seen, and so are the descriptions of `data.classes`, which occur nowhere here.
"""

import itertools

import numpy as np

from camvid_lang.data.classes import CLASSES

_WORDS = {
    "sky": "sky, clouds, cloudy sky, blue sky, air, grey sky",
    "building": "building, house, shop, office block, facade, wall of a house, tower",
    "pole": "pole, lamp post, street lamp, post, column, mast, bollard",
    "road": "road, street, roadway, lane, asphalt, carriageway, lane marking",
    "pavement": "pavement, sidewalk, footpath, walkway, kerb, footway",
    "tree": "tree, vegetation, bush, hedge, plant, foliage, shrub, leaves",
    "sign": "sign, traffic sign, road sign, street sign, traffic light, signal, sign symbol, board",
    "fence": "fence, railing, guard rail, picket fence, barrier, palings",
    "car": "car, vehicle, automobile, lorry, truck, van, bus, motor car",
    "pedestrian": "pedestrian, person, walker, human, man on foot, woman walking, child, people",
    "bicyclist": "bicyclist, cyclist, rider, bicycle, bike, person on a bicycle, cycle rider",
}
# What a thing is; and more about it: its use, its place, its parts, its colour.
_WHAT = {
    "sky": "the space above the earth; the air seen overhead; what lies over the roofs; the "
    "upper part of the view, above the horizon; a wide open stretch of air",
    "building": "a structure with walls and a roof; a house in which people live or work; a "
    "block of flats, offices or shops; a permanent structure of brick or stone; a town house "
    "with windows and doors",
    "pole": "a thin upright column; a tall post fixed in the ground; a slender mast of metal; a "
    "long round piece of wood or steel that stands upright; a lamp post",
    "road": "a strip of asphalt for traffic; the hard surface that vehicles drive on; a way for "
    "vehicles between places; a level carriageway with lanes; the grey tarmac between two kerbs",
    "pavement": "a paved path at the side of a street; a raised path for walkers; the footway "
    "along a road; a sidewalk of stone slabs; a path for people on foot",
    "tree": "a plant with a trunk and branches; a tall woody plant; green vegetation; a plant "
    "with leaves and a crown; a bush or hedge that grows in a garden",
    "sign": "a panel with a symbol for drivers; a board that gives an order or a warning; a flat "
    "plate with words or symbols; a set of lights that instruct the traffic; a bright coloured "
    "notice",
    "fence": "a barrier of posts and rails; a railing of bars; a low barrier around a garden; a "
    "row of boards that encloses land; a barrier made of wire mesh or wood",
    "car": "a motor vehicle; a machine with an engine and four wheels; a vehicle that carries "
    "people or goods; an automobile with a metal body; a passenger vehicle with a driver",
    "pedestrian": "a person on foot; somebody who walks; a human being in the street; a man, "
    "woman or child who travels on foot; a person walking or standing",
    "bicyclist": "a person who rides a bicycle; a rider on two wheels; somebody on a bike; a "
    "cyclist who pushes the pedals; a person sitting on a bicycle",
}
_MORE = {
    "sky": "It is blue on a clear day. It is grey when clouds cover it. The sun shines in it. It "
    "has white clouds and no objects. It turns dark in the evening. It stretches over the whole "
    "town. Rain falls from it.",
    "building": "It has many windows in rows. It stands beside the street. Its walls are of "
    "brick, stone or concrete. People live and work in it. It has a door and a roof. Shops are "
    "in its lower floor. It stays permanently in one place in the town.",
    "pole": "It carries a lamp. It holds cables or a sign. It is tall and narrow. It is made of "
    "metal, concrete or wood. It stands at the edge of the pavement. It lights the street at "
    "night. It is fixed upright in the ground.",
    "road": "Cars drive on it. White lines are painted on it. It is grey, flat and hard. It has "
    "markings that divide the lanes. It leads to the horizon. The traffic of vehicles moves "
    "along its surface. It is made of asphalt.",
    "pavement": "People walk on it. It lies between the houses and the road. A kerb forms its "
    "edge. It is made of slabs or bricks. It is higher than the traffic lanes. No vehicles drive "
    "on it. It is separated from the road by a kerb.",
    "tree": "It has green leaves. Its trunk is brown. It grows beside the street. It gives shade "
    "in summer. Its branches form a crown. It belongs to the vegetation. Its leaves turn yellow "
    "and brown in autumn.",
    "sign": "It tells drivers what to do. It has bright colours such as red and blue. It is "
    "fixed on a post. It is round, square or like a triangle. It warns of danger. Its symbols "
    "are easy to read. It shows the speed limit.",
    "fence": "It encloses a garden. It keeps people away. It is made of wood or metal bars. It "
    "has posts joined by rails. It runs along the edge of a property. One cannot walk through "
    "it. Its boards stand side by side.",
    "car": "It has four wheels and an engine. It drives on the road. It is parked at the kerb. "
    "It has lights, windows and a number plate. Its metal body is painted. It carries "
    "passengers. It has a windscreen and tyres.",
    "pedestrian": "The person walks on the pavement. The person crosses the road. A person has a "
    "head, arms and two legs. The person wears a coat and trousers. They stand or walk in the "
    "street. They travel on foot. Pedestrians wait at the crossing.",
    "bicyclist": "The rider turns the pedals. The rider sits on a saddle. The rider holds the "
    "handlebars. The bicycle has two thin wheels. The cyclist wears a helmet. The cyclist rides "
    "along the lane. A bike has a frame and a chain.",
}
WORDS = {name: words.split(", ") for name, words in _WORDS.items()}
WHAT = {name: text.split("; ") for name, text in _WHAT.items()}
MORE = {name: [f"{text}." for text in texts[:-1].split(". ")] for name, texts in _MORE.items()}
UNCOUNTABLE = ("clouds", "air", "asphalt", "vegetation", "foliage", "leaves", "palings", "people")
TEMPLATES = (
    "{}", "a {}", "the {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}",
    "{} in a street scene", "a {} in the street", "part of a {}", "this is a {}",
    "a {} in the rain", "a {} at dusk", "there is a {} in the scene", "a close view of a {}",
    "a {} far away",
)  # fmt: skip


def _fill(template: str, word: str) -> str:
    """The template with the word in it, and the article that the word takes."""
    if word in UNCOUNTABLE:
        template = template.replace("a {}", "{}")
    elif word[0] in "aeiou":
        template = template.replace("a {}", "an {}")
    return template.format(word)


def _is_held_out(first: int, second: int) -> bool:
    """About one combination in six, spread evenly; never the bare name of a class, (0, 0)."""
    return (first + 2 * second) % 6 == 4


def _texts(name: str) -> tuple[list[str], list[str], list[str]]:
    """Short texts and sentences to train on, and those of both kinds that are held out."""
    opening = f"{'The' if name == 'sky' else 'A'} {WORDS[name][0]} is"
    short, sentences, held_out = [], [], []
    for (w, word), (t, template) in itertools.product(enumerate(WORDS[name]), enumerate(TEMPLATES)):
        (held_out if _is_held_out(w, t) else short).append(_fill(template, word))
    for (w, what), (m, more) in itertools.product(enumerate(WHAT[name]), enumerate(MORE[name])):
        (held_out if _is_held_out(w, m) else sentences).append(f"{opening} {what}. {more}")
    # "a clouds" and "clouds" become the same text, and `caption` draws all the bare words.
    trained_on = {*short, *sentences, *WORDS[name]}
    return short, sentences, [text for text in held_out if text not in trained_on]


SHORT, SENTENCES, HELD_OUT = (
    dict(zip(CLASSES, texts, strict=True)) for texts in zip(*map(_texts, CLASSES), strict=True)
)


def caption(rng: np.random.Generator, name: str) -> str:
    """A random caption of a class to train on.

    One of several kinds: the class's name or another word, a word in a template, a sentence that
    defines it, two facts about it, or a single fact.
    """
    kind = rng.random()
    if kind < 0.15:
        words = WORDS[name]
        return words[0] if rng.random() < 0.4 else words[rng.integers(len(words))]
    if kind < 0.5:
        return SHORT[name][rng.integers(len(SHORT[name]))]
    if kind < 0.8:
        return SENTENCES[name][rng.integers(len(SENTENCES[name]))]
    first, second = rng.permutation(len(MORE[name]))[:2]
    return f"{MORE[name][first]} {MORE[name][second]}" if kind < 0.9 else MORE[name][first]
