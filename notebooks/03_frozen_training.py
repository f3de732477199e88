# %% [markdown]
# # 3. The language segmenter, CLIP frozen
#
# {{badge}}
#
# The thesis's model: CLIP's ConvNeXt as it is, a SwiftNet-style upsampler that learns, and the
# cosine of every pixel with the words. On a T4 expect some hours for each of the two runs at the
# thesis's 240 epochs (an estimate; nobody has timed it on Colab yet): turn on `DRIVE`, and when Colab
# hangs up, press *Run all* again tomorrow. The thesis got 63.16 % mIoU with names and 62.99 % with
# descriptions (table 7.3, CamVid test).

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
# `SETTINGS` replaces single settings, as in `epochs=60, batch_size=16`. Should a batch not fit the
# GPU's memory, the run stops and names the largest that does: write that number here.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME, SETTINGS)

# %% [markdown]
# ## The model (figure 5.1)
#
# The encoder gives four maps, at a quarter, an eighth, a sixteenth and a thirty-second of the
# picture's size. The coarsest knows most and sees least sharply. The upsampler
#
# 1. adds context from the whole picture: **spatial pyramid pooling** averages the coarsest map over
#    grids of 6, 3, 2 and 1 rows and puts the results beside it;
# 2. climbs a **ladder**: enlarge, add the encoder's map of that size (brought to the same number of
#    channels by a 1x1 convolution), blend with a 3x3 convolution; three times;
# 3. leaves a vector of 640 numbers for every 4x4 pixels, in the space of the text vectors.
#
# The drawing shows the thesis's sizes. The profiles `cpu` and `smoke` take a much smaller encoder,
# with text vectors of 64 numbers, and a ladder to match.

# %%
from camvid_lang.report.figures import architecture

architecture()

# %% [markdown]
# ## The cosine without the large map
#
# The thesis now enlarges the 640-channel map by 4, normalises every pixel and multiplies by the
# texts: 128 MB for one 224x224 crop, several times over in training, which is why it could train
# with only 6 crops at once. The same numbers can be had from the small map. Write $U$ for the
# bilinear enlargement. It is linear, so the numerator of the cosine is
#
# $$ U(f) \cdot t_k = U(f \cdot t_k), $$
#
# and 11 channels are enlarged instead of 640. The denominator is the length of a weighted sum of (up to)
# four neighbours with weights $w_i$,
#
# $$ \Big\lVert \sum_i w_i f_i \Big\rVert^2 = \sum_i \sum_j w_i w_j \, (f_i \cdot f_j), $$
#
# which needs only the dot products of each cell with itself and its neighbours to the right, below
# and across: 5 maps instead of 640. `camvid_lang/cosine.py` does this, and its tests hold values and
# gradients against the plain way. Forward and backward, the best of three, measured right here:

# %%
import time

import torch
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference

features = torch.randn(1, 640, 56, 56, requires_grad=True)
text = F.normalize(torch.randn(11, 640), dim=1)
results = {}
for title, head in (
    ("the plain way", cosine_logits_reference),
    ("from the small map", cosine_logits),
):
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = head(features, text, (224, 224))
        result.sum().backward()
        seconds.append(time.perf_counter() - began)
    results[title] = result.detach()
    print(f"{title:20} {1000 * min(seconds):7.1f} ms")
one, other = results.values()
print(f"largest difference   {float((one - other).abs().max()):.1e}")

# %% [markdown]
# ## Training
#
# Adam on random crops (224x224 in the thesis), flipped half of the time; nothing else is varied. The
# learning rate $\eta$ falls along a cosine from epoch to epoch, from $\eta_0$ ($4 \cdot 10^{-4}$ in
# the thesis) towards 1/400 of that. In epoch $e = 0, \dots, E - 1$ of $E$ it is
#
# $$ \eta_e = \eta_0 \left( \rho + (1 - \rho) \, \frac{1 + \cos(\pi e / E)}{2} \right),
# \qquad \rho = \tfrac{1}{400}. $$
#
# After every epoch, and every five minutes, all that the next step depends on is saved: weights,
# optimizer, schedule, random states, the order of the frames. So a run that was killed goes on to
# the same weights as one that was not. The first line tells what this run uses, and the bar shows
# the time that is left. With `DRIVE` on, Drive is brought up to date every minute.

# %%
result = session.run("frozen-names")
print(f"frozen-names: mIoU {result['miou']:.2f} %")

# %%
result = session.run("frozen-descriptions")
print(f"frozen-descriptions: mIoU {result['miou']:.2f} %")

# %% [markdown]
# ## Results

# %%
session.tables("7.3")

# %%
from camvid_lang.report.figures import curves

curves({name: found["history"] for name, found in session.finished().items() if "frozen" in name})

# %%
from camvid_lang.report.figures import predictions
from camvid_lang.results import read_figures

shown = read_figures(session.folder("frozen-names") / "figures.npz")
predictions(shown.images, shown.labels, shown.predictions, shown.names)

# %% [markdown]
# Next: **04 full training**, where CLIP's own layers learn too.
