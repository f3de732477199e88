"""The tiny CLIP: its captions, its shipped weights, and its training."""

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F

from camvid_lang.data.classes import CLASSES, DESCRIPTIONS, NUM_CLASSES, VOID
from camvid_lang.models.encoder import DenseCLIPEncoder
from camvid_lang.scenes import captions, tiny_clip
from camvid_lang.scenes.dataset import draw_scene, scene_seed

WEIGHTS = tiny_clip.CONFIG.with_suffix(".safetensors")


@pytest.fixture(scope="module")
def clip():
    if tiny_clip.NAME not in open_clip.list_models():
        open_clip.add_model_config(tiny_clip.CONFIG)
    model = open_clip.create_model(
        tiny_clip.NAME, pretrained=str(WEIGHTS), require_pretrained=True
    ).eval()
    return model, open_clip.get_tokenizer(tiny_clip.NAME)


@pytest.fixture(scope="module")
def unseen():
    """Scenes of seeds that neither the training nor the default dataset uses."""
    drawn = [draw_scene(scene_seed(4242, "test", index)) for index in range(24)]
    images = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.from_numpy(np.stack([label for _, label in drawn]))


def test_held_out_phrases_are_never_captions():
    rng = np.random.default_rng(0)
    for name in CLASSES:
        kept_back = set(captions.HELD_OUT_PHRASES[name])
        assert len(kept_back) >= 10
        assert not kept_back & set(captions.SHORT[name])
        assert not kept_back & set(captions.SENTENCES[name])
        drawn = {captions.caption(rng, name) for _ in range(3000)}
        assert not kept_back & drawn
        assert DESCRIPTIONS[name] not in drawn
        assert any("{" in text or "}" in text for text in drawn | kept_back) is False


def test_captions_fit_the_context():
    tokenizer = open_clip.get_tokenizer("RN50")
    for name in CLASSES:
        texts = [*captions.SHORT[name], *captions.SENTENCES[name], *captions.HELD_OUT_PHRASES[name]]
        assert (tokenizer(texts, context_length=100)[:, 77:] == 0).all()


def test_file_is_small():
    assert WEIGHTS.stat().st_size <= 5_000_000


def test_loads_in_float32_on_the_open_clip_path(clip):
    model, _ = clip
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    reductions = [level["reduction"] for level in model.visual.trunk.feature_info]
    assert reductions == [4, 8, 16, 32]


def test_names_are_told_apart(clip):
    names = tiny_clip.embed_texts(*clip, CLASSES)
    alike = (names @ names.T)[~torch.eye(NUM_CLASSES, dtype=torch.bool)]
    assert alike.mean() < 0.8
    assert alike.max() < 0.99


def test_unseen_phrasings_land_at_their_class(clip):
    assert tiny_clip.nearest_class(*clip, captions.HELD_OUT_PHRASES) >= 0.8


def test_descriptions_land_at_their_class(clip):
    texts = {name: [text] for name, text in DESCRIPTIONS.items()}
    assert tiny_clip.nearest_class(*clip, texts) >= 9 / 11


def test_zero_shot_beats_chance_clearly(clip, unseen):
    names = tiny_clip.embed_texts(*clip, CLASSES)
    encoder = DenseCLIPEncoder(clip[0])
    described = tiny_clip.embed_texts(*clip, [DESCRIPTIONS[name] for name in CLASSES])
    assert tiny_clip.zero_shot(encoder, names, *unseen) > 15
    assert tiny_clip.zero_shot(encoder, described, *unseen) > 12
    generator = torch.Generator().manual_seed(0)
    random = F.normalize(torch.randn(names.shape, generator=generator), dim=1)
    assert tiny_clip.zero_shot(encoder, random, *unseen) < 12


def test_parts_of_scenes_are_recognised(clip, unseen):
    """Pooled embeddings of 64-pixel parts, against always naming the commonest class."""
    model, _ = clip
    names = tiny_clip.embed_texts(*clip, CLASSES)
    rng = np.random.default_rng(1)
    parts, shown = tiny_clip.draw_parts(rng, *unseen, 64, 200)
    kinds = shown[:, 16:48, 16:48].sum((1, 2)).argmax(1)
    with torch.inference_mode():
        images = model.encode_image(DenseCLIPEncoder(model).normalise(parts), normalize=True)
    hits = ((images @ names.T).argmax(1) == kinds).float().mean()
    commonest = kinds.bincount().max() / len(kinds)
    assert hits > 0.4
    assert hits > commonest + 0.1


def test_contrast_knows_several_positives():
    """Two captions of one class are both right: a perfect match costs what the spread costs."""
    texts = torch.eye(2)[[0, 0, 1, 1]]
    loss = tiny_clip.contrast(
        torch.eye(2), texts, torch.eye(2), torch.tensor([0, 0, 1, 1]), scale=100.0
    )
    # From a picture to its two equal captions: log 2. From a caption to its one picture: 0.
    assert float(loss) == pytest.approx(np.log(2) / 2, abs=1e-4)
    wrong = tiny_clip.contrast(
        torch.eye(2).flip(0), texts, torch.eye(2), torch.tensor([0, 0, 1, 1]), scale=100.0
    )
    assert float(wrong) > 50


def test_draw_parts_show_their_labels(unseen):
    images, labels = unseen
    parts, shown = tiny_clip.draw_parts(np.random.default_rng(3), images[:1], labels[:1], 192, 1)
    assert parts.shape == (1, 3, 192, 192)
    assert parts.min() >= 0
    assert parts.max() <= 1
    label = shown[0].argmax(-1)
    known = shown[0].sum(-1) > 0
    candidates = [
        view
        for left in range(65)
        for view in (labels[0, :, left : left + 192], labels[0, :, left : left + 192].flip(-1))
        if torch.equal(view[known].long(), label[known]) and (view[~known] == VOID).all()
    ]
    assert candidates
    assert (shown[0][known].sum(-1) == 1).all()


def test_a_few_steps_lower_the_loss(unseen):
    torch.manual_seed(0)
    model, tokenizer = tiny_clip.new_model()
    encoder = DenseCLIPEncoder(model)
    scenes = (unseen[0][:6], unseen[1][:6])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        # The same batch each time: the loss must fall.
        loss = tiny_clip.training_step(model, encoder, tokenizer, scenes, np.random.default_rng(0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.1


def test_weights_survive_the_file(tmp_path, clip):
    model, tokenizer = clip
    file = tmp_path / "sub" / "copy.safetensors"
    tiny_clip.save_weights(model, file)
    again = open_clip.create_model(tiny_clip.NAME, pretrained=str(file)).eval()
    before, after = (tiny_clip.embed_texts(m, tokenizer, CLASSES) for m in (model, again))
    assert torch.equal(before, after)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
