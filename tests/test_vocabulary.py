"""Other words than a run was trained with: the three comparisons, and scores by wording."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import independent
from torch.nn import functional as F

from camvid_lang.cli import main
from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES
from camvid_lang.data.words import Wording, wordings
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.models.segmentation import LanguageModel
from camvid_lang.models.text import Vocabulary
from camvid_lang.results import read_results
from camvid_lang.segmenter import load


class Maps(torch.nn.Module):
    embeds_in_text_space = True

    def forward(self, images):
        return [images, images.flip(1)]  # of which the model compares the first, and CLIP the last


class Given(LanguageModel):
    def __init__(self, vectors):
        words = Vocabulary(CLASSES[: len(vectors)], (*zip(CLASSES),), vectors)
        super().__init__(Maps(), words, 0.01, train_encoder=False)

    def features(self, maps):
        return maps[0]


def unit(count, seed):
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)))


def cosines_of(images, words):
    return torch.einsum("nchw,kc->nkhw", F.normalize(images, dim=1), words)


@given(seed=st.integers(0, 1000), words=st.integers(1, 5), trained=st.integers(1, 4))
def test_agreement_is_the_sum_over_the_trained_classes(seed, words, trained):
    model = Given(unit(trained, seed))
    images, text = torch.randn(2, 8, 3, 5), unit(words, seed + 1)
    agreement, cosines, *_ = model.match(images, text)
    of_pixels = (cosines_of(images, model.text) / 0.01).softmax(dim=1)
    of_words = (text @ model.text.T / 0.01).softmax(dim=1)
    expected = sum(of_pixels[:, k, None] * of_words[:, k, None, None] for k in range(trained))
    assert torch.allclose(agreement, expected, atol=1e-4)
    assert torch.allclose(cosines, cosines_of(images, text), atol=1e-5)


def test_a_word_next_to_a_class_gets_its_pixels_although_its_cosines_are_arbitrary():
    asked = torch.tensor([[0.0, 0.2, 0.0, 0.98], [1.0, 0.0, 0.0, 0.0]])  # next to 1, and 0
    pixel = torch.tensor([0.4, 1.0, 0.0, -0.6]).view(1, 4, 1, 1)  # of class 1
    match = Given(torch.eye(4)[:3]).match(pixel, asked)
    assert [match.scores(0.01, x).argmax().item() for x in ("anchored", "cosine")] == [0, 1]


@given(seed=st.integers(0, 1000), asked=st.sets(st.integers(0, 5), min_size=1))
def test_words_that_were_not_trained_are_left_to_clip(seed, asked):
    text, asked = unit(6, seed), sorted(asked)
    model = Given(text[[0, 2, 3, 5]])
    images, words = torch.randn(2, 8, 3, 5), text[asked]
    found = model.match(images, words, clip=True).scores(0.01, "clip").softmax(dim=1)
    clip, own = (cosines_of(x, words) / 0.01 for x in (images.flip(1), images))
    clip, trained = clip.softmax(dim=1), torch.tensor([i not in (1, 4) for i in asked])
    of_trained = own[:, trained].softmax(dim=1) * clip[:, trained].sum(dim=1, keepdim=True)
    assert torch.allclose(found[:, trained], of_trained, atol=1e-3)
    assert torch.allclose(found[:, ~trained], clip[:, ~trained], atol=1e-3)


@pytest.fixture(scope="module")
def asked(finished):
    """A run, its test frames, and how it scores there with each wording."""
    segmenter = load(finished / "frozen-names", device="cpu")
    frames = load_camvid(finished / "data", "test")
    return segmenter, frames, segmenter.vocabulary_shift(frames)["wordings"]


def test_own_words_score_as_in_the_results_and_order_does_not_matter(asked, finished):
    results, shift = read_results(finished / "frozen-names" / "results.json"), asked[2]
    for way in ("anchored", "cosine", "clip"):
        assert shift["own"][way]["iou"] == pytest.approx(results["iou"], abs=0.05)
        assert shift["reversed"][way]["iou"] == pytest.approx(shift["names"][way]["iou"], abs=0.05)


@pytest.mark.parametrize("name", ["coarser", "finer"])
def test_classes_taken_as_one_are_scored_as_one(name, asked):
    (segmenter, frames, shift), wording, merge = asked, wordings()[name], np.arange(12)
    for first, *others in wording.groups:
        merge[others] = first
    phrases, ids = zip(*wording.phrases, strict=True)
    trained = predict(segmenter.model, frames.images)
    found = predict(segmenter.model, frames.images, segmenter.vocabulary(phrases).vectors)
    label, row = merge[frames.labels], shift[name]
    guesses = {row["trained"]: merge[trained], row["cosine"]["miou"]: np.array(ids)[found]}
    for miou, guess in guesses.items():
        assert independent([(guess, label)])["miou"] == pytest.approx(miou, abs=0.05)


def test_the_demo_keeps_its_synonyms_and_loses_unrelated_words(scenes):
    found = load("demo", device="cpu").vocabulary_shift(load_camvid(scenes, "test"))["wordings"]
    for name in ("names", "synonyms", "near", "finer"):
        assert found[name]["anchored"]["miou"] > 0.9 * found[name]["trained"], name
    assert found["unrelated"]["anchored"]["miou"] < 12


def test_a_wording_that_cannot_be_asked_is_refused(asked):
    many = {name: [f"{name} {i}" for i in range(24)] for name in CLASSES}
    with pytest.raises(InputError, match=r"264 phrases: .* at most 255"):
        Wording("", many)
    wording = Wording("", {name: [f"{name} " * 99] for name in CLASSES})
    for name, message in (("own", "is the wording of training"), ("long", "prompt 'sky sky")):
        with pytest.raises(InputError, match=f"'{name}'.* {message}"):
            asked[0].vocabulary_shift(asked[1], {name: wording})


def test_the_command_keeps_what_is_of_the_test_frames(finished, tmp_path, capsys):
    own = shutil.copytree(finished / "frozen-names", tmp_path / "run")
    path, file = tmp_path / "mine.json", own / "vocabulary.json"
    path.write_text(json.dumps({name: name for name in CLASSES} | {"tree": ["bush", "hedge"]}))
    command = ["vocabulary", str(own), "--data", str(finished / "data"), "--wording", str(path)]
    assert main([*command, "--limit", "2"]) == 0
    assert "from mine.json" in capsys.readouterr().out
    assert not file.exists()
    assert main(command) == 0
    assert set(json.loads(file.read_text())["wordings"]) == {"own", "mine"}
    file.write_text(file.read_text().replace('"iou"', '"other"'))
    assert main(["report", str(own)]) == 1
    assert "run/vocabulary.json" in capsys.readouterr().err
    path.write_text('{"tree+car": "tree"}')
    assert main(command) == 1
    assert "give each of the classes sky" in capsys.readouterr().err
