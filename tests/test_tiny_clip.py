"""The tiny CLIP: its captions, its shipped weights, and its training."""

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from benchmarks import tiny_clip
from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, NUM_CLASSES, VOID
from camvid_lang.models.encoder import ASSETS, TINY, DenseCLIPEncoder, load_clip
from camvid_lang.scenes.dataset import draw_scene, scene_seed


@pytest.fixture(scope="module")
def clip():
    return load_clip(TINY)


@pytest.fixture(scope="module")
def unseen():
    """Scenes of seeds that neither the training nor the default data set uses."""
    drawn = [draw_scene(scene_seed(4242, "test", index)) for index in range(24)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.from_numpy(np.stack([label for _, label in drawn]))


def test_held_out_texts_are_never_captions():
    rng = np.random.default_rng(0)
    for name in CLASSES:
        held_out = set(tiny_clip.HELD_OUT[name])
        drawn = {tiny_clip.caption(rng, name) for _ in range(3000)}
        assert len(held_out) >= 10
        assert not held_out & {*drawn, *tiny_clip.SHORT[name], *tiny_clip.SENTENCES[name]}
        assert DESCRIPTIONS[name] not in drawn
        assert not any("{" in text or ";" in text for text in drawn | held_out)


def test_captions_fit_the_context():
    for name in CLASSES:
        texts = [*tiny_clip.SHORT[name], *tiny_clip.SENTENCES[name], *tiny_clip.HELD_OUT[name]]
        assert (open_clip.tokenize(texts, context_length=100)[:, 77:] == 0).all()


def test_the_words_that_are_shipped_are_those_of_the_captions():
    assert (ASSETS / f"{TINY}.txt").read_text().split() == tiny_clip.caption_words()


def test_names_are_told_apart(clip):
    names = tiny_clip.embed_texts(clip, CLASSES)
    similar = (names @ names.T)[~torch.eye(NUM_CLASSES, dtype=torch.bool)]
    assert similar.mean() < 0.8
    assert similar.max() < 0.99


def test_unseen_texts_are_nearest_to_their_class(clip):
    assert tiny_clip.nearest_class(clip, tiny_clip.HELD_OUT) >= 0.8
    assert tiny_clip.nearest_class(clip, {k: [v] for k, v in DESCRIPTIONS.items()}) >= 9 / 11


def test_zero_shot_clearly_beats_chance(clip, unseen):
    names = tiny_clip.embed_texts(clip, CLASSES)
    described = tiny_clip.embed_texts(clip, [DESCRIPTIONS[name] for name in CLASSES])
    generator = torch.Generator().manual_seed(0)
    random = F.normalize(torch.randn(names.shape, generator=generator), dim=1)
    assert tiny_clip.zero_shot(clip, names, unseen) > 25
    assert tiny_clip.zero_shot(clip, described, unseen) > 25
    assert tiny_clip.zero_shot(clip, random, unseen) < 12


def test_parts_of_scenes_are_recognised(clip, unseen):
    """Pooled embeddings of 64-pixel parts, against always the most frequent class."""
    names = tiny_clip.embed_texts(clip, CLASSES)
    parts, shown = tiny_clip.draw_parts(np.random.default_rng(1), unseen, 64, 200)
    expected = shown[:, 16:48, 16:48].sum((1, 2)).argmax(1)
    with torch.inference_mode():
        images = clip.encode_image(DenseCLIPEncoder(clip).normalise(parts), normalize=True)
    hits = ((images @ names.T).argmax(1) == expected).float().mean()
    assert hits > max(0.4, expected.bincount().max() / len(expected) + 0.1)


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
    rng, one = np.random.default_rng(3), (images[:1], labels[:1])
    parts, shown = tiny_clip.draw_parts(rng, one, 192, 1)
    assert parts.shape == (1, 3, 192, 192)
    assert parts.min() >= 0
    assert parts.max() <= 1
    label, known = shown[0].argmax(-1), shown[0].sum(-1) == 1
    crops = [labels[0, :, left : left + 192] for left in range(65)]
    crops += [crop.flip(-1) for crop in crops]
    assert any(
        torch.equal(crop[known].long(), label[known]) and (crop[~known] == VOID).all()
        for crop in crops
    )


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
