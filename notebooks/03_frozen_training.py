# %% [markdown]
# # 3. The language model, trained with a frozen CLIP
#
# {{badge}}
#
# The model of the thesis: CLIP's ConvNeXt, frozen; a SwiftNet-style upsampler, which is trained; and
# the cosine similarity of every pixel with the text embeddings. You will see how the cosine is
# computed without a large feature map, two training runs with their curves, and table 7.3 next to
# your scores. The thesis reports 63.16 % mIoU with names and 62.99 % with descriptions (CamVid test).
# On a T4 expect half an hour for each run at 240 epochs, and 4 minutes with the profile `quick`
# (14 and 1.8 PFLOP at an assumed 8 TFLOP/s; `benchmarks/bench.py --t4`); the progress bar shows the time left. Turn
# on `DRIVE`, and if Colab disconnects, press *Run all* again. Without a GPU, the profile `cpu` trains
# a smaller model.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RUNS = "frozen-names, frozen-descriptions"  # @param {type: "string"}

# %%
# @title Rarely needed
FRESH = ""  # @param {type: "string"}
SETTINGS = ""  # @param {type: "string"}

# %% [markdown]
# [Notebook 1](01_data.ipynb) explains `PROFILE`, `DATA` and `DRIVE`, [notebook 2](02_baselines.ipynb) the others.
# If a batch does not fit into the GPU's memory, choose a smaller one in `SETTINGS`, as in `batch_size=4`. With `cpu` and
# drawn scenes `frozen-names` is trained here, in three minutes; `frozen-descriptions` comes with the package.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RUNS, FRESH, SETTINGS)

# %% [markdown]
# ## The model (figure 5.1)
#
# The encoder has four feature maps, with strides 4, 8, 16 and 32. The coarsest has the most semantic
# information and the least resolution. The upsampler
#
# 1. adds context from the whole image: **spatial pyramid pooling** averages the coarsest map over
#    grids of 6, 3, 2 and 1 rows (of overlapping cells where the map has fewer) and concatenates the
#    results with the map;
# 2. repeats three times: **upsample** by 2, add the encoder's map of that size (projected to the same
#    number of channels by a 1x1 convolution), blend with a 3x3 convolution;
# 3. ends in a map of stride 4 whose vectors, 640 numbers each, lie in the space of the text
#    embeddings.
#
# The drawing shows the thesis's sizes. The profiles `cpu` and `smoke` use a much smaller encoder
# with text embeddings of 64 numbers, and an upsampler to match.

# %%
from camvid_lang.report.figures import architecture

architecture()

# %% [markdown]
# In PyTorch, for one batch of random crops: the encoder's maps, then the upsampler from the coarsest map to the finest.
# This is `Upsampler.forward`, written out.

# %%
import torch
from torch.nn import functional as F

from camvid_lang.device import pick_device
from camvid_lang.runs import build_model
from camvid_lang.training.loop import epoch_batches

device, experiment = pick_device(), session.configure("frozen-names")
model = build_model(experiment)[0].to(device).train()
train = session.frames("trainval").to(device)
images, labels = next(epoch_batches(train, experiment, epoch=0))
maps, upsampler = model.encode(images), model.upsampler

print("crops         ", tuple(images.shape))
print("encoder       ", *(tuple(x.shape) for x in maps))
x = upsampler.spp(maps[-1])
print("pyramid       ", tuple(x.shape))
for skip, project, blend in zip(maps[-2::-1], upsampler.skips, upsampler.blends, strict=True):
    x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
    x = blend(x + project(skip))
    print("upsample, skip", tuple(x.shape))

trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
frozen = sum(p.numel() for p in model.encoder.parameters())
print(f"{trained:,} trained parameters; the encoder has {frozen:,}, all frozen")

# %% [markdown]
# ## The cosine similarity without the large map
#
# The thesis upsamples the 640-channel map by 4, normalises every pixel and multiplies by the text
# embeddings. For one 224x224 crop this map takes 128 MB, several times over in training; this is why
# only 6 crops fitted into memory at once. The same values can be computed from the small map $f$.
# Let $U$ be bilinear upsampling. It is linear, so the numerator of the cosine is
#
# $$ U(f) \cdot t_k = U(f \cdot t_k), $$
#
# and 11 channels are upsampled instead of 640. The denominator is the length of a weighted sum of (at
# most) four neighbours with weights $w_i$,
#
# $$ \Big\lVert \sum_i w_i f_i \Big\rVert^2 = \sum_i \sum_j w_i w_j \, (f_i \cdot f_j), $$
#
# which needs only the dot products of each cell with itself and with its neighbours to the right,
# below, and on the two diagonals: 5 maps instead of 640. `camvid_lang.models.cosine` implements it,
# and its tests compare values and gradients with the direct computation. The cell times forward and backward
# pass on your machine (times are not stored with the outputs):

# %%
from torch.utils.benchmark import Timer

from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference

features = torch.randn(1, 640, 56, 56, device=device, requires_grad=True)
text = F.normalize(torch.randn(11, 640, device=device), dim=1)
heads = {"upsampled map": cosine_logits_reference, "small map": cosine_logits}
for title, head in heads.items():
    timer = Timer(
        "head(features, text, (224, 224)).sum().backward()",
        globals={"head": head, "features": features, "text": text},
        num_threads=torch.get_num_threads(),
    )
    print(f"{title:20} {1000 * timer.timeit(1).mean:7.1f} ms")
direct, exact = (head(features, text, (224, 224)).detach() for head in heads.values())
print(f"largest difference   {float((direct - exact).abs().max()):.1e}")

# %% [markdown]
# ## One step of training
#
# `model(images)` is all of the above: encoder, upsampler and cosines with the 11 text embeddings. The loss is that of
# notebook 2, the cross-entropy of the cosines divided by the temperature, without void. `backward` computes its
# gradient with respect to each trained parameter, and Adam changes them. Here are twenty steps on a single batch, with the
# profile's temperature and learning rate.

# %%
optimizer = torch.optim.Adam(model.decoder_parameters(), lr=experiment.lr)
for step in range(21):
    cosines = model(images)  # (N, 11, H, W), between -1 and 1
    loss = F.cross_entropy(cosines / model.temperature, labels.long(), ignore_index=11)
    right = (cosines.argmax(dim=1) == labels)[labels != 11].float().mean()
    if step % 5 == 0:
        print(
            f"after {step:2} steps: loss {loss.item():.3f}, {100 * right.item():.1f} % of the pixels right"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# ## Training
#
# `session.run` does the same for all batches of all epochs, with checkpoints, and scores the model. Adam, with an L2
# term of $10^{-4}$, is given random crops (224x224 in the thesis), half of them flipped horizontally; there is no
# other augmentation. The learning rate $\eta$ follows a cosine from $\eta_0$ ($4 \cdot 10^{-4}$ in the thesis)
# towards 1/400 of it. In epoch $n = 0, \dots, N - 1$ of $N$ it is
#
# $$ \eta_n = \eta_0 \left( \rho + (1 - \rho) \, \frac{1 + \cos(\pi n / N)}{2} \right),
# \qquad \rho = \tfrac{1}{400}. $$
#
# After each epoch a checkpoint is saved with weights, optimizer and gradient scaler; the crops of the
# next epoch depend on the seed and the epoch only. A run that was killed and resumed therefore ends
# with the same weights as one that was not. With `DRIVE` on, checkpoints are copied to Drive in the
# background.
#
# The thesis divides by 0.01. With few steps a larger temperature, higher learning rates that first rise linearly for
# `warmup_epochs`, and more weight for pixels near another class train faster; the profile `cpu` has these, beside a
# smaller model, smaller crops and fewer epochs. The next cell lists all that differs. A *boundary weight* $w$ other
# than 1 (the thesis's) weighs the pixels: with $P_p$, the probability of the label of pixel $p$, the loss is
#
# $$ L = - \frac{\sum_p b_p \, e^{(1 - P_p) / 2} \, \log P_p}{\sum_p b_p}, $$
#
# where $b_p$ is $w$, $\tfrac{3}{4} w$, $\tfrac{1}{2} w$ or $\tfrac{1}{4} w$, but at least 1, if another class is at
# most 1, 4, 16 or 32 pixels away, and else 1 (Oršić and Šegvić 2021). The twenty steps above leave it out.

# %%
from camvid_lang.experiments import EXPERIMENTS

here = experiment.settings()
print(f"{'setting':20}{'thesis':>30}{'here':>14}")
for key, value in EXPERIMENTS["frozen-names"].settings().items():
    if here[key] != value:
        print(f"{key:20}{value:>30}{here[key]:>14}")

# %%
for name in session.names:
    result = session.run(name)
    print(f"{name}: mIoU {result['miou']:.2f} %")

# %% [markdown]
# ## Results

# %%
session.tables("7.3")

# %%
from camvid_lang.report.figures import curves

curves({name: session.finished()[name]["history"] for name in session.names})

# %%
from camvid_lang.report.figures import predictions
from camvid_lang.results import read_figures

shown = read_figures(session.folder(session.names[0]) / "figures.npz")
predictions(shown.images, shown.labels, shown.predictions, shown.names)

# %% [markdown]
# ## Exercises
#
# 1. Set `SETTINGS` to `temperature=1`. What happens to the loss, and to the mIoU? Why can the loss not become small when the temperature is 1?
# 2. Stop the training in the middle (the stop button) and run the cell again. Which epoch comes next,
#    and is the curve the one that you would have got without the stop?
# 3. Set `SETTINGS` to a smaller `width` (128 with the profile `thesis`, 16 with `cpu`). How much mIoU do the wider maps gain,
#    and how much longer does an epoch take?
#
# <details><summary>Solutions, on drawn scenes</summary>
#
# 1. After 11 epochs (`benchmarks/exercises.json`; the run above has 12) the mIoU is 53.1 % at 0.07, the profile's temperature, and
#    51.9 at 1: dividing by $\tau$ does not change which cosine is largest, only the training differs. The loss changes much. Cosines lie
#    between -1 and 1, so at temperature 1 a class among 11 has a probability of at most $e^1 / (e^1 + 10\,e^{-1}) = 0.425$, and the
#    loss is at least $-\log 0.425 = 0.86$.
# 2. The one after the last checkpoint, and the curve is the same: the crops follow from seed and epoch.
# 3. After 11 epochs 49.7 % with 16 channels against 53.1 with 64.
#
# </details>
#
# Next: [4. Training the whole network](04_full_training.ipynb), where CLIP's layers are trained too.
