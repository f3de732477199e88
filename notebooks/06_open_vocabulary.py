# %% [markdown]
# # 6. Open vocabulary: any words
#
# {{badge}}
#
# Here the trained models are queried for "vehicle", "lorry" or "shop window", which are none of their classes. You will
# see how a pixel and a new word are compared, the segmentation of an image by such words, and a panel to try your own
# images and words. An image takes less than a second even without a GPU. Where no run is finished yet (notebooks 2 to
# 4), a small model answers that comes with the package: trained on CamVid, or, with drawn scenes as `DATA`, on these.
# The thesis gives open vocabulary as the reason for the whole approach but does not measure it; the last section does.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RUN = ""  # @param ["", "frozen-names", "frozen-descriptions", "full-descriptions", "full-narrow-descriptions", "adapter-names", "adapter-descriptions", "bilinear-names"] {allow-input: true}

# %% [markdown]
# `RUN` is the finished run to query, by default the best whose weights are here. The CLIP of a `frozen-*` run has
# kept all that it knew; that of a `full-*` run was trained further and may have forgotten other things. Compare them.
# `bilinear-names` is not trained, so it needs no run: with the profile `thesis` it downloads the thesis's CLIP,
# untrained: all its words, but a coarse map. [Notebook 1](01_data.ipynb) explains the other choices.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE)
segmenter = session.segmenter(RUN)
print(f"{segmenter.experiment.name}, trained on: {', '.join(segmenter.classes)}")

# %% [markdown]
# ## Why new words can work
#
# In training, the vector of each car pixel was moved towards the text embedding of the class "car"
# (its name or its description, depending on the run). If the embedding of "vehicle" is similar to it,
# then it is similar to these pixels too. So first compare the texts.
#
# The values depend on the text encoder. That of the profile `thesis` was trained on hundreds of
# millions of captions. The tiny CLIP of `cpu` and `smoke`, and of the models in the package, was trained on captions of drawn
# scenes, in which a car is sometimes called a vehicle or a lorry, so these words are not new to it: it
# demonstrates the method, not the knowledge of CLIP.

# %%
words = ["vehicle", "lorry", "grass", "shop window", "street lamp"]
similarity = segmenter.similarity(words)  # (5, 11) cosines of text embeddings
for word, cosines in zip(words, similarity, strict=True):
    nearest = sorted(zip(cosines, segmenter.classes, strict=True), reverse=True)[:3]
    print(f"{word:12}", ", ".join(f"{name} {cosine:.2f}" for cosine, name in nearest))

# %% [markdown]
# ## A pixel and a word
#
# The loss constrains the cosines of a pixel with the trained classes only; its cosine with any other word is what
# training happens to leave. So pixel and word are both described by the trained classes: how probable is each
# class for the pixel, and how probable for the word? Both are a softmax of cosines. Their agreement is the probability that
# both are of the same class, the sum of the products. Here for a pixel of a car, if the first frame has one.

# %%
import numpy as np
import torch

test = session.frames("test", 4)
images = dict(zip(test.names, test.images.permute(0, 2, 3, 1).numpy(), strict=True))
image, car = images[test.names[0]], test.labels[0].numpy() == 8
row, column = np.argwhere(car)[car.sum() // 2] if car.any() else (-9, 9)
cosines = torch.from_numpy(segmenter.cosines(image))[:, row, column]  # (11,)
of_pixel = (cosines / segmenter.temperature).softmax(dim=0)
of_words = (torch.from_numpy(similarity[:3]) / 0.01).softmax(dim=1)  # 0.01: CLIP's temperature

print(" " * 11 + "".join(f"{column:>9}" for column in ("pixel", *words[:3])))
for name, *shares in zip(segmenter.classes, of_pixel, *of_words, strict=True):
    print(f"{name:11}" + "".join(f"{100 * share:7.1f} %" for share in shares))
print(f"{'agreement':20}" + "".join(f"{100 * x:7.1f} %" for x in of_words @ of_pixel))

# %% [markdown]
# This way of comparison is called *anchored* and is the default. `compare="cosine"` is the thesis's way, the largest cosine
# of pixel and word. The first is steadier: on CamVid `full-names` has a mIoU of 56 % with words near to its own, by
# cosine 37 (README). But it sees trained classes only. It can rename, merge and divide them, and would do the
# same for SwiftNet's probabilities; it cannot find other things, and explains each word by trained classes, however badly
# (the tiny CLIP takes grass for road).
#
# For things that training never showed, a run with a frozen CLIP has `compare="clip"`, in two steps: CLIP's
# own coarse map gives each new word its share of a pixel; the rest is divided among the trained classes as the trained map
# says.
#
# ## One image, new words
#
# The heat maps show the probability of each class among those given: bright where it matches better
# than all others. `none_below=0.5` adds "none of these" for pixels whose agreement $a$ with the best word is
# below 0.5. In the heat maps it has $0.5 / a$ times the probability of that word, so 1/3 even where the agreement is 1.

# %%
from IPython.display import display

from camvid_lang.notebook import ask

for figure in ask(segmenter, image, "road, vehicle, tree, house, sky, person"):
    display(figure)

# %%
if segmenter.experiment.epochs:  # an untrained model has no trained classes
    for figure in ask(segmenter, image, "street, vegetation", none_below=0.5):
        display(figure)

# %% [markdown]
# ## Your turn
#
# Choose a frame or upload an image, write the classes separated by commas, and press *segment*.
# `car | lorry` is one class with two prompts, whose embeddings are averaged. *save* writes the ids and
# the blended image to the folder `segmented`. A word that is not similar to any class of the run is
# reported, but still gets pixels.

# %%
from camvid_lang.notebook import panel

panel(segmenter, images)

# %% [markdown]
# ## Other words, measured
#
# The same four frames, asked for in other words; mIoU of each way of comparison (`clip` for runs with a frozen CLIP
# only), and in the column *trained* that of the trained classes, for reference. A row is a set of words: *own*, those
# of training; *names*, the class names, also *reversed* in order; *synonyms*; *near*, words of another data set for the
# same things; *far*, only related ones (fog, skyscraper, bush, bus); *finer*, several kinds of a class; *coarser*, one
# word for several classes, which then count as one; *unrelated*, things that no frame shows, each counted as the class
# in whose place it is asked; *descriptions*. All are in `camvid_lang/assets/`. *own* should equal *trained*, and
# *unrelated* be near to chance; of four frames only large differences mean something. On the whole test split:
# `python -m camvid_lang vocabulary RUN --data DIR`.

# %%
if segmenter.experiment.epochs:
    found = segmenter.vocabulary_shift(test)["wordings"]
    ways = [way for way in ("anchored", "cosine", "clip") if way in found["own"]]
    print(f"{'mIoU in %':12}{'trained':>8}" + "".join(f"{way:>9}" for way in ways))
    for name, row in found.items():
        scores = "".join(f"{row[way]['miou']:9.1f}" for way in ways)
        print(f"{name:12}{row['trained']:8.1f}{scores}")

# %% [markdown]
# ## Exercises
#
# 1. Ask for `road, sky, xylophone`. What becomes of the pixels of all other things, and why? Tick *none of
#    these* and ask again.
# 2. Compare `person` with `person | man | woman | child` as one class of four prompts.
# 3. A run on a frozen CLIP (notebook 3): `ask` it for `shop window, door, road, sky, car`, and again with
#    `compare="clip"`. Which is right about the windows?
# 4. Split a class: `white car, red car, road, building, tree, sky`. Does the model know colours?
#
# <details><summary>Solutions, on drawn scenes (the package's `full-narrow-descriptions`, `load("demo")`; scene 0)</summary>
#
# 1. Each pixel becomes one of the three: "xylophone" takes 20 % of them, as the tiny CLIP, which does not know the word, has put
#    it next to "sign" (cosine 0.68). With *none of these* 62 % of the pixels are of no class, and
#    "xylophone" keeps 1.4 %.
# 2. No difference: 86 % of the pedestrian pixels are found both times, as all four words have a cosine above 0.99 with
#    "pedestrian". With a CLIP that knows more words the mean of several is steadier.
# 3. On drawn scenes the tiny CLIP knows no windows, so neither is. Try it with the thesis's CLIP.
# 4. It gives most car pixels to "white car", whatever their colour: both words are described by the same trained class, so their
#    agreement with a pixel is almost the same, and small differences of text embeddings that know no colours decide.
#
# </details>
#
# The same in a script, without the panel:
#
# ```python
# cosines = segmenter.cosines(image, {"road": ["road"], "vehicle": ["bus", "lorry"]})  # (2, H, W)
# ids = cosines.argmax(axis=0)
# ```
