# %% [markdown]
# # 6. Any words
#
# {{badge}}
#
# What a classifier over ids cannot do: ask a finished run for "vehicle", "lorry" or "shop window",
# words it was never trained on. Needs one finished run of notebook 02, 03 or 04; a picture takes a
# second or two even without a GPU. The thesis names this as the reason for the whole approach and
# shows no figures for it; neither do we claim any: look and judge.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RESUME = True  # @param {type: "boolean"}
RUN = "auto"  # @param ["auto", "frozen-names", "frozen-descriptions", "full-descriptions", "full-narrow-descriptions", "adapter-names"] {allow-input: true}

# %% [markdown]
# `RUN` is the finished run that is asked; `auto` takes `frozen-names` if it is there, whose CLIP kept
# all it knew, else the best by mIoU. Try a `full-*` run too: its CLIP has learned CamVid, and may have
# forgotten other things. The other choices are explained in notebook 01.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME)

# %% [markdown]
# ## A run that knows language
#
# `words` holds its model, loaded once.

# %%
from camvid_lang.segmenter import Segmenter

name = session.language_run(RUN)
words = Segmenter(session.folder(name))
print(f"asking {name}")

# %% [markdown]
# ## Why new words can work
#
# The model learned to give a pixel of a car a vector near the text vector of the class "car": of its
# name, or of its description, whichever the run was trained with. If "vehicle" lies near that among
# the texts, then it lies near those pixels too. So first ask how near it lies.
#
# What the numbers say depends on the text network. That of the profile `thesis` has read hundreds of
# millions of captions. The tiny CLIP of `cpu` and `smoke` has read some about drawn scenes, in which
# a car is at times called a vehicle or a lorry, so to it these words are not new at all: it shows how
# this works, not what CLIP knows.

# %%
from IPython.display import Markdown

from camvid_lang.notebook import similar

NEW = ["vehicle", "lorry", "shop window", "street lamp", "grass"]
Markdown(similar(words, NEW))

# %% [markdown]
# ## One picture, new words
#
# Every pixel takes the phrase with the largest cosine. The heat maps show each phrase's probability
# among those given, by the softmax of notebook 02: bright where it fits better than all the others.
# They cannot say "none of these", so add words for whatever else is to be seen.

# %%
from IPython.display import display

from camvid_lang.notebook import ask

test = session.frames("test", 4)
images = test.images.permute(0, 2, 3, 1).numpy()
pictures = dict(zip(test.names, images, strict=True))
for figure in ask(words, images[0], "road, vehicle, tree, house, sky, person"):
    display(figure)

# %% [markdown]
# ## Your turn
#
# Choose a frame or upload a picture, write phrases separated by commas (`car | lorry` makes one class
# of two phrases, whose vectors are averaged), and press *segment*.

# %%
from camvid_lang.notebook import panel

panel(words, pictures)

# %% [markdown]
# Without widgets, or in a script, the same is one call:
#
# ```python
# for figure in ask(words, picture, "road, shop window, bus | lorry"):
#     display(figure)
# ```
