"""Any words on any picture: phrases as a user types them, and cosines of a finished run."""

import time

import numpy as np
import pytest
import torch
from conftest import write_dataset

from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.runs import load_run, run
from camvid_lang.words import MAX_SIDE, Words, read_phrases, shrink

PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, its data set, and a run of swiftnet."""
    root = tmp_path_factory.mktemp("words")
    write_dataset(root / "data")
    for name in ("frozen-names", "swiftnet"):
        run(configure(name, "smoke"), root / "data", root / name, "cpu")
    return root


@pytest.fixture(scope="module")
def words(folder):
    return Words(folder / "frozen-names", "cpu")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("road, shop window", {"road": ["road"], "shop window": ["shop window"]}),
        ("road\n car | lorry ,, ", {"road": ["road"], "car / lorry": ["car", "lorry"]}),
        ("road, road\nroad", {"road": ["road"]}),
        ("|car|, |", {"car": ["car"]}),
    ],
)
def test_phrases_are_read_as_typed(text, classes):
    assert read_phrases(text) == {name: phrases for name, phrases in classes.items() if phrases}


@pytest.mark.parametrize("text", ["", " , \n,", "   "])
def test_no_phrase_is_told_with_an_example(text):
    with pytest.raises(InputError, match="no phrase given: write some, as in: road"):
        read_phrases(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((96, 128), (96, 128)),  # small ones stay
        ((360, 480), (360, 480)),  # CamVid
        ((3000, 4000), (384, 512)),
        ((4000, 100), (512, 32)),  # the encoder needs 32
        ((8, 8), (32, 32)),
    ],
)
def test_pictures_are_brought_to_a_size_that_is_quick(size, expected):
    assert shrink(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)
    assert max(expected) <= MAX_SIDE


def test_cosines_are_those_of_the_run_on_the_same_words(folder, words):
    names = ["road", "vehicle", "shop window"]
    found = words.cosines(PICTURE, {name: [name] for name in names})
    assert found.shape == (3, 96, 128)
    assert found.dtype == np.float32
    assert np.abs(found).max() <= 1 + 1e-5
    model, _ = load_run(folder / "frozen-names", {name: [name] for name in names})
    with torch.inference_mode():
        expected = model(torch.from_numpy(PICTURE).permute(2, 0, 1)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_phrases_of_a_class_are_averaged(words):
    both = words.cosines(PICTURE, {"car / lorry": ["car", "lorry"]})[0]
    car, lorry = words.cosines(PICTURE, {"car": ["car"], "lorry": ["lorry"]})
    # A unit mean of two unit vectors: the sum of their cosines, up to one positive factor.
    factor = 1 / np.sqrt(2 + 2 * words.likeness("car", "lorry"))
    np.testing.assert_allclose(both, factor * (car + lorry), atol=1e-5)


def test_likeness_is_a_cosine(words):
    assert words.likeness("car", "car") == pytest.approx(1)
    assert words.likeness("car", "tree") == pytest.approx(words.likeness("tree", "car"))
    assert words.likeness("car", "tree") < 0.999
    assert words.classes[0] == "sky"
    assert len(words.classes) == 11


def test_an_answer_takes_a_second_or_two(words):
    big = np.random.default_rng(1).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    phrases = read_phrases("road, vehicle, tree, building, sky, person, shop window, lorry")
    words.cosines(big, phrases)  # embeds the phrases, once
    started = time.perf_counter()
    words.cosines(big, phrases)
    assert time.perf_counter() - started < 5  # under 1 s where nothing else runs


def test_a_run_without_language_is_refused(folder):
    with pytest.raises(InputError, match=r"swiftnet.*knows its 11 classes only: choose one of"):
        Words(folder / "swiftnet", "cpu")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no run \(no results.json"):
        Words(tmp_path, "cpu")


def test_a_phrase_that_is_too_long_is_told(words):
    with pytest.raises(InputError, match="tokens: shorten it"):
        words.cosines(PICTURE, {"long": ["street " * 100]})
