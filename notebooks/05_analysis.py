# %% [markdown]
# # 5. All runs side by side
#
# {{badge}}
#
# Reads what the other notebooks have finished, here or on Drive, and trains nothing: the thesis's
# tables 7.1 to 7.6 with your figures beside the published ones, scores of each class, what is taken
# for what, the best and the worst frames. A minute or two on a T4 (an estimate). The thesis's best
# language model reached 63.76 % mIoU and SwiftNet 64.52 % (table 7.6, CamVid test).

# %%
# {{setup}}

# %%
# @title Choices
PROFILE = "auto"  # @param ["auto", "thesis", "cpu", "smoke"]
DATA = "camvid"  # @param ["camvid", "scenes"] {allow-input: true}
DRIVE = False  # @param {type: "boolean"}
RESUME = True  # @param {type: "boolean"}

# %% [markdown]
# The choices are explained in notebook 01.

# %%
from camvid_lang.notebook import start

session = start(PROFILE, DATA, DRIVE, RESUME)
results = session.finished()
print(len(results), "finished run(s)")
print("\n".join(results) or "none; run notebook 02 or 03 first")
print(session.missing())

# %% [markdown]
# ## Tables 7.1 to 7.6
#
# A dash stands for a run that is not finished here, or a figure that the thesis does not give.

# %%
session.tables()

# %% [markdown]
# ## Each class
#
# The mean hides much. Large things with a colour of their own (sky, road) are easy; thin ones (pole)
# and rare ones (bicyclist) are where models differ. Diamonds are the thesis's figures (table 7.4);
# they are left out beside what was not measured on CamVid's whole test split.

# %%
from camvid_lang.report.figures import class_bars

if results:
    measured = {name: found["iou"] for name, found in results.items()}
    figure = class_bars(measured, session.published_iou())
else:
    figure = None
figure

# %% [markdown]
# ## Loss and mIoU while learning

# %%
from camvid_lang.report.figures import curves

learned = {name: found["history"] for name, found in results.items() if found["history"]}
curves(learned) if learned else None

# %% [markdown]
# ## What is taken for what
#
# Each row holds the pixels of one class, in percent, by the class that the best run gave them.

# %%
import numpy as np

from camvid_lang.report.figures import confusion

best = max(results, key=lambda name: results[name]["miou"] or 0) if results else None
figure = None
if best:
    matrix = np.array(results[best]["confusion"])[:11, :11]
    figure = confusion(matrix, title=f"{best}: where the pixels of each class went")
figure

# %% [markdown]
# ## The best and the worst frames
#
# By the share of labelled pixels that are right: the two best, then the two worst. In the last column
# vermilion is wrong and black is void. This loads the best run's weights and the test frames.

# %%
from camvid_lang.device import pick_device
from camvid_lang.evaluation import best_and_worst, predict
from camvid_lang.report.figures import predictions
from camvid_lang.run import load_run

figure = None
if best:
    device = pick_device()
    model = load_run(session.folder(best))[0].to(device)
    test = session.frames("test").to(device)
    chosen = best_and_worst(model, test)
    images, labels = test.images[chosen], test.labels[chosen]
    guesses = predict(model, images)
    names = [test.names[i] for i in chosen]
    title = f"{best}: its best frames, then its worst"
    figure = predictions(images.cpu(), labels.cpu(), guesses.cpu(), names, title=title)
figure

# %% [markdown]
# ## What to take from it
#
# In the thesis the best language model stays 0.76 points of mIoU behind SwiftNet (63.76 and 64.52 %,
# table 7.6): that is the price of comparing with words instead of learning fixed outputs. Names and
# descriptions differ by 0.17 points (63.16 and 62.99 %, table 7.3), and a trained upsampler is worth
# some 20 points over the adapter (table 7.2). Compare your tables above, if they were measured on
# CamVid with the thesis's encoder: they say so themselves.
#
# Next: **06 open vocabulary**, words that nobody trained.
