# %% [markdown]
# # 4. Training the whole network, and SwiftNet for comparison
#
# {{badge}}
#
# Now CLIP's layers are trained too, at a lower learning rate than the upsampler, and SwiftNet, a
# model without language, is trained for comparison. You will see tables 7.5 and 7.6 next to your
# scores: the thesis reports 62.42 % mIoU, 63.76 % with the narrow pyramid and 64.52 % with SwiftNet
# (CamVid test). These are the longest runs. On a T4 expect two and a half hours for each at 400 epochs
# (69 PFLOP at an assumed 8 TFLOP/s; `benchmarks/bench.py --t4`), and 6 minutes for SwiftNet, whose ResNet-18 and 128 channels
# need far less. They may take as many Colab sessions as they need: turn on `DRIVE`. The progress bar shows the time left.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RUNS = "full-descriptions, full-narrow-descriptions, swiftnet"  # @param {type: "string"}

# %%
# @title Rarely needed
FRESH = ""  # @param {type: "string"}
SETTINGS = ""  # @param {type: "string"}

# %% [markdown]
# [Notebook 1](01_data.ipynb) explains `PROFILE`, `DATA` and `DRIVE`, [notebook 2](02_baselines.ipynb) the others.
# With `cpu` and drawn scenes `full-narrow-descriptions` is trained here, in six minutes; the others come with the package.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RUNS, FRESH, SETTINGS)

# %% [markdown]
# ## Why not always train everything?
#
# CLIP knows far more words than CamVid has classes, because of the images it was trained on.
# Training its layers on 468 frames of one town can improve the accuracy on 11 classes (in the thesis it
# did with the narrow pyramid only: 62.99 % frozen, 62.42 trained, 63.76 trained and narrow) and may
# cost some of this knowledge; in [notebook 6](06_open_vocabulary.ipynb) you can compare both kinds of run on
# new words. To change the encoder only slowly, the thesis trains it at $10^{-4}$, against
# $4 \cdot 10^{-4}$ for the new layers, and with a quarter of their weight decay. (`cpu` trains the tiny encoder at half the
# upsampler's rate.)
#
# The other choice of the thesis is the width of the pyramid: 640 channels per level, or 160
# (*narrow*), which gives 15,254,272 or 13,038,592 parameters in the upsampler.

# %%
for name in [name for name in session.names if name.startswith("full")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.5")

# %% [markdown]
# ## SwiftNet: the same upsampler without language
#
# Single-scale SwiftNet (Oršić and Šegvić) has a ResNet-18 encoder, the same pyramid and upsampler
# with 128 channels, and a last layer with one output per class. Its outputs are fixed: nothing in it
# says that "vehicle" is near to "car". In the thesis the ResNet-18 was pretrained on
# ImageNet; with the profiles `cpu` and `smoke` it starts from random weights, unless `SETTINGS` names
# a file, as in `weights=resnet18.safetensors`. The drawing shows the thesis's sizes.

# %%
from camvid_lang.report.figures import architecture

architecture("swiftnet")

# %% [markdown]
# The two kinds of last layer, for one pixel with a vector of 128 numbers. SwiftNet's has weights for each class (in a
# 3x3 convolution; here for one pixel), which are trained and mean nothing outside this network. With language, the text
# embeddings take their place: the vector is in their space, or is projected to it where the upsampler is narrower, as
# here, and everything has length one. SwiftNet's loss is the cross-entropy of its logits, which no temperature divides.

# %%
import torch
from torch import nn
from torch.nn import functional as F

pixel, text = torch.randn(128), F.normalize(torch.randn(11, 640), dim=1)  # text: fixed, from CLIP
classify, project = nn.Linear(128, 11), nn.Linear(128, 640)  # trained
logits = classify(pixel)  # SwiftNet: any numbers, one for each of 11 fixed classes
cosines = text @ F.normalize(
    project(pixel), dim=0
)  # with language: in [-1, 1], for any number of texts
print("logits ", [round(value, 2) for value in logits.tolist()])
print("cosines", [round(value, 2) for value in cosines.tolist()])

# %%
for name in [name for name in session.names if not name.startswith("full")]:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.6")

# %%
from camvid_lang.report.figures import curves

curves({name: session.finished()[name]["history"] for name in session.names})

# %% [markdown]
# ## The same frame under the models
#
# Vermilion is wrong, black is void. Compare only runs of equal numbers of epochs, which are printed with each run above;
# those of the package differ.

# %%
from camvid_lang.report.figures import comparison
from camvid_lang.results import read_figures

kept = {name: read_figures(session.folder(name) / "figures.npz") for name in session.names}
comparison(kept)

# %% [markdown]
# ## Exercises
#
# 1. Set `SETTINGS` to `seed=1` and run again. By how much
#    does the mIoU change? Are the differences between the models larger than that?
# 2. Set `SETTINGS` to `encoder_lr=0`. How much is gained by training the encoder at all?
# 3. Which classes does the encoder's training improve? Compare with the frozen encoder of notebook 3, and look at thin
#    objects.
# 4. Set `SETTINGS` to `boundary_weight=8` (to 1 with `cpu` and the tiny CLIP, which has 8): how much do pixels near another
#    class matter? After 5 epochs of `full-names` with the profile `cpu` on CamVid
#    (one seed, `benchmarks/camvid-ablation.json`), pole rose from 12.9 to 17.7 % IoU and the test mIoU from
#    54.3 to 54.6 %.
# 5. Set `SETTINGS` to `train_split=train, score_val=true`. The dotted curve is the mIoU on frames that
#    were not trained on: when does it stop rising?
#
# <details><summary>Solutions, on drawn scenes (`full-narrow-descriptions`)</summary>
#
# 1. By about a point. Even the same seed does not repeat it on another CPU, whose rounding errors differ: after 30 epochs it had
#    67.1 and 66.2 % (`benchmarks/demo-other-cpu.json`, on an earlier version of the scenes). Smaller differences between models
#    say nothing.
# 2. An encoder whose rate is 0 is a frozen one: the package's `frozen-descriptions` has 55.5 % after 18 epochs.
# 3. Thin ones: in the package's runs on descriptions pole has 16 % IoU frozen (18 epochs) and 31 trained (30), pedestrian 12 and
#    26, sign 53 and 63; road and sky gain one or two points.
# 4. With 1 the mIoU after 18 epochs is 57.7 % instead of 60.3, pole 14.8 instead of
#    22.1 (`benchmarks/exercises.json`).
# 5. For `full-names` on CamVid, profile `cpu` without weights: it rises from 25 to 52 % and hardly any more after epoch 19 of 24,
#    when the learning rate is low; val is one video, so it jumps by several points from epoch to epoch
#    (`benchmarks/camvid-tiny.json`).
#
# </details>
#
# Next: [5. Analysis](05_analysis.ipynb), all finished runs compared.
