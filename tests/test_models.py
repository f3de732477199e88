"""The four models: shapes, what is trained, what stays frozen, what is saved."""

import pytest
import torch
from torch.nn import functional as F

from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.models.cosine import cosine_logits_reference
from camvid_lang.models.encoder import TINY, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.models.segmentation import Adapter, Bilinear, CLIPUpsampler, SwiftNet
from camvid_lang.run import build_model
from camvid_lang.training.loop import make_optimizer, segmentation_loss


def text(classes=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, 64, generator=generator), dim=1)


def make(kind, train_encoder=False):
    if kind == "swiftnet":
        return SwiftNet(load_resnet18("random"), 11, train_encoder, 16, 16, 4)
    if kind == "projected":  # narrower than the text
        return CLIPUpsampler(load_resnet18("random"), text(), train_encoder, 0.01, 16, 16, 4)
    encoder = DenseCLIPEncoder(load_clip(TINY))
    if kind == "upsampler":
        return CLIPUpsampler(encoder, text(), train_encoder, 0.01, 64, 16, 4)
    return {"adapter": Adapter, "bilinear": Bilinear}[kind](encoder, text(), train_encoder, 0.01)


TRAINED = ("adapter", "upsampler", "projected", "swiftnet")


@pytest.mark.parametrize("kind", ["bilinear", *TRAINED])
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


@pytest.mark.parametrize("kind", TRAINED)
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


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("full-names", ("trunk.stem", "trunk.stages.0", "trunk.stages.1", "trunk.stages.2")),
        ("swiftnet", ("network.conv1", "network.bn1", "layer1", "layer2", "layer3")),
    ],
)
def test_only_the_last_stages_of_an_encoder_are_trained(name, kept):
    experiment = configure(name, "smoke", train_stages=1)
    model = build_model(experiment)[0].train()
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    optimizer = make_optimizer(model, experiment)
    labels = torch.randint(0, 11, (2, 64, 64), dtype=torch.uint8)
    segmentation_loss(model(torch.rand(2, 3, 64, 64)), labels, model.temperature).backward()
    optimizer.step()
    state = model.encoder.state_dict()
    changed = {key for key, value in state.items() if not value.equal(before[key])}
    assert not any(part in key for key in changed for part in kept)  # nor running statistics
    last = [key for key in state if ".stages.3." in key or ".layer4." in key]
    assert len(changed & {*last}) > 0.9 * len(last)
    with pytest.raises(InputError, match="train_encoder"):
        configure("frozen-names", train_stages=1)


@torch.no_grad()
def test_a_frozen_encoder_is_not_saved():
    model, other, images = make("upsampler"), make("upsampler"), torch.rand(1, 3, 64, 64)
    state = model.trained_state()
    assert state
    assert not any(name.startswith("encoder.") for name in state)
    other.load_trained_state(state)
    assert other.eval()(images).equal(model.eval()(images))
    assert any(name.startswith("encoder.") for name in make("upsampler", True).trained_state())


def test_states_of_another_model_are_refused():
    state = make("upsampler").trained_state()
    for other in (make("adapter"), make("upsampler", train_encoder=True)):
        with pytest.raises(RuntimeError):
            other.load_trained_state(state)


@torch.no_grad()
def test_bilinear_is_the_dense_map_upsampled_and_compared():
    model, images = make("bilinear").eval(), torch.rand(1, 3, 64, 96)
    expected = cosine_logits_reference(model.encoder(images)[-1], model.text, (64, 96))
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_are_upsampled_before_they_are_encoded():
    model, images = make("projected").eval(), torch.randint(256, (1, 3, 64, 96)).byte()
    plain, model.input_scale = model(images), 2.0
    assert [x.shape[-1] for x in model.encode(images)] == [48, 24, 12, 6]
    assert model(images).shape == plain.shape
    assert not model(images).allclose(plain)
    assert model.segment(images).shape == (1, 64, 96)


@torch.no_grad()
def test_any_text_can_be_compared_with_a_language_model():
    model, images = make("upsampler").eval(), torch.rand(1, 3, 64, 64)
    assert model(images, text(3, seed=1)).shape == (1, 3, 64, 64)
    assert model.segment(images, text(3, seed=1)).max() <= 2
    torch.testing.assert_close(model(images, model.text[2:5]), model(images)[:, 2:5])


def test_the_loss_is_the_cross_entropy_of_the_tempered_softmax_without_void():
    scores = torch.randn(2, 11, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40).remainder(12).view(2, 4, 5)
    n, y, x = (labels < 11).nonzero(as_tuple=True)
    expected = -(scores / 0.5).log_softmax(dim=1)[n, labels[n, y, x], y, x].mean()
    torch.testing.assert_close(segmentation_loss(scores, labels.byte(), 0.5), expected)
    assert segmentation_loss(scores, torch.full_like(labels, 11).byte(), 0.5) == 0


def test_clips_own_map_is_compared_only_with_text_of_its_own_width():
    clip = load_clip(TINY)
    for width, has in ((64, True), (512, False)):
        matrix = F.normalize(torch.randn(11, width), dim=1)
        adapter = Adapter(DenseCLIPEncoder(clip), matrix, False, 0.01)
        assert adapter.has_clip_map == has
