"""The four models: shapes, what is trained, what stays frozen, what is saved."""

import pytest
import torch
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits_reference
from camvid_lang.models.encoder import TINY, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.models.segmentation import Adapter, Bilinear, CLIPUpsampler, SwiftNet
from camvid_lang.models.text import Vocabulary
from camvid_lang.models.upsampler import Upsampler
from camvid_lang.training.loop import segmentation_loss


def words(classes=11, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(classes, width, generator=generator), dim=1)
    names = tuple(f"class {i}" for i in range(classes))
    return Vocabulary(names, tuple((name,) for name in names), vectors)


def make(kind, train_encoder=False, width=64, **options):
    options["train_encoder"] = train_encoder
    resnet = kind in ("swiftnet", "projected")
    encoder = load_resnet18("random") if resnet else DenseCLIPEncoder(load_clip(TINY))
    if kind == "swiftnet":
        return SwiftNet(encoder, upsampler=Upsampler(encoder.channels, 16, 16, 4), **options)
    language = encoder, words(width=width), 0.01
    if kind in ("adapter", "bilinear"):
        return {"adapter": Adapter, "bilinear": Bilinear}[kind](*language, **options)
    narrow = Upsampler(encoder.channels, 16 if kind == "projected" else 64, 16, 4)
    return CLIPUpsampler(*language, upsampler=narrow, **options)


@pytest.mark.parametrize("kind", ["bilinear", "adapter", "upsampler", "projected", "swiftnet"])
@pytest.mark.parametrize("size", [(64, 96), (90, 120), (72, 33)])
@torch.no_grad()
def test_scores_have_the_images_size_and_segment_is_their_argmax(kind, size):
    model = make(kind).eval()
    images = torch.rand(2, 3, *size)
    scores = model(images)
    assert scores.shape == (2, 11, *size)
    assert kind == "swiftnet" or scores.abs().max() <= 1
    best, second = scores.topk(2, dim=1).values.unbind(dim=1)
    clear = best - second > 1e-6  # the order of two equal scores is up to rounding
    assert clear.float().mean() > 0.99
    ids = model.segment(images)
    assert ids.dtype == torch.uint8
    assert ids[clear].equal(scores.argmax(dim=1)[clear].to(torch.uint8))


@pytest.mark.parametrize("kind", ["adapter", "upsampler", "projected", "swiftnet"])
@pytest.mark.parametrize("train_encoder", [False, True])
def test_a_step_changes_the_decoder_and_the_encoder_only_if_it_is_trained(kind, train_encoder):
    model = make(kind, train_encoder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = torch.randint(0, 12, (2, 64, 64), dtype=torch.uint8)
    segmentation_loss(model(torch.rand(2, 3, 64, 64)), labels, model.temperature).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any(not name.startswith("encoder.") for name in changed)
    assert any(name.startswith("encoder.") for name in changed) == train_encoder
    assert all(p.grad is not None for p in model.decoder_parameters())


@torch.no_grad()
def test_a_frozen_encoder_is_not_saved_and_another_models_state_refused():
    model, same, images = make("upsampler"), make("upsampler"), torch.rand(1, 3, 64, 64)
    state = model.trained_state()
    assert not any(name.startswith("encoder.") for name in state)
    same.load_trained_state(state)
    assert same.eval()(images).equal(model.eval()(images))
    for other in (make("adapter"), make("upsampler", train_encoder=True)):
        with pytest.raises(RuntimeError):
            other.load_trained_state(state)


@torch.no_grad()
def test_bilinear_is_the_dense_map_upsampled_and_compared_with_any_text():
    model, images, text = make("bilinear").eval(), torch.rand(1, 3, 64, 96), words(3, seed=1)
    maps = model.encoder(images)[-1]
    for more, vectors in (((), model.text), ((text.vectors,), text.vectors)):
        expected = cosine_logits_reference(maps, vectors, (64, 96))
        torch.testing.assert_close(model(images, *more), expected, rtol=0, atol=1e-5)
        assert model.segment(images, *more).max() < len(vectors)


@torch.no_grad()
def test_images_are_upsampled_before_they_are_encoded():
    images = torch.randint(256, (1, 3, 64, 96)).byte()
    model = make("projected", input_scale=1.5).eval()
    assert [x.shape[-1] for x in model.encode(images)] == [36, 18, 9, 5]
    scaled, model.input_scale = model(images), 1.0
    assert model(images).shape == scaled.shape
    assert not model(images).allclose(scaled)


def test_a_model_is_complete_after_construction():
    model, given = make("adapter"), words()
    assert model.names == model.vocabulary.names == given.names
    assert model.vocabulary.prompts == given.prompts
    assert model.vocabulary.vectors.equal(given.vectors)
    assert Vocabulary(**model.vocabulary.state()).same_vectors(given)
    for other in (words(10), words(width=32), words(seed=1)):
        assert not given.same_vectors(other)


def test_the_loss_is_the_cross_entropy_of_the_tempered_softmax_without_void():
    scores = torch.randn(2, 11, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40).remainder(12).view(2, 4, 5)
    n, y, x = (labels < 11).nonzero(as_tuple=True)
    expected = -(scores / 0.5).log_softmax(dim=1)[n, labels[n, y, x], y, x].mean()
    torch.testing.assert_close(segmentation_loss(scores, labels.byte(), 0.5), expected)
    assert segmentation_loss(scores, torch.full_like(labels, 11).byte(), 0.5) == 0


def test_clips_map_is_compared_where_its_encoder_is_frozen_and_of_the_text():
    assert make("adapter").has_clip_map
    for kind, options in (
        ("adapter", {"width": 512}),
        ("adapter", {"train_encoder": True}),
        ("projected", {"width": 512}),  # of another encoder, whatever the width
        ("bilinear", {}),
    ):
        assert not make(kind, **options).has_clip_map
