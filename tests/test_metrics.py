"""Scores against an independent count in numpy, of models and of folders."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camvid_lang import evaluation
from camvid_lang.cli import main
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import CLASSES, VOID
from camvid_lang.errors import InputError
from camvid_lang.evaluation import confusion_matrix, evaluate, score, scores
from camvid_lang.models.segmentation import SegmentationModel


def independent(pairs):
    """The protocol once more, by counting in numpy."""
    hits, labelled, predicted = (np.zeros(11) for _ in range(3))
    for prediction, label in pairs:
        counted = label != VOID
        for k in range(11):
            hits[k] += ((prediction == k) & (label == k) & counted).sum()
            labelled[k] += ((label == k) & counted).sum()
            predicted[k] += ((prediction == k) & counted).sum()
    union = labelled + predicted - hits
    iou = [100 * h / u if u else None for h, u in zip(hits, union, strict=True)]
    recall = [100 * h / n for h, n in zip(hits, labelled, strict=True) if n]
    known = [value for value in iou if value is not None]
    return {
        "accuracy": 100 * hits.sum() / labelled.sum() if labelled.sum() else None,
        "mean_accuracy": float(np.mean(recall)) if recall else None,
        "miou": float(np.mean(known)) if known else None,
        "iou": dict(zip(CLASSES, iou, strict=True)),
    }


def assert_same(found, expected):
    for key in ("accuracy", "mean_accuracy", "miou", "iou"):
        assert found[key] == pytest.approx(expected[key]), key


def measure(pairs):
    return scores(confusion_matrix((torch.from_numpy(p), torch.from_numpy(t)) for p, t in pairs))


ids = st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**31), predicted=ids, labelled=ids, frames=st.integers(1, 3))
def test_scores_equal_an_independent_count(seed, predicted, labelled, frames):
    random = np.random.default_rng(seed)
    pairs = [
        [random.choice(ids, (9, 13)).astype(np.uint8) for ids in (predicted, labelled)]
        for _ in range(frames)
    ]
    assert_same(measure(pairs), independent(pairs))


def full(value):
    return np.full((4, 5), value, dtype=np.uint8)


def test_absent_classes_and_void_alone():
    right = measure([(full(3), full(3))])
    assert right["miou"] == right["accuracy"] == right["mean_accuracy"] == 100
    assert right["iou"]["sky"] is None
    wrong = measure([(full(2), full(3))])
    assert wrong["iou"]["pole"] == wrong["miou"] == wrong["mean_accuracy"] == 0
    only_void = measure([(full(2), full(VOID))])
    assert only_void["miou"] is only_void["accuracy"] is only_void["mean_accuracy"] is None
    assert measure([(full(VOID), full(3))])["accuracy"] == 0


def test_counts_are_summed_before_dividing():
    first, second = np.zeros((2, 2), np.uint8), np.array([[0, 1], [1, 1]], np.uint8)
    # Class 0: 4 + 0 hits of 4 + 1 + 0; the mean of per-frame scores would be another number.
    found = measure([(first, first), (full(1)[:2, :2], second)])
    assert found["iou"]["sky"] == pytest.approx(80)


def test_chance_is_about_a_mean_of_small_shares():
    confusion = torch.zeros(12, 12, dtype=torch.long)
    confusion[:11, 3] = 2000  # as often each class, whatever was predicted
    found = evaluation.chance_scores(confusion.tolist())
    assert found["accuracy"] == pytest.approx(100 / 11)
    assert found["miou"] == pytest.approx(100 / 21)  # 1/11 of a class over 2 - 1/11 of it
    counts = torch.randint(100, 100_000, (11,), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(11).repeat_interleave(counts)
    guesses = torch.randint(11, labels.shape, generator=torch.Generator().manual_seed(1))
    drawn = evaluation.confusion_matrix([(guesses, labels)])
    assert evaluation.chance_scores(drawn)["miou"] == pytest.approx(scores(drawn)["miou"], abs=0.1)


class Brightness(SegmentationModel):
    """Class = brightness of the pixel, so that images are their own predictions."""

    def __init__(self):
        super().__init__(torch.nn.Identity(), train_encoder=False)

    def forward(self, images):
        return torch.nn.functional.one_hot(images[:, 0].long(), 11).permute(0, 3, 1, 2).float()


def test_models_are_evaluated():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 12, (5, 8, 9), dtype=torch.uint8, generator=random)
    ids = labels.clamp(max=10)
    for frame, wrong in enumerate((4, 1, 3, 0, 2)):  # columns of each frame
        ids[frame, :, :wrong] = (ids[frame, :, :wrong] + 1) % 11
    labels = torch.cat([labels, torch.full((1, 8, 9), VOID, dtype=torch.uint8)])
    ids = torch.cat([ids, ids[:1]])
    frames = Frames(ids[:, None].expand(-1, 3, -1, -1), labels, tuple("abcdef"))
    found = evaluate(Brightness(), frames)
    assert_same(found, independent(zip(ids.numpy(), labels.numpy(), strict=True)))


def folders(tmp_path, pairs):
    for kind, index in (("predictions", 0), ("labels", 1)):
        (tmp_path / kind).mkdir()
        for number, pair in enumerate(pairs):
            Image.fromarray(pair[index]).save(tmp_path / kind / f"{number}.png")
    return str(tmp_path / "predictions"), str(tmp_path / "labels")


def test_score_prints_json_or_how_absent_classes_count(tmp_path, capsys):
    random = np.random.default_rng(1)
    pairs = [tuple(random.integers(0, 12, (2, 20, 30), dtype=np.uint8)) for _ in range(3)]
    assert main(command := ["score", *folders(tmp_path, pairs)]) == 0
    assert "in neither labels nor predictions" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"accuracy", "mean_accuracy", "miou", "iou"}
    assert_same(found, independent(pairs))


def test_score_counts_files_of_either_spelling_and_ignores_pipes(tmp_path):
    predictions, labels = folders(tmp_path, [(full(1), full(1)), (full(2), full(3))])
    (tmp_path / "labels" / "1.png").rename(tmp_path / "labels" / "1.PNG")
    os.mkfifo(tmp_path / "labels" / "2.png")
    assert score(predictions, labels)["accuracy"] == 50
    Image.fromarray(full(1)).save(tmp_path / "labels" / "1.png")
    with pytest.raises(InputError, match=r"1\.png: same name as 1\.PNG"):
        score(predictions, labels)


def test_score_refuses_what_does_not_match(tmp_path):
    predictions, labels = folders(tmp_path, [(full(1), full(1)), (full(2), full(2))])
    last = tmp_path / "labels" / "1.png"
    last.unlink()
    with pytest.raises(InputError, match=r"1 file\(s\) in only one of .*1\.png"):
        score(predictions, labels)
    for wrong, message in ((full(1)[:2], "5x4, its label 5x2"), (full(12), "id 12 is not")):
        Image.fromarray(wrong).save(last)
        with pytest.raises(InputError, match=message):
            score(predictions, labels)
    with pytest.raises(InputError, match=r"absent: no such folder, or no \.png files in it"):
        score(tmp_path / "absent", labels)
