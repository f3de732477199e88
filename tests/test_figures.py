"""Figures: right colours, right numbers, nothing too small to read, and no pyplot state."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.report import figures

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (2, 3, 24, 32), dtype=np.uint8)
LABELS = RANDOM.integers(0, 12, (2, 24, 32), dtype=np.uint8)
GUESSES = RANDOM.integers(0, 11, (2, 24, 32), dtype=np.uint8)
SCORES = {name: 5.0 * index for index, name in enumerate(CLASSES)}
HISTORY = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "miou": 40.0}]


def vectors(seed):
    values = np.random.default_rng(seed).normal(size=(11, 20))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def texts(figure):
    return [item.get_text() for item in figure.findobj(Text) if item.get_text().strip()]


MAKERS = {
    "frames_and_labels": lambda: figures.frames_and_labels(IMAGES, LABELS, ["one", "two"]),
    "predictions": lambda: figures.predictions(IMAGES, LABELS, GUESSES, ["one", "two"]),
    "iou_venn": figures.iou_venn,
    "similarity": lambda: figures.similarity_matrices({"Names": vectors(0), "Other": vectors(1)}),
    "class_bars": lambda: figures.class_bars({"a": SCORES, "b": SCORES}, {"a": SCORES}),
    "curves": lambda: figures.curves({"a": HISTORY, "b": HISTORY, "still": []}),
    "confusion": lambda: figures.confusion(np.eye(11) * 3),
    "class_frequencies": lambda: figures.class_frequencies({"train": range(12), "test": range(12)}),
    **{kind: lambda kind=kind: figures.architecture(kind) for kind in figures.KINDS},
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_has_a_title_and_legible_text_that_all_lies_inside(name):
    figure = MAKERS[name]()
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    inches = figure.get_size_inches()
    assert picture.size == pytest.approx(100 * inches, abs=1)
    assert len(np.unique(np.asarray(picture.convert("L")))) > 3
    assert figure.get_suptitle()
    sizes = {item.get_fontsize() for item in figure.findobj(Text) if item.get_text().strip()}
    assert min(sizes) >= 8
    drawn = figure.get_tightbbox()
    assert min(drawn.x0, drawn.y0) >= -0.02
    assert drawn.x1 <= inches[0] + 0.02
    assert drawn.y1 <= inches[1] + 0.02


def test_pyplot_is_not_imported():
    code = "import sys, camvid_lang.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colour_labels_uses_the_palette_and_black_for_void():
    picture = figures.colour_labels(np.array([[0, VOID], [3, 10]]))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [list(PALETTE[0]), [0, 0, 0]],
        [list(PALETTE[3]), list(PALETTE[10])],
    ]


@pytest.mark.parametrize("label", [np.array([[12]]), np.array([[-1]]), np.zeros((1, 2, 2), int)])
def test_colour_labels_refuses_what_has_no_colour(label):
    with pytest.raises(InputError, match=r"colour_labels: .*give") as caught:
        figures.colour_labels(label)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 64))
def test_palette_has_n_different_colours(n):
    colours = figures.palette(n)
    assert len(colours) == len(set(colours)) == n
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    assert (0, 0, 0) not in colours


def test_gallery_takes_any_list_of_classes():
    colours = (*figures.palette(3), (0, 0, 0))
    label = np.array([[[0, 1], [2, 3]]])
    image = np.zeros((1, 3, 2, 2), np.uint8)
    figure = figures.frames_and_labels(image, label, ["x"], ("car", "bus", "dog", "void"), colours)
    assert {"car", "bus", "dog", "void", "x"} <= set(texts(figure))
    shown = figure.axes[1].images[0].get_array()
    assert shown[0, 1].tolist() == list(colours[1])


def test_predictions_states_the_share_of_right_pixels_without_void():
    label = np.array([[0, 1], [2, VOID]])
    guess = np.array([[0, 1], [5, 4]])
    image = np.zeros((1, 3, 2, 2), np.uint8)
    figure = figures.predictions(image, label[None], guess[None], ["x"])
    assert "errors: 66.7 % right" in texts(figure)
    errors = figure.axes[3].images[0].get_array()
    assert errors[1, 1].tolist() == [0, 0, 0]
    assert errors[0, 0].tolist() == errors[0, 1].tolist() != errors[1, 0].tolist()
    void = np.full((1, 2, 2), VOID)
    assert "errors: all void" in texts(figures.predictions(image, void, guess[None], ["x"]))


def test_iou_drawing_counts_what_it_draws():
    figure = figures.iou_venn()
    mesh = figure.axes[0].collections[0].get_array()
    fp, tp, fn = (int((mesh == region).sum()) for region in (1, 2, 3))
    assert f"TP\nboth\n{tp}" in texts(figure)
    formula = next(text for text in texts(figure) if text.startswith("IoU = "))
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*", formula)]
    assert numbers[:4] == [tp, tp, fp, fn]
    assert numbers[4] == pytest.approx(tp / (tp + fp + fn), abs=5e-4)
    circle = np.pi * 11**2
    assert tp + fp == pytest.approx(circle, rel=0.02)
    assert tp + fn == pytest.approx(circle, rel=0.02)


def test_similarity_matrices_share_one_scale_and_print_every_value():
    one, two = vectors(0), vectors(1)
    figure = figures.similarity_matrices({"Names": one, "Descriptions": two})
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (min(one.min(), two.min()), 1.0)
    printed = [item.get_text() for item in figure.axes[1].texts]
    assert printed == [f"{value:.2f}" for value in two.ravel()]
    mean = (one.sum() - 11) / 110
    assert figure.axes[0].get_title() == f"Names\nmean between classes {mean:.3f}"
    with pytest.raises(InputError, match="11 names"):
        figures.similarity_matrices({"Names": np.eye(3)})


def test_class_bars_shows_measured_thesis_and_missing():
    scores = {**SCORES, "fence": None}
    figure = figures.class_bars({"run": scores}, {"run": {"pole": 23.08, "sky": None}})
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [scores[name] or 0 for name in CLASSES]
    assert axes.texts[CLASSES.index("fence")].get_text() == "–"
    assert axes.lines[0].get_xydata().tolist() == [[23.08, CLASSES.index("pole")]]
    with pytest.raises(InputError, match="no run"):
        figures.class_bars({})


def test_curves_leave_out_what_did_not_learn_and_panels_without_values():
    figure = figures.curves({"a": HISTORY, "still": []})
    loss, miou = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert miou.lines[0].get_xydata().tolist() == [[2, 40.0]]
    assert [line.get_label() for line in loss.lines] == ["a"]
    assert len(figures.curves({"a": HISTORY[:1]}).axes) == 1
    assert figures.curves({"a": [{"epoch": 1}]}).axes[0].get_ylabel() == "cross-entropy loss"
    with pytest.raises(InputError, match="no run has a history"):
        figures.curves({"still": []})


def test_confusion_is_percent_of_each_row_and_empty_without_pixels():
    figure = figures.confusion([[3, 1], [0, 0]], ("a", "b"))
    assert [item.get_text() for item in figure.axes[0].texts] == ["75", "25", "–", "–"]
    assert figure.axes[0].get_xlabel() == "predicted class"


def test_class_frequencies_add_up_to_a_hundred():
    counts = RANDOM.integers(1, 100, 12)
    figure = figures.class_frequencies({"train": counts, "test": counts[::-1]})
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths[:12]) == pytest.approx(100)
    assert widths[0] == pytest.approx(100 * counts[0] / counts.sum())
    with pytest.raises(InputError, match="no split"):
        figures.class_frequencies({})


def test_architecture_names_the_channels_and_refuses_another_kind():
    words = " ".join(texts(figures.architecture("ladder", levels=160)))
    for part in ("stride 32", "1024 channels", "160 per level", "1×1 to 512", "11 × 640"):
        assert part in words
    assert "text vectors" not in " ".join(texts(figures.architecture("swiftnet")))
    with pytest.raises(InputError, match="choose one of bilinear"):
        figures.architecture("transformer")
