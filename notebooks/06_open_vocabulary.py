# %% [markdown]
# # 6. Open vocabulary: any words
#
# {{badge}}
#
# A network with fixed outputs cannot do this: query a finished run for "vehicle", "lorry" or "shop
# window", words it was not trained on. You will see which classes new words are similar to, the
# segmentation of an image by such words, and a panel to try your own images and words. It takes a
# minute, and an image a second or two even without a GPU. Where no run is finished yet (notebooks 2 to
# 4), a small model trained on drawn scenes answers, which the package carries, or on a GPU the
# thesis's CLIP, untrained. The thesis gives open vocabulary as the reason for the whole approach but
# does not measure it; the last section does.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RUN = ""  # @param ["", "frozen-names", "frozen-descriptions", "full-descriptions", "full-narrow-descriptions", "adapter-names", "adapter-descriptions", "bilinear-names"] {allow-input: true}

# %% [markdown]
# `RUN` is the finished run to query, by default the best. The CLIP of a `frozen-*` run has kept all that it knew; that of a
# `full-*` run was trained on CamVid and may have forgotten other things. Compare them.
# [Notebook 1](01_data.ipynb) explains the other choices.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, demo=True)
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
# millions of captions. The tiny CLIP of `cpu` and `smoke` was trained on captions of drawn scenes, in
# which a car is sometimes called a vehicle or a lorry, so these words are not new to it: it
# demonstrates the method, not the knowledge of CLIP.

# %%
from camvid_lang.notebook import similar

similar(segmenter, ["vehicle", "lorry", "shop window", "street lamp", "grass"])

# %% [markdown]
# ## One image, new words
#
# Training fixes the cosines of a pixel with the classes of the run only; with any other word they are
# as good as arbitrary. So words are compared through these classes (*anchored*): pixel and word are
# both described by how similar they are to the trained classes, and these descriptions are compared.
# `compare="cosine"` is the thesis's way, the largest cosine. For things that training never showed, a
# run on a frozen CLIP has `compare="clip"`: words that are not of training are compared with CLIP's
# own coarse map, and training divides among its classes what CLIP leaves to them.
#
# The heat maps show the probability of each class among those given: bright where it matches better
# than all others. `none_below=0.5` adds "none of these" for pixels that are more likely of another
# trained class than of any of the words.

# %%
from IPython.display import display

from camvid_lang.notebook import ask

test = session.frames("test", 4)
images = dict(zip(test.names, test.images.permute(0, 2, 3, 1).numpy(), strict=True))
for figure in ask(segmenter, images[test.names[0]], "road, vehicle, tree, house, sky, person"):
    display(figure)

# %%
if segmenter.experiment.epochs:  # an untrained model has no trained classes
    for figure in ask(segmenter, images[test.names[0]], "street, vegetation", none_below=0.5):
        display(figure)

# %% [markdown]
# ## Your turn
#
# Choose a frame or upload an image, write the classes separated by commas, and press *segment*.
# `car | lorry` is one class with two prompts, whose embeddings are averaged. *save* writes the ids and
# the blended image to the folder `segmented`. A word that is not similar to any class of the run is
# reported: the model gives it pixels all the same.

# %%
from camvid_lang.notebook import panel

panel(segmenter, images)

# %% [markdown]
# ## Other words, measured
#
# The same frames with the words of training, with the class names, with synonyms, with words of another
# data set, with finer and coarser words, and with words for things that no frame shows: mIoU of each way
# of comparison. On the whole test split: `python -m camvid_lang vocabulary RUN --data DIR`.

# %%
from camvid_lang.notebook import other_words

other_words(segmenter, test) if segmenter.experiment.epochs else None

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
# The same in a script, without the panel:
#
# ```python
# cosines = segmenter.cosines(image, {"road": ["road"], "vehicle": ["bus", "lorry"]})  # (2, H, W)
# ids = cosines.argmax(axis=0)
# ```
