# %% [markdown]
# # 2. Two baselines: CLIP without training, and a small adapter
#
# {{badge}}
#
# How well does CLIP's image encoder segment without a decoder? First nothing is trained, then two
# 1x1 convolutions. You will see the mIoU of four runs next to the thesis's (tables 7.1 and 7.2): it
# reports 21.19 and 23.93 % without training (names, descriptions), 43.41 and 43.87 % with the
# adapter, all on CamVid test. (The tiny CLIP of `cpu` was trained on captions of such scenes as those below, so untrained
# it has more there.) On a T4 the first two runs take about a minute each, and the adapter
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

# %%
# @title Rarely needed
FRESH = ""  # @param {type: "string"}
SETTINGS = ""  # @param {type: "string"}

# %% [markdown]
# [Notebook 1](01_data.ipynb) explains `PROFILE`, `DATA` and `DRIVE`. `RUNS` are the experiments of this notebook: one
# that was interrupted is resumed, one that is finished is read. `FRESH` names those to start over, as in
# `adapter-names`; what they left is deleted, also on Drive, so empty the field before you leave. `SETTINGS` replaces
# settings of what is trained, as in `epochs=60, batch_size=4`; such runs are kept in folders of their own.
#
# An *epoch* is one pass over the training frames. With `cpu` and drawn scenes only `adapter-names` is trained here,
# in a minute; the runs on descriptions come with the package.

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
# ## One frame, step by step
#
# CLIP has two encoders. Both are loaded here, the image encoder as `DenseCLIPEncoder`, which leaves out the averaging
# and returns the maps of all four stages; the last has been through CLIP's head at each position.

# %%
import torch
from torch.nn import functional as F

from camvid_lang.data.words import class_prompts
from camvid_lang.models.encoder import DenseCLIPEncoder, load_clip
from camvid_lang.models.text import CLIPTextEncoder, embed

experiment = session.configure("bilinear-names")
clip = load_clip(experiment.encoder, experiment.weights)
text = embed(class_prompts("names"), CLIPTextEncoder(clip, experiment.encoder)).vectors.detach()
test = session.frames("test")
image, label = test.images[:1], test.labels[:1]  # one frame; pixels are integers in 0..255
with torch.no_grad():
    maps = DenseCLIPEncoder(clip)(image)

print("image  ", tuple(image.shape), "frames, channels, height, width")
for stride, features in zip((4, 8, 16, 32), maps, strict=True):
    print(f"map /{stride:<3}", tuple(features.shape))
print(
    "text   ",
    tuple(text.shape),
    "classes, channels; rows of length",
    text.norm(dim=1).mean().item(),
)

# %% [markdown]
# Upsample the coarsest map to the size of the image, divide each pixel's vector by its length, and multiply it by the text
# embeddings: this is the cosine similarity of every pixel with every class. The predicted class is the largest.

# %%
vectors = F.interpolate(maps[-1], size=image.shape[-2:], mode="bilinear")
cosines = torch.einsum("nchw,kc->nkhw", F.normalize(vectors, dim=1), text)
ids = cosines.argmax(dim=1)
print("vectors", tuple(vectors.shape), "cosines", tuple(cosines.shape), "ids", tuple(ids.shape))

row, column = image.shape[-2] // 2, image.shape[-1] // 2
at_centre = zip(class_prompts("names"), cosines[0, :, row, column].tolist(), strict=True)
print(f"pixel ({row}, {column}):", ", ".join(f"{name} {value:.3f}" for name, value in at_centre))

# %%
from camvid_lang.report.figures import predictions

predictions(image, label, ids.to(torch.uint8), [test.names[0]], "CLIP's own map, not trained")

# %% [markdown]
# ## All test frames: names, then descriptions
#
# `session.run` does the same for all frames of the test split and scores the result.

# %%
for name in [name for name in session.names if name.startswith("bilinear")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.1")

# %% [markdown]
# One vector for 32x32 pixels cannot follow a pole or a kerb. Moreover, CLIP was trained on the
# average only, so no single position ever had to match the text. For comparison, the score of
# guessing: a random class for each pixel of the same frames.

# %%
from camvid_lang.evaluation import confusion_matrix, scores

guesses = torch.randint(11, test.labels.shape)
print(f"chance: mIoU {scores(confusion_matrix([(guesses, test.labels)]))['miou']:.2f} %")

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
# probabilities of 0 and 1.

# %%
architecture("adapter")

# %% [markdown]
# In PyTorch the adapter is four lines, and the loss is one. Its layers start from random weights, so the loss is larger than
# that of CLIP's own map, until they are trained. If every class had the probability 1/11, the loss would be
# $\log 11 \approx 2.40$; a larger one means that wrong classes have the higher probabilities.

# %%
from torch import nn

width = text.shape[1]
adapter = nn.Sequential(
    nn.Conv2d(width, width, 1), nn.ReLU(),
    nn.Conv2d(width, width, 1), nn.ReLU(),
)  # fmt: skip
temperature = session.configure("adapter-names").temperature
for title, features in {
    "CLIP's own map": maps[-1],
    "adapter, untrained": adapter(maps[-1]),
}.items():
    vectors = F.interpolate(features, size=image.shape[-2:], mode="bilinear")
    cosines = torch.einsum("nchw,kc->nkhw", F.normalize(vectors, dim=1), text)
    loss = F.cross_entropy(cosines / temperature, label.long(), ignore_index=11)  # 11 is void
    print(f"{title:20} loss {loss.item():.2f} at temperature {temperature}")

# %% [markdown]
# `session.run` resumes an interrupted run and reads a finished one. Try it: interrupt the next cell (the stop button)
# and run it again. It continues after the last epoch that was saved. After a restart of the kernel, or tomorrow, *Run
# all* does the same. It first prints the settings other than the thesis's; notebook 3 says what they are for. With
# `cpu` the loss of the curves weighs pixels near other classes more, so it is larger than the one above. The mIoU of
# the curves is that of the training crops while the weights still change, so it can be below the mIoU on the test
# frames.

# %%
for name in [name for name in session.names if not name.startswith("bilinear")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.2")

# %% [markdown]
# ## Predictions
#
# In the last column grey is correct, vermilion is wrong, and black is void.

# %%
from camvid_lang.results import read_figures

shown = read_figures(session.folder(session.names[-1]) / "figures.npz")
predictions(shown.images[:2], shown.labels[:2], shown.predictions[:2], shown.names[:2])

# %% [markdown]
# ## Exercises
#
# 1. Which classes does CLIP find without any training, and which does it miss completely? Look at
#    `session.finished()["bilinear-names"]["iou"]`.
# 2. Set `SETTINGS` to `epochs=1`. How many epochs does the adapter need?
# 3. Replace `session.names[-1]` by `"bilinear-names"` in the cell above, and compare the outlines.
#
# <details><summary>Solutions, on drawn scenes</summary>
#
# 1. Large things: road 88 % IoU, sky 79, building 62, car 55. It misses poles (0.0 %), pedestrians (0.4) and signs (2.3): most of
#    them are narrower than the 32 pixels of a position.
# 2. After one epoch the mIoU is 35.9 % (`benchmarks/exercises.json`), below the 36.5 without training, after six 37.2: the layers start from random
#    weights, but there are few of them.
# 3. Both are blobs of 32 pixels; the adapter changes which class a blob has, not its outline.
#
# </details>
#
# Large regions are roughly right; outlines and small objects are not. What is missing is resolution,
# and this is what the upsampler of [3. Training with a frozen CLIP](03_frozen_training.ipynb) adds.
