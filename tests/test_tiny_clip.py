"""The tiny CLIP: its captions, its shipped weights, and its training."""

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from draw_scenes import draw_scene, scene_seed
from torch.nn import functional as F

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, NUM_CLASSES, VOID
from camvid_lang.models.encoder import TINY, load_clip


@pytest.fixture(scope="module")
def clip():
    return load_clip(TINY)


@pytest.fixture(scope="module")
def unseen():
    """Scenes of seeds that neither the training nor the default data set uses."""
    drawn = [draw_scene(scene_seed(4242, "test", index)) for index in range(24)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.from_numpy(np.stack([label for _, label in drawn]))


@pytest.mark.parametrize("name", CLASSES)
def test_held_out_texts_are_never_captions(name):
    rng, held_out = np.random.default_rng(0), tiny_clip.HELD_OUT[name]
    drawn = {tiny_clip.caption(rng, name) for _ in range(3000)}
    captions = {*drawn, *tiny_clip.SHORT[name], *tiny_clip.SENTENCES[name]}
    assert len(held_out) >= 10
    assert not captions & {*held_out, DESCRIPTIONS[name]}
    assert not any("{" in text or ";" in text for text in captions.union(held_out))
    tokens = open_clip.tokenize([*captions, *held_out], context_length=100)
    assert (tokens[:, 77:] == 0).all()  # all of a text is in CLIP's context


def test_texts_are_told_apart(clip):
    names = tiny_clip.embed_texts(clip, CLASSES)
    similar = (names @ names.T)[~torch.eye(NUM_CLASSES, dtype=torch.bool)]
    assert similar.mean() < 0.8
    assert similar.max() < 0.99
    assert tiny_clip.nearest_class(clip, tiny_clip.HELD_OUT) >= 0.8
    assert tiny_clip.nearest_class(clip, {k: [v] for k, v in DESCRIPTIONS.items()}) >= 9 / 11


def test_zero_shot_clearly_beats_chance(clip, unseen):
    names, described = (tiny_clip.embed_texts(clip, x) for x in (CLASSES, DESCRIPTIONS.values()))
    random = torch.randn(names.shape, generator=torch.Generator().manual_seed(0))
    assert min(tiny_clip.zero_shot(clip, texts, unseen) for texts in (names, described)) > 25
    assert tiny_clip.zero_shot(clip, F.normalize(random, dim=1), unseen) < 12


def test_captions_of_one_class_are_all_positives():
    texts, ids = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    shown = F.one_hot(torch.arange(2), NUM_CLASSES).float()
    # From an image to its two equal captions: log 2. From a caption to its one image: 0.
    loss = tiny_clip.contrast(torch.eye(2), texts, 7 * shown, ids, scale=100.0)
    assert float(loss) == pytest.approx(np.log(2) / 2, abs=1e-4)
    assert float(tiny_clip.contrast(torch.eye(2).flip(0), texts, shown, ids, scale=100.0)) > 50
    void = torch.cat([shown, torch.zeros(1, NUM_CLASSES)])  # shows no class: skipped
    images = torch.cat([torch.eye(2), torch.full((1, 2), 0.7)])
    assert float(tiny_clip.contrast(images, texts, void, ids, scale=100.0)) == pytest.approx(loss)


def test_parts_match_their_labels(unseen):
    images, labels = unseen
    parts, shown = tiny_clip.draw_parts(np.random.default_rng(3), (images[:1], labels[:1]), 192, 1)
    assert parts.shape == (1, 3, 192, 192)
    assert 0 <= parts.min() <= parts.max() <= 1
    label = torch.where(shown[0].sum(-1) == 1, shown[0].argmax(-1), VOID)
    crops = [labels[0, :, left : left + 192].long() for left in range(65)]
    assert any(torch.equal(crop, label) or torch.equal(crop.flip(-1), label) for crop in crops)


def test_training_is_reproducible_and_lowers_the_loss(unseen, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_clip, "draw_scenes", lambda *_: unseen)
    first, second = tiny_clip.train(steps=2), tiny_clip.train(steps=2)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    file = tmp_path / "weights.safetensors"
    tiny_clip.save_weights(first, file)
    names, again = (tiny_clip.embed_texts(m, CLASSES) for m in (first, load_clip(TINY, str(file))))
    assert torch.allclose(names, again, atol=1e-2)  # float16

    model = first.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):  # always on the same batch
        loss = tiny_clip.training_loss(model, unseen, np.random.default_rng(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
