# %% [markdown]
# # 5. All runs compared
#
# {{badge}}
#
# This notebook reads the finished runs of notebooks 2 to 4, on this machine or on Drive, and trains
# nothing. You will see which model is best, the tables of the thesis next to your scores, in which
# classes the models differ, and the same frame under all models. It takes a minute or
# two. Where no run is finished yet, it shows those of the demo on drawn scenes, which the package
# carries.

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "quick", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}

# %% [markdown]
# [Notebook 1](01_data.ipynb) explains the choices. The runs of each profile and data set are kept
# apart: choose those that you trained with.

# %%
from camvid_lang.notebook import start
from camvid_lang.report.thesis import THESIS_ROWS

session = start(PROFILE, DATA, DRIVE, demo=True)
results = session.finished()
print("finished:", ", ".join(results))
print("missing:", ", ".join(name for name in THESIS_ROWS if name not in results) or "none")

# %% [markdown]
# ## Which model is best?
#
# A colour for each kind of model; grey has no language. A hatched bar was trained for fewer epochs than others that train
# the same part of the network, so it is not compared. Frozen and whole networks have different numbers of epochs in the
# thesis, too. Diamonds mark the scores of the thesis; they are shown for CamVid's whole test split only.

# %%
import numpy as np
from IPython.display import Markdown

from camvid_lang.report.figures import Canvas, family_colours
from camvid_lang.report.tables import banner, finding, short_runs

published = {} if banner(results) else {name: row["miou"] for name, row in THESIS_ROWS.items()}
short = short_runs(results)  # {run: "3 epochs, others up to 30"}
names = [f"{name} ({short[name]})" if name in short else name for name in results]
figure = Canvas("mIoU of each run", 8, 0.9 + 0.3 * len(names))
axes = figure.subplots()
bars = axes.barh(
    names, [r["miou"] or 0 for r in results.values()], color=family_colours(results).values()
)
for bar, name in zip(bars, results, strict=True):
    bar.set(hatch="///" if name in short else "", edgecolor="white")
axes.bar_label(bars, fmt="%.1f", padding=4)
axes.margins(x=0.1)
axes.plot([published.get(name, np.nan) for name in results], range(len(names)), "D", color="black")
axes.set(xlabel="mIoU (%)", ylim=(len(names) - 0.5, -0.5))
figure

# %%
Markdown(finding(results))

# %% [markdown]
# ## Tables 7.1 to 7.6
#
# A dash stands for a score that does not exist.

# %%
session.tables()

# %% [markdown]
# ## IoU of each class
#
# The mean hides large differences. Large regions of a typical colour (sky, road) are easy; thin
# objects (pole) and rare ones (bicyclist) are where models differ. The colour says how much a run is
# above (purple) or below (orange) the run in the title: the one without language, if it was trained as long, or else the
# best with language whose weights are here (the package has the scores of all its runs, but not all weights).

# %%
from camvid_lang.report.figures import class_matrix

best = session.best()
reference = "swiftnet" if "swiftnet" in results.keys() - short.keys() else best
class_matrix({name: result["iou"] for name, result in results.items()}, reference)

# %% [markdown]
# ## One frame under all models
#
# Coarse blobs are what CLIP's own map gives, one vector per 32x32 pixels; outlines come from the
# upsampler. Vermilion is wrong, black is void. `FRAME` chooses another of the frames that each run keeps.

# %%
from camvid_lang.report.figures import comparison
from camvid_lang.results import read_figures

FRAME = 0
kept = {name: read_figures(session.folder(name) / "figures.npz") for name in results}
comparison(kept, FRAME)

# %% [markdown]
# ## IoU by hand
#
# For one frame and one class, from the pixels of its label and of the prediction. The package counts all pairs of label and
# prediction in one matrix; row $k$ has the pixels of class $k$, column $k$ those predicted as $k$, the diagonal the
# correct ones.

# %%
import torch

from camvid_lang.data.classes import CLASSES
from camvid_lang.evaluation import confusion_matrix, scores

label, found = (torch.tensor(x[FRAME]) for x in (kept[best].labels, kept[best].predictions))
k = int(label[label != 11].bincount().argmax())  # the largest class of the frame
correct = ((label == k) & (found == k)).sum()
missed = ((label == k) & (found != k)).sum()
wrong = ((label != k) & (label != 11) & (found == k)).sum()  # 11 is void
print(
    f"{CLASSES[k]}: {correct} correct, {missed} missed, {wrong} wrong: IoU {100 * correct / (correct + missed + wrong):.2f} %"
)
print(f"the package: {scores(confusion_matrix([(found, label)]))['iou'][CLASSES[k]]:.2f} %")

# %% [markdown]
# ## What is confused with what?
#
# Each row shows how the same run, the best with language whose weights are here, classifies the pixels of one class, in
# percent of the row.

# %%
from camvid_lang.report.figures import confusion

matrix = np.array(results[best]["confusion"])[:11, :11]  # without void
confusion(matrix, title=f"{best}: predictions for the pixels of each class")

# %% [markdown]
# ## Loss and mIoU during training

# %%
from camvid_lang.report.figures import curves

trained = {name: result["history"] for name, result in results.items() if result["history"]}
curves(trained) if trained else None

# %% [markdown]
# ## The best and the hardest frames
#
# By the share of labelled pixels that are correct: first the two best frames, then the two hardest.
# This cell loads the weights of the best model with language, and the test frames.

# %%
from camvid_lang.report.figures import predictions

test, segmenter = session.frames("test"), session.segmenter(best)
ids = torch.stack(
    [torch.from_numpy(segmenter.segment(x.permute(1, 2, 0).numpy()).ids) for x in test.images]
)
labelled = test.labels != 11
share = ((ids == test.labels) & labelled).flatten(1).sum(1) / labelled.flatten(1).sum(1)
ranked = [i for i in share.argsort(descending=True).tolist() if not share[i].isnan()]
chosen = ranked[:2] + ranked[2:][-2:]
names = [f"{test.names[i]}: {100 * share[i]:.1f} %" for i in chosen]
title = f"{best}: the best frames, then the hardest"
predictions(test.images[chosen], test.labels[chosen], ids[chosen], names, title=title)

# %% [markdown]
# ## Compare with the thesis
#
# In the thesis the best language model is 0.76 points of mIoU behind SwiftNet (63.76 and 64.52 %,
# table 7.6). They differ in encoder, width and pretraining too, so this is not the price of text embeddings alone.
# Names and descriptions differ by 0.17 points (63.16 and 62.99 %, table 7.3), and a trained upsampler
# gains about 20 points over the adapter (table 7.2). The note above the tables says whether your runs
# were measured on CamVid with the thesis's encoder.
#
# ## Exercises
#
# 1. With runs of your own, set `FRAME` to 1, 2 or 3 (those of the package keep one frame only). In which frames do the models differ most, and in
#    which classes?
# 2. Replace `best` by `"swiftnet"` in the confusion matrix. Which confusions does language add?
# 3. Which classes have the most similar texts (figure 7.1 in notebook 1)? Find them in the matrix.
#
# <details><summary>Solutions, on drawn scenes</summary>
#
# 1. In scene 33, which all keep, 77 % of the pixels are right without training, 88 with a frozen encoder, 90 with all trained;
#    the difference is in outlines and thin things.
# 2. The package's SwiftNet had three epochs only, so the question cannot be answered with it: it takes 51 % of the pole pixels
#    for building, full-narrow above 43 %. Train both for as long.
# 3. With the tiny CLIP tree and building, at 0.33; 9 % of the tree pixels become building. But so do 22 % of the fence pixels,
#    at 0.04: what a thing looks like, and stands in front of, counts more than its text.
#
# </details>
#
# Next: [6. Open vocabulary](06_open_vocabulary.ipynb), words that the model was not trained on.
