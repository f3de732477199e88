# %% [markdown]
# # 2. Two baselines: CLIP as it is, and a thin adapter
#
# {{badge}}
#
# How far does CLIP's image network get on single pixels, without a decoder? First with nothing
# learned at all, then with two small layers. On a T4 the first takes about a minute and the second
# perhaps half an hour at the thesis's 240 epochs (estimates). The thesis got 21.19 and 23.93 % mIoU
# with nothing learned (names, descriptions; table 7.1), and 43.41 and 43.87 % with the adapter
# (table 7.2), all on CamVid test.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RESUME = True  # @param {type: "boolean"}
SETTINGS = ""  # @param {type: "string"}

# %% [markdown]
# The choices are explained in notebook 01. `SETTINGS` replaces single settings of what is trained, as in
# `epochs=60`.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME, SETTINGS)

# %% [markdown]
# ## From one vector per picture to one per place
#
# CLIP's image network, a ConvNeXt, ends in a map: for every 32x32 pixels one vector. CLIP averages
# the map, normalises the average (LayerNorm) and multiplies it by a matrix, which gives the one
# vector of the picture. **Leave out the averaging**, apply LayerNorm and matrix at every place, and
# there is a vector for every place, in the same space as the texts.
#
# Enlarged bilinearly by 32 (the drawing shows the thesis's sizes), the map gives every pixel $p$ a vector $u_p$. Its class is the one whose
# text vector $t_k$ has the largest cosine:
#
# $$ \hat{k}_p = \arg\max_k \; \frac{u_p \cdot t_k}{\lVert u_p \rVert \, \lVert t_k \rVert} $$

# %%
from camvid_lang.report.figures import architecture

architecture("bilinear")

# %% [markdown]
# ## Nothing learned: names, then descriptions

# %%
for name in ("bilinear-names", "bilinear-descriptions"):
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.1")

# %% [markdown]
# One vector for 32x32 pixels cannot follow a pole or a kerb, and CLIP was trained on the average
# only, so no single place ever had to be right. What guessing each pixel's class at random would
# score on the same frames:

# %%
from camvid_lang.evaluation import chance_scores

print(f"chance: mIoU {chance_scores(session.frames('test'))['miou']:.2f} %")

# %% [markdown]
# ## Two learned layers
#
# The adapter puts two 1x1 convolutions, each followed by a ReLU, behind the map, after the idea of
# CLIP-Adapter and as the thesis words it; CLIP itself stays as it is. It learns by **cross-entropy on cosines**. With the temperature $\tau = 0.01$ the probability of class
# $k$ at pixel $p$ and the loss are
#
# $$ P_p(k) = \frac{e^{\cos(u_p, t_k) / \tau}}{\sum_j e^{\cos(u_p, t_j) / \tau}}, \qquad
# L = -\frac{1}{|V|} \sum_{p \in V} \log P_p(k_p), $$
#
# where $V$ are the pixels that are not void. Cosines lie between -1 and 1, so without the division
# by a small $\tau$ the softmax could never be sure of anything. ($e^{x}$ is the exponential function
# here; in notebook 03 $e$ counts epochs.)

# %%
architecture("adapter")

# %% [markdown]
# `session.run` goes on where an earlier run stopped, or reads back what is finished. Interrupt this
# cell in the middle (the stop button) and run it again: you will see it go on. After a restart of
# the kernel, or tomorrow, *Run all* does the same.

# %%
for name in ("adapter-names", "adapter-descriptions"):
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.2")

# %% [markdown]
# ## What it looks like

# %%
from camvid_lang.report.figures import predictions
from camvid_lang.results import read_figures

shown = read_figures(session.folder("adapter-names") / "figures.npz")
predictions(shown.images[:2], shown.labels[:2], shown.predictions[:2], shown.names[:2])

# %% [markdown]
# The last column is grey where the prediction is right, vermilion where it is wrong, black where
# nothing counts. Large regions are found roughly; outlines and small things are not: what is missing
# is resolution. That is what the upsampler of **03 frozen training** adds.
