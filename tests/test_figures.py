"""Figures: right colours, right numbers, nothing too small to read, and no pyplot state."""

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.report import figures
from camvid_lang.results import FigureData

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (2, 3, 24, 32), dtype=np.uint8)
LABELS = RANDOM.integers(0, 12, (2, 24, 32), dtype=np.uint8)
GUESSES = RANDOM.integers(0, 11, (2, 24, 32), dtype=np.uint8)
KEPT = FigureData(IMAGES, LABELS, GUESSES, ("one", "two"), {})
SCORES = {name: 5.0 * index for index, name in enumerate(CLASSES)}
HISTORY = [{"epoch": 1, "loss": 2.0, "miou": None}, {"epoch": 2, "loss": 1.0, "miou": 40.0}]
MODELS = ("bilinear", "adapter", "clip-upsampler", "swiftnet")


def vectors(seed):
    values = np.random.default_rng(seed).normal(size=(11, 20))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values @ values.T


def texts(figure):
    return [item.get_text() for item in figure.findobj(Text) if item.get_text().strip()]


MAKERS = {
    "frames_and_labels": lambda: figures.frames_and_labels(IMAGES, LABELS, ["one", "two"]),
    "predictions": lambda: figures.predictions(IMAGES, LABELS, GUESSES, ["one", "$\\frac{\udcff"]),
    "similarity": lambda: figures.similarity_matrices({"Names": vectors(0), "Other": vectors(1)}),
    "curves": lambda: figures.curves({"a": HISTORY, "b": HISTORY, "still": []}),
    "confusion": lambda: figures.confusion(np.eye(11) * 3),
    "miou_bars": lambda: figures.miou_bars({"a": 30.0, "swiftnet": None}, {"a": 60.0}),
    "class_matrix": lambda: figures.class_matrix({"a": SCORES, "b": {**SCORES, "sky": None}}, "a"),
    "comparison": lambda: figures.comparison({"a": KEPT, "b": None}),
    "confused": lambda: figures.confusion_and_similarity(np.ones((11, 11)), vectors(0)),
    "class_frequencies": lambda: figures.class_frequencies({"train": range(12), "test": range(12)}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_has_a_title_and_legible_text_that_all_lies_inside(name):
    figure = MAKERS[name]()
    image = Image.open(io.BytesIO(figure._repr_png_()))
    inches = figure.get_size_inches()
    assert image.size == pytest.approx(100 * inches, abs=1)
    assert len(np.unique(np.asarray(image.convert("L")))) > 3
    assert figure.get_suptitle()
    sizes = {item.get_fontsize() for item in figure.findobj(Text) if item.get_text().strip()}
    assert min(sizes) >= 8
    drawn = figure.get_tightbbox()
    assert min(drawn.x0, drawn.y0) >= -0.02
    assert drawn.x1 <= inches[0] + 0.02
    assert drawn.y1 <= inches[1] + 0.02


def test_pyplot_is_not_imported():
    code = "import sys, camvid_lang.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colour_labels_uses_the_palette_and_black_for_void():
    image = figures.colour_labels(np.array([[0, VOID], [3, 10]]))
    assert image.dtype == np.uint8
    assert image.tolist() == [
        [list(PALETTE[0]), [0, 0, 0]],
        [list(PALETTE[3]), list(PALETTE[10])],
    ]
    for wrong in (12, -1):
        with pytest.raises(InputError, match="12 colours; give one colour per id"):
            figures.colour_labels([[wrong]])


def test_predictions_give_the_share_of_right_pixels_without_void():
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


def test_similarity_matrices_share_one_scale_and_print_every_value():
    one, two = vectors(0), vectors(1)
    figure = figures.similarity_matrices({"Names": one, "Descriptions": two})
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (min(one.min(), two.min()), 1.0)
    printed = [item.get_text() for item in figure.axes[1].texts]
    assert printed == [f"{value:.2f}" for value in two.ravel()]
    mean = (one.sum() - 11) / 110
    assert figure.axes[0].get_title() == f"Names\nmean between classes {mean:.3f}"


def test_miou_bars_show_measured_thesis_and_missing_values():
    axes = figures.miou_bars({"a": 30.0, "swiftnet": None}, {"a": 60.0, "other": 50.0}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [30.0, 0]
    assert [item.get_text() for item in axes.texts] == ["30.0", "–"]
    assert axes.lines[0].get_xydata().tolist() == [[60.0, 0]]


def test_class_matrix_colours_the_difference_from_the_reference():
    scores = {**dict.fromkeys(CLASSES, 10.0), "fence": None}
    axes = figures.class_matrix({"run": scores, "other": SCORES}, "other").axes[0]
    printed = [item.get_text() for item in axes.texts]
    assert printed[CLASSES.index("fence")] == "–"
    assert printed[11:] == [f"{SCORES[name]:.1f}" for name in CLASSES]
    points = axes.images[0].get_array()
    assert points[0, 0] == 10.0
    assert not points[1].any()


def test_curves_leave_out_what_was_not_trained():
    loss, miou = figures.curves({"a": HISTORY, "still": []}).axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert miou.lines[0].get_xydata()[1].tolist() == [2, 40.0]
    assert np.isnan(miou.lines[0].get_xydata()[0, 1])
    assert [line.get_label() for line in loss.lines] == ["a"]
    with pytest.raises(InputError, match="no run was trained"):
        figures.curves({"still": []})


def test_confusion_is_percent_of_each_row_and_empty_without_pixels():
    counts = np.zeros((11, 11))
    counts[0, :2] = 3, 1
    printed = [item.get_text() for item in figures.confusion(counts).axes[0].texts]
    assert printed == ["75", "25", *["0"] * 9, *["–"] * 110]


def test_class_frequencies_add_up_to_a_hundred():
    counts = RANDOM.integers(1, 100, 12)
    figure = figures.class_frequencies({"train": counts, "test": counts[::-1]})
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths[:12]) == pytest.approx(100)
    assert widths[0] == pytest.approx(100 * counts[0] / counts.sum())


def test_confusion_is_compared_with_similarity_by_ranks():
    similarity = vectors(0)
    share = np.where(np.eye(11), 5000, 1 + np.round(100 * (similarity + 1)))
    title = figures.confusion_and_similarity(share, similarity).get_suptitle()
    assert float(title.rpartition(" ")[2]) > 0.9
    title = figures.confusion_and_similarity(share.max() - share + 1, similarity).get_suptitle()
    assert float(title.rpartition(" ")[2]) < -0.9


# Drawings


def svg(drawing):
    return ElementTree.fromstring(drawing._repr_svg_())


def test_drawings_are_well_formed_with_text_as_text_and_ids_of_their_own():
    drawings = [*map(figures.architecture, MODELS), figures.Drawing("iou")]
    ids = [e.get("id") for drawing in drawings for e in svg(drawing).iter() if e.get("id")]
    assert len(ids) == len(set(ids)) >= 5  # several are shown in one notebook or page
    for drawing in drawings:
        assert len("".join(svg(drawing).itertext()).split()) > 20
        assert not {"script", "image"} & {e.tag.rpartition("}")[2] for e in svg(drawing).iter()}


def test_the_architecture_has_the_thesis_channels():
    words = " ".join(svg(figures.architecture()).itertext())
    for part in ("stride 32", "1024 channels", "640 per level", "1×1 to 512", "11 × 640"):
        assert part in words
    assert "text embeddings" not in " ".join(svg(figures.architecture("swiftnet")).itertext())


def test_the_architecture_of_a_run_has_its_encoder_and_channels():
    channels = {"stages": [11, 12, 13, 14], "head": 14, "text": 77}
    settings = {"width": 21, "spp_bottleneck": 22, "spp_width": 23}
    result = {"encoder": {"name": "<net>", "channels": channels}, "settings": settings}
    for model in MODELS:
        words = " ".join(svg(figures.architecture(model, result)).itertext())
        for part in ("<net>", "11 channels", "14 channels"):
            assert part in words
        assert ("11 × 77" in words) == (model != "swiftnet")
        assert ("23 per level" in words) == (model in ("clip-upsampler", "swiftnet"))
        assert "640" not in words


def test_the_iou_drawing_counts_what_it_draws():
    root = svg(figures.Drawing("iou"))
    count = {}
    for element in root.iter():
        if element.get("id", "").startswith("iou-") and element.get("d"):
            runs = re.findall(r"M\d+ \d+h(\d+)v1h-\1z", element.get("d"))
            assert "".join(element.get("d").split()).count("M") == len(runs)
            count[element.get("id")[4:]] = sum(map(int, runs))
    tp, fp, fn = count["tp"], count["fp"], count["fn"]
    words = " ".join(root.itertext())
    formula = f"= {tp} / ({tp} + {fp} + {fn}) = {tp / (tp + fp + fn):.3f}"
    assert formula in words
    assert tp + fp == pytest.approx(np.pi * 11**2, rel=0.02)
    assert tp + fn == pytest.approx(np.pi * 11**2, rel=0.02)
