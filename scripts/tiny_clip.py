"""Trains the tiny CLIP that the package carries, for machines without access to a model hub.

    python scripts/tiny_clip.py --out FILE [--steps N] [--seed S]

The model (`camvid_lang/assets/camvid-tiny.json`: a 0.36 M parameter ConvNeXt of timm, a two-layer
text tower, 64-d embeddings) is trained contrastively on drawn scenes and the captions below. The
shipped file is what the defaults wrote, in an hour of one busy core; the same version of torch
gives the same bytes again. On 60 scenes of seeds not trained on they printed (after 500, 1000,
2000, 4000 steps the mIoU was 20, 26, 30, 34 %):

    names: zero-shot mIoU 36.4 %, mean cosine between classes 0.10
    descriptions: zero-shot mIoU 36.4 %, mean cosine between classes 0.10
    nearest to their class: 100% of held-out captions, 100% of descriptions
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from draw_scenes import draw_scene, scene_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.functional.classification import multiclass_jaccard_index
from tqdm import tqdm

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, NUM_CLASSES, VOID
from camvid_lang.models.encoder import TINY, DenseCLIPEncoder, load_clip

# Seeds of the scenes that are trained and tested on; those of a data set are small numbers.
TRAINING_SEED, TEST_SEED = 1001, 1002
PARTS = ((32, 48), (64, 24), (96, 12), (160, 6))  # side in pixels, parts a step
CELL, DENSE_SIDE, DENSE_PARTS = 32, 160, 8  # parts whose single positions are trained on
CAPTIONS = 4  # of each class a step
DENSE_WEIGHT = 0.3  # of single positions; with more, an adapter has nothing left to improve
TEXT_WEIGHT, TEXT_SCALE = 0.5, 10.0  # of captions against captions
Scenes = tuple[Tensor, Tensor]  # images (N, 3, H, W) and labels (N, H, W), uint8

# Captions of each class: words, short texts, definitions. `caption` draws one to train on.
# `HELD_OUT` are kept back to test prompts that the model has not seen, and so are the descriptions
# of `data.classes`, which occur nowhere here.
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


def draw_scenes(count: int, seed: int) -> Scenes:
    drawn = [draw_scene(scene_seed(seed, "train", i)) for i in tqdm(range(count), desc="scenes")]
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
    return images.permute(0, 3, 1, 2).contiguous(), labels


def draw_parts(rng: np.random.Generator, scenes: Scenes, side: int, count: int) -> Scenes:
    """Random square parts of scenes, around a pixel of a random class, so that rare ones occur too.

    Returns:
        parts: float (count, 3, side, side) in [0, 1], half of them mirrored, brightness varied.
        shown: float (count, side, side, 11), one-hot classes; zeros where void.
    """
    images, labels = scenes
    height, width = labels.shape[1:]
    parts, shown = [], []
    while len(parts) < count:
        index, wanted = rng.integers(len(images)), rng.integers(NUM_CLASSES)
        pixels = torch.nonzero(labels[index].flatten() == wanted)
        if len(pixels) == 0:
            continue
        row, column = divmod(int(pixels[rng.integers(len(pixels))]), width)
        jitter = rng.integers(-side // 4, side // 4 + 1, 2)
        top = int(np.clip(row - side // 2 + jitter[0], 0, height - side))
        left = int(np.clip(column - side // 2 + jitter[1], 0, width - side))
        part = images[index, :, top : top + side, left : left + side].float() / 255
        label = labels[index, top : top + side, left : left + side]
        if rng.random() < 0.5:
            part, label = part.flip(-1), label.flip(-1)
        parts.append((part * rng.uniform(0.8, 1.2)).clamp(0, 1))
        shown.append(label.long())
    one_hot = F.one_hot(torch.stack(shown), NUM_CLASSES + 1)[..., :VOID]
    return torch.stack(parts), one_hot.float()


def contrast(images: Tensor, texts: Tensor, counts: Tensor, ids: Tensor, scale: float) -> Tensor:
    """CLIP's symmetric contrastive loss, where captions of the same class are all positives.

    Args:
        images: (M, D) normalised embeddings.
        texts: (K, D) normalised embeddings of captions.
        counts: (M, 11) pixels of each class that an image shows; images that show none are skipped.
        ids: (K,) the class of each caption.
        scale: multiplies the cosines.
    """
    total = counts.sum(1)
    shares = (counts / total.clamp(min=1e-9)[:, None])[total > 0]
    cosines = scale * images[total > 0] @ texts.T
    match = shares[:, ids]
    to_text = match / match.sum(1, keepdim=True).clamp(min=1e-9)
    named = match.sum(0) > 0.1
    to_image = (match / match.sum(0).clamp(min=1e-9)).T[named]
    loss = F.cross_entropy(cosines, to_text)
    return (loss + F.cross_entropy(cosines.T[named], to_image)) / 2


def training_loss(model: open_clip.CLIP, scenes: Scenes, rng: np.random.Generator) -> Tensor:
    """The loss of a random batch of parts and captions, a sum of three contrasts.

    Pooled parts against captions, as in CLIP; single positions of the stride-32 map against
    captions, as the tower is used densely; and captions against each other, because the names of
    the classes would have cosines of 0.9 in a text tower as small as this one.
    """
    encoder = DenseCLIPEncoder(model)
    texts = [(caption(rng, name), c) for c, name in enumerate(CLASSES) for _ in range(CAPTIONS)]
    classes = torch.tensor([c for _, c in texts])
    captions = model.encode_text(open_clip.tokenize([text for text, _ in texts]), normalize=True)
    scale = model.logit_scale.exp()

    side, count = PARTS[rng.integers(len(PARTS))]
    parts, shown = draw_parts(rng, scenes, side, count)
    middle = slice(side // 4, side - side // 4)
    pooled = model.encode_image(encoder.normalise(parts), normalize=True)
    loss = contrast(pooled, captions, shown[:, middle, middle].sum((1, 2)), classes, scale)
    own = F.one_hot(classes, NUM_CLASSES).float()
    loss = loss + TEXT_WEIGHT * contrast(captions, captions, own, classes, TEXT_SCALE)

    parts, shown = draw_parts(rng, scenes, DENSE_SIDE, DENSE_PARTS)
    grid = DENSE_SIDE // CELL
    cells = shown.reshape(DENSE_PARTS, grid, CELL, grid, CELL, NUM_CLASSES).sum((2, 4))
    cells = cells.reshape(-1, NUM_CLASSES)
    dense = F.normalize(encoder(parts)[-1], dim=1).permute(0, 2, 3, 1).reshape(len(cells), -1)
    return loss + DENSE_WEIGHT * contrast(dense, captions, cells, classes, scale)


def train(steps: int = 6000, seed: int = 0, scenes: int = 1500) -> open_clip.CLIP:
    """Train from scratch with AdamW; linear warmup over 50 steps, then a cosine decay."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = load_clip(TINY, "random").train()
    drawn = draw_scenes(scenes, TRAINING_SEED)
    tokens = model.token_embedding.weight  # a step sees few of them: no weight decay for the others
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p is not tokens]
    rest = [tokens, *(p for p in model.parameters() if p.ndim < 2)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)

    def factor(step: int) -> float:
        return min((step + 1) / 50, 0.5 * (1 + np.cos(np.pi * step / steps)) + 1e-3)

    schedule = LambdaLR(optimizer, factor)
    for _ in tqdm(range(steps), desc="training", unit="step"):
        loss = training_loss(model, drawn, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(0, math.log(100))
    return model.eval()


@torch.inference_mode()
def embed_texts(model: open_clip.CLIP, texts: Sequence[str]) -> Tensor:
    """Normalised embeddings (K, D) of K texts."""
    return model.encode_text(open_clip.tokenize(list(texts)), normalize=True)


def nearest_class(model: open_clip.CLIP, texts: Mapping[str, Sequence[str]]) -> float:
    """Share in [0, 1] of texts, {class: [text, ...]}, that are nearest to their class's name."""
    names = embed_texts(model, CLASSES)
    nearest = torch.cat([(embed_texts(model, texts[name]) @ names.T).argmax(1) for name in CLASSES])
    own = torch.tensor([c for c, name in enumerate(CLASSES) for _ in texts[name]])
    return (nearest == own).float().mean().item()


@torch.inference_mode()
def zero_shot(model: open_clip.CLIP, texts: Tensor, scenes: Scenes) -> float:
    """mIoU in % of the bilinearly upsampled stride-32 map against 11 normalised text embeddings."""
    encoder, (images, labels) = DenseCLIPEncoder(model), scenes
    found = []
    for batch in images.split(8):
        features = F.interpolate(encoder(batch)[-1], size=labels.shape[1:], mode="bilinear")
        found.append(torch.einsum("nchw,kc->nkhw", features, texts).argmax(1))
    miou = multiclass_jaccard_index(torch.cat(found), labels.long(), NUM_CLASSES, ignore_index=VOID)
    return 100 * miou.item()


def save_weights(model: open_clip.CLIP, path: Path) -> None:
    """Write the weights in float16 as safetensors."""
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny CLIP on drawn scenes.")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--steps", type=int, default=6000, help="default: 6000, an hour")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the sum of gradients depends on the number of threads
    model = train(options.steps, options.seed)
    save_weights(model, options.out)
    scenes = draw_scenes(60, TEST_SEED)
    for kind, texts in (("names", CLASSES), ("descriptions", DESCRIPTIONS.values())):
        embedded = embed_texts(model, texts)
        similar = (embedded @ embedded.T)[~torch.eye(NUM_CLASSES, dtype=torch.bool)].mean()
        miou = zero_shot(model, embedded, scenes)
        print(f"{kind}: zero-shot mIoU {miou:.1f} %, mean cosine between classes {similar:.2f}")
    described = nearest_class(model, {name: [text] for name, text in DESCRIPTIONS.items()})
    held_out = nearest_class(model, HELD_OUT)
    shares = f"{held_out:.0%} of held-out captions, {described:.0%} of descriptions"
    print(f"nearest to their class: {shares}")


if __name__ == "__main__":
    main()
