# %% [markdown]
# # 4. The whole network, and SwiftNet beside it
#
# {{badge}}
#
# Now CLIP's own layers learn as well, at a quarter of the upsampler's rate; and SwiftNet, which
# knows no words, is trained for comparison. These are the longest runs: on a T4 expect the better
# part of a day for each at 400 epochs (an estimate; nobody has timed it on Colab yet), over as many
# sessions as it takes. The thesis got 62.42 % mIoU, 63.76 % with the narrow pyramid (table 7.5) and
# 64.52 % with SwiftNet (table 7.6), all on CamVid test.

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
# The choices are explained in notebook 01.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME, SETTINGS)

# %% [markdown]
# ## Why not always train everything?
#
# CLIP knows far more words than CamVid has classes, because of the pictures it has seen. Training
# its layers on 468 frames of one town buys accuracy on the 11 classes and may cost some of that
# knowledge; in notebook 06 you can ask both kinds of run the same words. To move gently, the encoder's learning rate is
# $10^{-4}$, against $4 \cdot 10^{-4}$ for the new layers, and its weight decay a quarter of theirs.
#
# The pyramid's width is the other choice of the thesis: 640 channels for each level, or 160
# (*narrow*): 15,254,272 parameters in the upsampler, or 13,038,592.

# %%
result = session.run("full-descriptions")
print(f"full-descriptions: mIoU {result['miou']:.2f} %")

# %%
result = session.run("full-narrow-descriptions")
print(f"full-narrow-descriptions: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.5")

# %% [markdown]
# ## SwiftNet: the same ladder without language
#
# SwiftNet single-scale (Oršić and Šegvić) has a ResNet-18, which in the thesis had learned on ImageNet
# (under `cpu` and `smoke` it starts from random weights, unless SETTINGS name a file of weights), the
# same pyramid and ladder with 128 channels, and a last layer with one output per class. Its answers
# are ids: it cannot be asked for "vehicle" when it learned "car". The drawing shows the thesis's sizes.

# %%
from camvid_lang.report.figures import architecture

architecture("swiftnet")

# %%
result = session.run("swiftnet")
print(f"swiftnet: mIoU {result['miou']:.2f} %")

# %%
session.tables("7.6")

# %%
from camvid_lang.report.figures import curves

names = ("full-descriptions", "full-narrow-descriptions", "swiftnet")
curves({name: found["history"] for name, found in session.finished().items() if name in names})

# %% [markdown]
# Next: **05 analysis**, all finished runs side by side.
