# %% [markdown]
# # 2. Two baselines: CLIP as it is, and a small adapter
#
# {{badge}}
#
# How well does CLIP's image encoder segment without a decoder? First nothing is trained, then two
# 1x1 convolutions. You will see the mIoU of four runs next to the thesis's (tables 7.1 and 7.2): it
# reports 21.19 and 23.93 % without training (names, descriptions), 43.41 and 43.87 % with the
# adapter, all on CamVid test. On a T4 the first two runs take about a minute each, and the adapter
# 7 minutes per run at the thesis's 240 epochs (3.5 PFLOP at an assumed 8 TFLOP/s;
# `benchmarks/bench.py --t4`); the profile `cpu` needs no GPU.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RUNS = "bilinear-names, bilinear-descriptions, adapter-names, adapter-descriptions"  # @param {type: "string"}
FRESH = ""  # @param {type: "string"}
SETTINGS = ""  # @param {type: "string"}

# %% [markdown]
# [Notebook 1](01_data.ipynb) explains the choices.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RUNS, FRESH, SETTINGS)

# %% [markdown]
# ## From one vector per image to one per position
#
# CLIP's image encoder, a ConvNeXt, ends in a feature map of stride 32: one vector for every 32x32
# pixels. CLIP averages the map over all positions, normalises the average (LayerNorm) and multiplies
# it by a matrix, which gives the vector of the image. **Leave out the averaging** and apply LayerNorm
# and matrix at each position: the result is a vector per position, in the same space as the texts.
#
# Upsampled bilinearly by 32, the map has a vector $u_p$ for every pixel $p$. The predicted class is
# the one whose text embedding $t_k$ has the largest cosine similarity:
#
# $$ \hat{k}_p = \arg\max_k \; \frac{u_p \cdot t_k}{\lVert u_p \rVert \, \lVert t_k \rVert} $$
#
# The drawing shows the sizes of the thesis's model.

# %%
from camvid_lang.report.figures import architecture

architecture("bilinear")

# %% [markdown]
# ## Without training: names, then descriptions

# %%
for name in [name for name in session.names if name.startswith("bilinear")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.1")

# %% [markdown]
# One vector for 32x32 pixels cannot follow a pole or a kerb. Moreover, CLIP was trained on the
# average only, so no single position ever had to match the text. For comparison, the score of a
# random class for each pixel of the same frames:

# %%
from camvid_lang.evaluation import chance_scores

print(f"chance: mIoU {chance_scores(session.frames('test'))['miou']:.2f} %")

# %% [markdown]
# ## Two trained layers
#
# The adapter adds two 1x1 convolutions, each followed by a ReLU, after the feature map. The idea is
# that of CLIP-Adapter, the details are the thesis's; CLIP itself is frozen. The loss is the
# **cross-entropy of the cosine similarities**. With the temperature $\tau = 0.01$, the probability of
# class $k$ at pixel $p$ and the loss are
#
# $$ P_p(k) = \frac{e^{\cos(u_p, t_k) / \tau}}{\sum_j e^{\cos(u_p, t_j) / \tau}}, \qquad
# L = -\frac{1}{|V|} \sum_{p \in V} \log P_p(k_p), $$
#
# where $V$ is the set of pixels that are not void, and $k_p$ the label of pixel $p$. Cosines lie
# between -1 and 1: without the division by a small $\tau$, the softmax could not come close to
# probabilities of 0 and 1. ($e^{x}$ is the exponential function here; in notebook 3, $e$ is the
# epoch.)

# %%
architecture("adapter")

# %% [markdown]
# `session.run` resumes an interrupted run and reads a finished one. Try it: interrupt the next cell
# (the stop button) and run it again. It continues after the last epoch that was saved. After a
# restart of the kernel, or tomorrow, *Run all* does the same.

# %%
for name in [name for name in session.names if name.startswith("adapter")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.2")

# %% [markdown]
# ## Predictions
#
# In the last column grey is correct, vermilion is wrong, and black is void.

# %%
from camvid_lang.report.figures import predictions
from camvid_lang.results import read_figures

shown = read_figures(session.folder(session.names[-1]) / "figures.npz")
predictions(shown.images[:2], shown.labels[:2], shown.predictions[:2], shown.names[:2])

# %% [markdown]
# ## Exercises
#
# 1. Which classes does CLIP find without any training, and which does it miss completely? Look at
#    `session.finished()["bilinear-names"]["iou"]`.
# 2. Set `SETTINGS` to `epochs=1` : how many epochs does the adapter need?
# 3. Replace `session.names[-1]` by `"bilinear-names"` in the cell above, and compare the outlines.
#
# Large regions are roughly right; outlines and small objects are not. What is missing is resolution,
# and this is what the upsampler of [3. Training with a frozen CLIP](03_frozen_training.ipynb) adds.
