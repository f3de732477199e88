# %% [markdown]
# # 5. All runs compared
#
# {{badge}}
#
# This notebook reads the finished runs of notebooks 2 to 4, on this machine or on Drive, and trains
# nothing. You will see tables 7.1 to 7.6 of the thesis next to your scores, the IoU of each class,
# the training curves, the confusion matrix, and the best and the worst frames. It needs at least one
# finished run and takes a minute or two on a T4 (an estimate, not yet timed). In the thesis the best
# language model reaches 63.76 % mIoU and SwiftNet 64.52 % (table 7.6, CamVid test).

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

session = start(PROFILE, DATA, DRIVE)
results = session.finished()
print("finished:", ", ".join(results))
print("missing:", session.missing() or "none")

# %% [markdown]
# ## Tables 7.1 to 7.6
#
# A dash stands for a run that is not finished, or for a score that the thesis does not report.

# %%
session.tables()

# %% [markdown]
# ## IoU of each class
#
# The mean hides large differences. Large regions of a typical colour (sky, road) are easy; thin
# objects (pole) and rare ones (bicyclist) are where models differ. Diamonds mark the scores of the
# thesis (table 7.4); they are shown for CamVid's whole test split only.

# %%
from camvid_lang.report.figures import class_bars

class_bars({name: result["iou"] for name, result in results.items()}, session.published_iou())

# %% [markdown]
# ## Loss and mIoU during training

# %%
from camvid_lang.report.figures import curves

trained = {name: result["history"] for name, result in results.items() if result["history"]}
curves(trained) if trained else None

# %% [markdown]
# ## Confusion matrix
#
# Each row shows how the best run classifies the pixels of one class, in percent of the row.

# %%
import numpy as np

from camvid_lang.report.figures import confusion

best = session.best()
matrix = np.array(results[best]["confusion"])[:11, :11]  # without void
confusion(matrix, title=f"{best}: predictions for the pixels of each class")

# %% [markdown]
# ## The best and the worst frames
#
# By the share of labelled pixels that are correct: first the two best frames, then the two worst. In
# the last column grey is correct, vermilion is wrong, and black is void. This cell loads the weights
# of the best run and the test frames.

# %%
from camvid_lang.device import pick_device
from camvid_lang.evaluation import best_and_worst, predict
from camvid_lang.report.figures import predictions
from camvid_lang.run import load_run

device = pick_device()
model = load_run(session.folder(best))[0].to(device)
test = session.frames("test").to(device)
chosen = best_and_worst(model, test)
images, labels = test.images[chosen], test.labels[chosen]
guesses = predict(model, images)
names = [test.names[i] for i in chosen]
title = f"{best}: the best frames, then the worst"
predictions(images.cpu(), labels.cpu(), guesses.cpu(), names, title=title)

# %% [markdown]
# ## Conclusions
#
# In the thesis the best language model is 0.76 points of mIoU behind SwiftNet (63.76 and 64.52 %,
# table 7.6): this is the price of comparing with text embeddings instead of training fixed outputs.
# Names and descriptions differ by 0.17 points (63.16 and 62.99 %, table 7.3), and a trained upsampler
# gains about 20 points over the adapter (table 7.2). Compare with your tables above, provided they
# were measured on CamVid with the thesis's encoder; the note above the tables says whether they were.
#
# Next: [6. Open vocabulary](06_open_vocabulary.ipynb), words that the model was not trained on.
