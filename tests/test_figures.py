"""Figures: right colours, right numbers, nothing too small to read, and no pyplot state."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from camvid_lang.data.classes import CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.report import figures
from camvid_lang.report.legend import NONE_OF_THESE, class_colours
from camvid_lang.results import FigureData

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (2, 3, 24, 32), dtype=np.uint8)
LABELS = RANDOM.integers(0, 12, (2, 24, 32), dtype=np.uint8)
GUESSES = RANDOM.integers(0, 11, (2, 24, 32), dtype=np.uint8)
KEPT = FigureData(IMAGES, LABELS, GUESSES, ("one", "two"), {})
SCORES = {name: 5.0 * index for index, name in enumerate(CLASSES)}
HISTORY = [{"epoch": 1, "loss": 2.0, "miou": None}, {"epoch": 2, "loss": 1.0, "miou": 40.0}]
MODELS = ("bilinear", "adapter", "clip-upsampler", "swiftnet")
COSINES = {"Names": RANDOM.uniform(0, 1, (11, 11)), "Other": RANDOM.uniform(-1, 1, (11, 11))}


def printed(axes):
    return [item.get_text() for item in axes.texts]


MAKERS = {
    "frames_and_labels": lambda: figures.frames_and_labels(IMAGES, LABELS, ["one", "two"]),
    "predictions": lambda: figures.predictions(IMAGES, LABELS, GUESSES, ["one", "$\\frac{\udcff"]),
    "similarity": lambda: figures.similarity_matrices(COSINES),
    "curves": lambda: figures.curves({"a": HISTORY, "b": HISTORY, "still": []}),
    "no_curve": lambda: figures.curves({"a": HISTORY[:1]}, "full-descriptions during training"),
    "confusion": lambda: figures.confusion(np.eye(11) * 3),
    "class_matrix": lambda: figures.class_matrix({"a": SCORES, "b": {**SCORES, "sky": None}}, "a"),
    "comparison": lambda: figures.comparison({"a": KEPT, "b": None}),
    "class_frequencies": lambda: figures.class_frequencies({"train": range(12), "test": range(12)}),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_figure_has_legible_text_that_all_lies_inside(make):
    figure = make()
    inches = figure.get_size_inches()
    assert figure._repr_png_().startswith(b"\x89PNG")  # ticks are made when it is drawn
    sizes = {item.get_fontsize() for item in figure.findobj(Text) if item.get_text().strip()}
    assert min(sizes) >= 8
    (left, low), (right, high) = figure.get_tightbbox().get_points()
    assert min(left, low, inches[0] - right, inches[1] - high) >= -0.02
    assert pyplot.get_fignums() == []  # none has to be closed


def test_colour_labels_uses_the_palette_and_black_for_void():
    image = figures.colour_labels(np.array([[0, VOID, 10]]))
    assert image.tolist() == [[list(PALETTE[0]), [0, 0, 0], list(PALETTE[10])]]
    with pytest.raises(InputError, match="12 colours; give one colour per id"):
        figures.colour_labels([[12]])


def test_a_colour_has_the_same_name_in_all_legends():
    names = [*CLASSES, "void", NONE_OF_THESE, "lorry"]
    legend = dict(zip(names, class_colours(names), strict=True))
    assert len({*(legend | dict(figures.ERROR_LEGEND)).values()}) == len(names) + 2
    assert dict(figures.CAMVID_LEGEND).items() <= legend.items()


def test_errors_are_where_a_labelled_pixel_is_wrong():
    share, image = figures.errors([[0, 1], [2, VOID]], [[0, 1], [5, 4]])
    right, wrong, void = map(list, figures.ERROR_COLOURS.values())
    assert (share, image.tolist()) == ("66.7 % right", [[right, right], [wrong, void]])
    assert figures.errors([[VOID]], [[0]])[0] == "all void"


def test_a_comparison_has_the_runs_that_have_the_frame():
    runs = {"a": KEPT, "b": replace(KEPT, names=("one", "x")), "c": None, "d": KEPT}
    runs["e"] = replace(KEPT, labels=11 - LABELS)  # of another data set
    axes = figures.comparison(runs, 1).axes
    share, errors = figures.errors(LABELS[1], GUESSES[1])
    titles = [panel.get_title("left") for panel in axes]
    assert titles == ["two", "label", "a", share, "d", share, "", ""]
    np.testing.assert_array_equal(axes[5].images[0].get_array(), errors)


def test_similarity_matrices_share_one_scale_and_print_every_value():
    (one, two), figure = COSINES.values(), figures.similarity_matrices(COSINES)
    assert [axes.images[0].get_clim() for axes in figure.axes[:2]] == [(two.min(), 1.0)] * 2
    assert printed(figure.axes[1]) == [f"{value:.2f}" for value in two.ravel()]
    mean = (one.sum() - np.trace(one)) / 110
    assert figure.axes[0].get_title() == f"Names\nmean between classes {mean:.3f}"


def test_the_matrix_shows_measured_reference_and_missing_values():
    scores = {**dict.fromkeys(CLASSES, 10.0), "fence": None}
    axes = figures.class_matrix({"run": scores, "other": SCORES}, "other").axes[0]
    assert printed(axes)[CLASSES.index("fence")] == "–"
    assert printed(axes)[11:] == [f"{SCORES[name]:.1f}" for name in CLASSES]
    points = axes.images[0].get_array()
    assert (points[0, 0], points[1].any()) == (10.0, False)


def test_curves_leave_out_what_was_not_trained():
    (line,), (other,) = (axes.lines for axes in figures.curves({"a": HISTORY, "still": []}).axes)
    assert (line.get_label(), line.get_xydata().tolist()) == ("a", [[1, 2.0], [2, 1.0]])
    np.testing.assert_array_equal(other.get_xydata(), [[1, np.nan], [2, 40.0]])
    for axes in figures.curves({"a": HISTORY, "short": HISTORY[:1]}).axes:  # one epoch: none
        assert [line.get_label() for line in axes.lines] == ["a"]
    figure = figures.curves({"short": HISTORY[:1]})
    assert figure.axes[1].get_xlabel() == "epoch (a curve needs two)"
    assert [len(axes.lines) for axes in figure.axes] == [0, 0]
    with pytest.raises(InputError, match="no run was trained"):
        figures.curves({"still": []})


def test_curves_have_a_colour_for_each_family_and_dashes_for_descriptions():
    names = ("full-names", "full-descriptions", "full-narrow-descriptions", "frozen-names (a)")
    names += ("adapter-names", "bilinear-names", "swiftnet", "swiftnet-best", "best", "mine-1")
    figure = figures.curves(dict.fromkeys(names, HISTORY))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    families = {}
    for name, line in lines.items():
        families.setdefault(line.get_color(), set()).add(name.partition("-")[0])
        assert (line.get_linestyle() == "--") == ("descriptions" in name)
    assert sorted(map(len, families.values())) == [1] * 7
    looks = {(x.get_color(), x.get_linestyle(), x.get_linewidth()) for x in lines.values()}
    assert len(looks) == len(names)
    for axes in figure.axes:
        assert [tick for tick in axes.get_xticks() if tick != int(tick)] == []


def test_shares_add_up_to_a_hundred_and_are_empty_without_pixels():
    counts = np.zeros((11, 11))
    counts[0, :2] = 3, 1
    assert printed(figures.confusion(counts).axes[0]) == ["75", "25", *["0"] * 9, *["–"] * 110]
    bars = figures.class_frequencies({"train": range(12), "test": range(12)}).axes[0].patches
    assert [bar.get_width() for bar in bars[:12]] == pytest.approx(np.arange(12) / 0.66)


def svg(drawing):
    return ElementTree.fromstring(drawing._repr_svg_())


def words(drawing):
    return " ".join(svg(drawing).itertext())


def test_drawings_have_text_as_text_and_different_ids():
    drawings = [*map(figures.architecture, MODELS), figures.Drawing("iou")]
    elements = [element for drawing in drawings for element in svg(drawing).iter()]
    ids = [element.get("id") for element in elements if element.get("id")]
    assert len(ids) == len(set(ids)) >= 5  # several are shown in one notebook or page
    assert all(len(words(drawing).split()) > 20 for drawing in drawings)


def test_drawings_fit_a_narrower_page_and_nothing_is_beyond_their_edges():
    for drawing in (*map(figures.architecture, MODELS), figures.Drawing("iou")):
        root = svg(drawing)
        _, _, width, height = map(float, root.get("viewBox").split())
        assert root.get("width") == "100%"
        assert root.get("height") is None
        assert root.get("style").startswith("max-width:")  # on a wider page
        for text in root.iterfind("{*}text"):
            size, anchor = (text.get(k, root.get(k)) for k in ("font-size", "text-anchor"))
            for line in [*text] or [text]:
                x, length = float(line.get("x")), 0.6 * float(size) * len(line.text)
                assert x + length / (2 if anchor == "middle" else 1) <= width
                assert float(line.get("y")) <= height


def test_the_architecture_of_a_run_has_its_encoder_and_channels():
    encoder = {"name": "<net>", "channels": {"stages": [11, 12, 13, 14], "head": 14, "text": 77}}
    settings = {"width": 21, "spp_bottleneck": 22, "spp_width": 23}
    assert "1×1 to 512" in words(figures.architecture())
    for model in MODELS:
        text = words(figures.architecture(model, {"encoder": encoder, "settings": settings}))
        assert all(part in text for part in ("<net>", "11 channels", "14 channels"))
        assert ("11 × 77" in text) == (model != "swiftnet")
        assert ("23 per level" in text) == (model in ("clip-upsampler", "swiftnet"))


def test_the_iou_drawing_counts_what_it_draws():
    count = {}
    for shape in svg(figures.Drawing("iou")).iter():
        if shape.get("id", "").startswith("iou-") and shape.get("d"):
            runs = re.findall(r"M\d+ \d+h(\d+)v1h-\1z", shape.get("d"))
            assert shape.get("d").count("M") == len(runs)
            count[shape.get("id")[4:]] = sum(map(int, runs))
    tp, fp, fn = count["tp"], count["fp"], count["fn"]
    formula = f"= {tp} / ({tp} + {fp} + {fn}) = {tp / (tp + fp + fn):.3f}"
    assert formula in words(figures.Drawing("iou"))
    assert (tp + fp, tp + fn) == pytest.approx([np.pi * 11**2] * 2, rel=0.02)
