"""Other words than a run was trained with: comparison, scores, held-out classes."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from camvid_lang.cli import main
from camvid_lang.data.camvid import load_camvid
from camvid_lang.data.classes import CLASSES, VOID, WORDINGS, Wording
from camvid_lang.errors import InputError
from camvid_lang.evaluation import held_out_scores
from camvid_lang.experiments import configure
from camvid_lang.models.segmentation import COMPARE, Bilinear, LanguageModel
from camvid_lang.results import read_results
from camvid_lang.run import run
from camvid_lang.segmenter import load
from camvid_lang.training.checkpoint import Checkpoints


class Maps(torch.nn.Module):
    """An encoder whose last map is another than the one that is compared."""

    embeds_in_text_space = True

    def forward(self, images):
        return [images, images.flip(1)]


class Given(LanguageModel):
    """A model whose features are its images."""

    def features(self, maps):
        return maps[0]


def given_model(text, unseen=(), kind=Given):
    model = kind(Maps(), text, False, 0.01)
    model.unseen = unseen
    return model


def unit(count, width, seed):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


@given(seed=st.integers(0, 1000), words=st.integers(1, 5), unseen=st.sets(st.integers(0, 3)))
def test_agreement_is_the_sum_over_the_trained_classes(seed, words, unseen):
    unseen = sorted(unseen)[:2]
    model = given_model(unit(4, 8, seed), unseen)
    images, text = torch.randn(2, 8, 3, 5), unit(words, 8, seed + 1)
    agreement, cosines, *_ = model.match(images, text)
    anchors = model.text[[i for i in range(4) if i not in unseen]]
    pixels = F.normalize(images, dim=1)
    for n, y, x in [(0, 0, 0), (1, 2, 4)]:
        of_pixel = torch.softmax(anchors @ pixels[n, :, y, x] / 0.01, 0)
        for w in range(words):
            of_word = torch.softmax(anchors @ text[w] / 0.01, 0)
            assert agreement[n, w, y, x] == pytest.approx((of_pixel @ of_word).item(), abs=1e-4)
    assert torch.allclose(cosines, torch.einsum("nchw,kc->nkhw", pixels, text), atol=1e-5)


def test_a_word_next_to_a_class_gets_its_pixels_although_its_own_cosines_are_arbitrary():
    text = torch.eye(4)[:3]
    tree = F.normalize(torch.tensor([[0.0, 0.2, 0.0, 1.0]]))  # nearest to class 1
    sky = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    pixel = torch.tensor([0.4, 1.0, 0.0, -0.6]).view(1, 4, 1, 1)  # of class 1
    model = given_model(text)
    found = model.match(pixel, torch.cat([tree, sky]))
    assert found.scores(0.01, "cosine").argmax(1).item() == 1
    assert found.scores(0.01, "anchored").argmax(1).item() == 0
    untrained = given_model(text, kind=type("Untrained", (Given,), {"anchors": Bilinear.anchors}))
    found = untrained.match(pixel, torch.cat([tree, sky]))
    assert found.scores(0.01, "anchored").argmax(1).item() == 1


@given(seed=st.integers(0, 1000), asked=st.sets(st.integers(0, 5), min_size=1))
def test_words_that_were_not_trained_are_left_to_clip(seed, asked):
    text = unit(6, 8, seed)  # of which 1 and 4 are held out
    model, images, words = given_model(text, (1, 4)), torch.randn(2, 8, 3, 5), text[sorted(asked)]
    found = model.match(images, words, clip=True).scores(0.01, "clip").softmax(dim=1)
    clip, own = (
        torch.einsum("nchw,kc->nkhw", F.normalize(x, dim=1), words) / 0.01
        for x in (images.flip(1), images)
    )
    clip, trained = clip.softmax(dim=1), torch.tensor([i not in (1, 4) for i in sorted(asked)])
    assert torch.allclose(found[:, ~trained], clip[:, ~trained], atol=1e-3)
    if trained.any():
        expected = own[:, trained].softmax(dim=1) * clip[:, trained].sum(dim=1, keepdim=True)
        assert torch.allclose(found[:, trained], expected, atol=1e-3)
    assert torch.allclose(found.sum(dim=1), torch.ones(2, 3, 5), atol=1e-4)


@pytest.fixture(scope="module")
def shift(finished):
    segmenter = load(finished / "frozen-names", device="cpu")
    return segmenter.vocabulary_shift(load_camvid(finished / "data", "test"))["wordings"]


def test_own_words_score_as_in_the_results_and_order_does_not_matter(shift, finished):
    results = read_results(finished / "frozen-names" / "results.json")
    for way in ("anchored", "cosine", "clip"):
        assert shift["own"][way]["iou"] == pytest.approx(results["iou"], abs=0.05)
        assert shift["reversed"][way]["iou"] == pytest.approx(shift["names"][way]["iou"], abs=0.05)
    assert shift["synonyms"]["cosine"]["iou"] != shift["names"]["cosine"]["iou"]


def test_classes_taken_as_one_are_scored_as_one(shift, finished):
    model = load(finished / "frozen-names", device="cpu").model
    frames = load_camvid(finished / "data", "test")
    with torch.inference_mode():
        guess = model(frames.images).argmax(1).numpy()
    label = frames.labels.numpy()
    merge = np.arange(12)
    for key in WORDINGS["coarser"].words:
        ids = [CLASSES.index(name) for name in key.split("+")]
        merge[ids] = ids[0]
    guess, label, counted = merge[guess], merge[label], label != VOID
    iou = []
    for c in sorted(set(merge) - {VOID}):
        either = counted & ((guess == c) | (label == c))
        iou.append((either & (guess == label)).sum() / either.sum())
    assert len(iou) == 7
    assert shift["coarser"]["trained"] == pytest.approx(100 * np.mean(iou), abs=0.05)


def test_the_demo_keeps_its_synonyms_and_loses_unrelated_words():
    frames = load_scenes(6)
    found = load("demo").vocabulary_shift(frames)["wordings"]
    for name in ("names", "synonyms", "near", "finer"):
        assert found[name]["anchored"]["miou"] > 0.9 * found[name]["trained"], name
    assert found["unrelated"]["anchored"]["miou"] < 12


def load_scenes(count):
    from camvid_lang.data.camvid import Frames
    from camvid_lang.scenes.dataset import draw_scene, scene_seed

    drawn = [draw_scene(scene_seed(0, "test", i)) for i in range(count)]
    images, labels = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    return Frames(images.permute(0, 3, 1, 2), labels, tuple(map(str, range(count))))


def test_a_wording_names_every_class_once():
    words = {name: [name] for name in CLASSES}
    with pytest.raises(InputError, match=r"give each of the classes sky.*road\+pavement"):
        Wording("", {**words, "tree+car": ["thing"]})
    for wording in WORDINGS.values():
        assert sorted(i for ids in wording.groups for i in ids) == list(range(len(CLASSES)))


def test_the_command_keeps_what_is_of_the_test_frames(finished, tmp_path, capsys):
    own = shutil.copytree(finished / "frozen-names", tmp_path / "run")
    words = {name: name for name in CLASSES}
    path, file = tmp_path / "mine.json", own / "vocabulary.json"
    path.write_text(json.dumps(words | {"tree": ["bush", "hedge"], "bicyclist": "person"}))
    command = ["vocabulary", str(own), "--data", str(finished / "data"), "--wording", str(path)]
    assert main([*command, "--limit", "2"]) == 0
    assert "from mine.json" in capsys.readouterr().out
    assert not file.exists()
    assert main(command) == 0
    assert set(json.loads(file.read_text())["wordings"]) == {"own", "mine"}
    assert main(["report", str(own)]) == 0
    assert "from mine.json" in (own / "report.html").read_text(encoding="utf-8")
    file.write_text(file.read_text().replace('"iou"', '"other"'))
    capsys.readouterr()
    assert main(["report", str(own)]) == 1
    assert "vocabulary.json is damaged" in capsys.readouterr().err
    for wrong, message in (('{"tree": "tree"}', "give each of the classes"), ("[", "JSON")):
        path.write_text(wrong)
        assert main(command) == 1
        assert message in capsys.readouterr().err
    assert main(["vocabulary", str(finished / "swiftnet"), *command[2:4]]) == 1
    with pytest.raises(InputError, match="frozen"):  # its encoder was trained
        load("demo", device="cpu").segment(
            np.zeros((64, 64, 3), np.uint8), "car, tree", compare="clip"
        )


def test_a_held_out_class_has_no_part_in_training(tiny_dataset, tmp_path):
    weights = []
    for word in ("car", "piano"):
        prompts = {name: word if name == "car" else name for name in CLASSES}
        (tmp_path / f"{word}.json").write_text(json.dumps(prompts))
        settings = {"held_out": "car, tree", "text_set": str(tmp_path / f"{word}.json")}
        experiment = configure("frozen-names", "smoke", **settings, score_train=True)
        results = run(experiment, tiny_dataset, tmp_path / word, device="cpu")
        weights.append(Checkpoints(tmp_path / word / "checkpoints").newest()[1]["model"])
        assert results["iou"]["car"] is not None  # asked for in the test
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert main(["vocabulary", str(tmp_path / "car"), "--data", str(tiny_dataset)]) == 0
    file = tmp_path / "car" / "vocabulary.json"
    found = json.loads(file.read_text())
    assert found["held_out"] == ["car", "tree"]
    scores, iou = found["held_out_scores"]["cosine"], found["wordings"]["own"]["cosine"]["iou"]
    assert scores == held_out_scores(iou, ["car", "tree"])
    assert found["held_out_scores"]["clip"] != scores
    image = next((tiny_dataset / "test").iterdir())
    held = load(tmp_path / "car", device="cpu")
    ways = [held.probabilities(image, CLASSES, compare=way) for way in COMPARE]
    assert all((one != other).any() for one, other in itertools.combinations(ways, 2))
    run(experiment, tiny_dataset, tmp_path / "car", device="cpu", fresh=True)
    assert not file.exists()  # it was of other weights


def test_no_class_found_is_a_harmonic_mean_of_0():
    assert held_out_scores({"car": None, "road": 0.0, "sky": 0.0}, ["car"])["harmonic"] == 0
    means = held_out_scores({"car": 40.0, "tree": None, "road": 80.0, "sky": None}, ["car", "tree"])
    assert (means["seen"], means["unseen"]) == (80, 40)  # classes without IoU are left out
