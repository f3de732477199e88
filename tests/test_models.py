"""The four models: shapes, what learns, what stays frozen, what is saved."""

import pytest
import torch
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits_reference
from camvid_lang.models.encoder import TINY, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.models.segmentation import Adapter, Bilinear, CLIPUpsampler, SwiftNet
from camvid_lang.training.loop import segmentation_loss


def text(classes=11, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(classes, width, generator=generator), dim=1)


def clip_encoder():
    return DenseCLIPEncoder(load_clip(TINY))


def make(kind, train_encoder=False):
    if kind == "swiftnet":
        return SwiftNet(load_resnet18("random"), 11, train_encoder, 16, 16, 4)
    if kind == "resnet-ladder":
        return CLIPUpsampler(load_resnet18("random"), text(), train_encoder, 0.01, 16, 16, 4)
    if kind == "ladder":
        return CLIPUpsampler(clip_encoder(), text(), train_encoder, 0.01, 64, 16, 4)
    if kind == "adapter":
        return Adapter(clip_encoder(), text(), train_encoder, 0.01)
    return Bilinear(clip_encoder(), text(), train_encoder, 0.01)


KINDS = ("bilinear", "adapter", "ladder", "resnet-ladder", "swiftnet")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (90, 120), (72, 33)])
def test_scores_have_the_size_of_the_picture(kind, size):
    model = make(kind).eval()
    with torch.no_grad():
        output = model(torch.rand(1, 3, *size))
    assert output.shape == (1, 11, *size)
    if kind != "swiftnet":
        assert output.abs().max() <= 1


@pytest.mark.parametrize("kind", ["adapter", "ladder", "resnet-ladder", "swiftnet"])
@pytest.mark.parametrize("train_encoder", [False, True])
def test_a_frozen_encoder_stays_as_it_is_and_the_rest_learns(kind, train_encoder):
    model = make(kind, train_encoder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = torch.randint(0, 12, (2, 64, 64), dtype=torch.uint8)
    segmentation_loss(model(torch.rand(2, 3, 64, 64)), labels, model.temperature).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert any(not name.startswith("encoder.") for name in changed)
    assert any(name.startswith("encoder.") for name in changed) == train_encoder
    assert all(p.grad is not None for p in model.decoder_parameters())


def test_a_frozen_encoder_is_not_saved():
    model = make("ladder")
    state = model.trained_state()
    assert state
    assert not any(name.startswith("encoder.") for name in state)
    other = make("ladder")
    other.load_trained_state(state)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert other.eval()(images).equal(model.eval()(images))
    assert any(name.startswith("encoder.") for name in make("ladder", True).trained_state())


def test_states_that_do_not_fit_are_refused():
    state = make("ladder").trained_state()
    with pytest.raises(RuntimeError):
        make("adapter").load_trained_state(state)
    with pytest.raises(RuntimeError):
        make("ladder", train_encoder=True).load_trained_state(state)


def test_bilinear_is_the_dense_map_upsampled_and_compared():
    model = make("bilinear").eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        dense = model.encoder(images)[-1]
        expected = cosine_logits_reference(dense, model.text, (64, 96))
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_inference_is_the_argmax_of_the_scores(kind):
    model = make(kind).eval()
    images = torch.rand(2, 3, 72, 90)
    with torch.no_grad():
        scores = model(images)
        best, second = scores.topk(2, dim=1).values.unbind(dim=1)
        clear = best - second > 1e-6  # the order of two equal scores is rounding's
        assert clear.float().mean() > 0.99
        assert model.segment(images)[clear].equal(scores.argmax(dim=1)[clear].to(torch.uint8))


def test_any_words_can_be_asked_of_a_language_model():
    model = make("ladder").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        other = model(images, text(3, seed=1))
        subset = model(images, model.text[2:5])
        torch.testing.assert_close(subset, model(images)[:, 2:5])
    assert other.shape == (1, 3, 64, 64)


def test_the_loss_is_the_temperature_softmaxs_cross_entropy_without_void():
    scores = torch.randn(2, 11, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40).remainder(12).view(2, 4, 5).to(torch.uint8)
    log_softmax = (scores / 0.5).log_softmax(dim=1)
    kept = [
        -log_softmax[n, int(labels[n, y, x]), y, x]
        for n in range(2)
        for y in range(4)
        for x in range(5)
        if labels[n, y, x] < 11
    ]
    expected = torch.stack(kept).mean()
    torch.testing.assert_close(segmentation_loss(scores, labels, 0.5), expected)
    void = torch.full_like(labels, 11)
    assert segmentation_loss(scores, void, 0.5) == 0
