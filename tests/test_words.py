"""Any words on any picture: phrases as a user types them, and cosines of a finished run."""

import time

import numpy as np
import pytest
import torch
from conftest import write_dataset

from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.models import text
from camvid_lang.run import load_run, run
from camvid_lang.segmenter import MAX_SIDE, Segmenter, read_phrases, shrink

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
    return Segmenter(folder / "frozen-names", "cpu")


@pytest.mark.parametrize(
    ("typed", "classes"),
    [
        ("road, shop window", {"road": ["road"], "shop window": ["shop window"]}),
        ("road\n car | lorry ,, ", {"road": ["road"], "car / lorry": ["car", "lorry"]}),
        ("road, road\nroad", {"road": ["road"]}),
        ("|car|, |", {"car": ["car"]}),
    ],
)
def test_phrases_are_read_as_typed(typed, classes):
    assert read_phrases(typed) == {name: phrases for name, phrases in classes.items() if phrases}


@pytest.mark.parametrize("typed", ["", " , \n,", "   "])
def test_no_phrase_is_told_with_an_example(typed):
    with pytest.raises(InputError, match="no phrase given: write some, as in: road"):
        read_phrases(typed)


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
    with torch.inference_mode():
        one, other = words.source.encode(["car", "lorry"])
    factor = 1 / np.sqrt(2 + 2 * float(one @ other))
    np.testing.assert_allclose(both, factor * (car + lorry), atol=1e-5)


def test_similarity_is_the_cosine_with_the_classes(words):
    found = words.similarity(["car", "tree"])
    assert found.shape == (2, 11)
    names = list(words.classes)
    assert names[0] == "sky"
    assert found[0, names.index("car")] == pytest.approx(1)
    assert found[0, names.index("tree")] == pytest.approx(found[1, names.index("car")])
    assert found[0, names.index("tree")] < 0.999


def test_the_text_tower_is_loaded_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CAMVID_LANG_CACHE", str(tmp_path))
    words, loads = Segmenter(folder / "frozen-names", "cpu"), []
    load = text.load_clip
    monkeypatch.setattr(text, "load_clip", lambda *a: loads.append(a) or load(*a))
    words.similarity(["van", "lorry"])
    words.cosines(PICTURE, {"shop": ["shop"]})
    words.cosines(PICTURE, {"kerb": ["kerb"]})
    assert len(loads) == 1


def test_an_answer_takes_a_second_or_two(words):
    big = np.random.default_rng(1).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    phrases = read_phrases("road, vehicle, tree, building, sky, person, shop window, lorry")
    words.cosines(PICTURE, read_phrases("bus"))  # loads the text tower, once
    started = time.perf_counter()
    words.cosines(big, phrases)
    assert time.perf_counter() - started < 5  # under 1 s where nothing else runs


def test_a_run_without_language_is_refused(folder):
    with pytest.raises(InputError, match=r"swiftnet.*knows its 11 classes only: choose one of"):
        Segmenter(folder / "swiftnet", "cpu")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no run \(no results.json"):
        Segmenter(tmp_path, "cpu")


def test_a_phrase_that_is_too_long_is_told(words):
    with pytest.raises(InputError, match="tokens: shorten it"):
        words.cosines(PICTURE, {"long": ["street " * 100]})
