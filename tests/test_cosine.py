"""The exact cosine head against its plain reference, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference


def with_gradients(head, features, text, size):
    """The head's value, and the gradients of a weighted sum of it in both arguments."""
    leaves = [x.clone().requires_grad_() for x in (features, text)]
    value = head(*leaves, size)
    weight = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return value, torch.autograd.grad((value * weight).sum(), leaves)


def case(seed, channels, classes, small, dtype):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels, *small, generator=generator, dtype=torch.float64)
    text = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    return features.to(dtype), F.normalize(text, dim=1).to(dtype)


def assert_right(features, text, size, tolerance, least_scale=1.0):
    """Values and gradients, relative to their largest, against the reference in float64."""
    value, gradients = with_gradients(cosine_logits, features, text, size)
    expected, right = with_gradients(
        cosine_logits_reference, features.double(), text.double(), size
    )
    assert value.shape == (2, len(text), *size)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance)
    for gradient, other in zip(gradients, right, strict=True):
        scale = other.abs().max().clamp_min(least_scale)
        torch.testing.assert_close(gradient.double() / scale, other / scale, rtol=0, atol=tolerance)


seeds = st.integers(0, 10_000)
small_sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
large_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 24), st.integers(1, 200), small_sizes, large_sizes)
def test_equals_the_reference_at_any_ratio_in_float64(seed, channels, classes, small, large):
    assert_right(*case(seed, channels, classes, small, torch.float64), large, 1e-10)


@settings(max_examples=60, deadline=None)
# With fewer channels neighbours often nearly cancel, and the reference itself is off by 1e-4.
@given(seeds, st.integers(4, 64), st.integers(1, 200), small_sizes, large_sizes)
def test_is_right_at_any_ratio_in_float32(seed, channels, classes, small, large):
    assert_right(*case(seed, channels, classes, small, torch.float32), large, 1e-5)


@pytest.mark.parametrize(("small", "large"), [((45, 60), (360, 480)), ((12, 15), (360, 480))])
def test_is_right_in_float32_at_the_sizes_of_camvid(small, large):
    # In float32 the reference itself is off by 3e-5 in the gradient of the text, where it adds up
    # 345,600 pixels.
    assert_right(*case(0, 64, 11, small, torch.float32), large, 1e-5, least_scale=0)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 8), st.integers(1, 20))
def test_is_as_accurate_as_the_reference_where_neighbours_cancel(seed, channels, classes):
    features, text = case(seed, channels, classes, (5, 6), torch.float32)
    # Each column nearly cancels the one before, so that vectors between them all but vanish.
    features[..., 1::2] = -features[..., ::2] * (1 + 1e-2 * features[..., 1::2])
    right = cosine_logits_reference(features.double(), text.double(), (15, 19))
    errors = [
        (head(features, text, (15, 19)) - right).abs().max()
        for head in (cosine_logits, cosine_logits_reference)
    ]
    assert errors[0] <= 10 * errors[1].clamp_min(1e-6)


def test_a_projection_equals_projecting_first():
    features, _ = case(1, 8, 5, (6, 7), torch.float64)
    _, text = case(1, 20, 5, (6, 7), torch.float64)
    projection = torch.randn(20, 8, generator=torch.Generator().manual_seed(2)).double()
    leaves = [x.requires_grad_() for x in (features, text, projection)]
    wide = F.conv2d(features, projection[:, :, None, None])
    values = (
        cosine_logits(features, text, (24, 28), projection),
        cosine_logits_reference(wide, text, (24, 28)),
    )
    torch.testing.assert_close(*values, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 1, values[0].numel(), dtype=torch.float64).view_as(values[0])
    gradients = [torch.autograd.grad((value * weight).sum(), leaves) for value in values]
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds, small_sizes, large_sizes, st.floats(0, 1) | st.just(1))
def test_zero_vectors_give_zeros_and_among_others_no_nan(seed, small, large, share):
    features, text = case(seed, 5, 3, small, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    features = features * (torch.rand(2, 1, *small, generator=generator) > share)
    value, gradients = with_gradients(cosine_logits, features, text, large)
    assert all(result.isfinite().all() for result in (value, *gradients))
    assert features.any() or not value.any()


def test_cosines_stay_within_one_and_in_float32_under_autocast():
    features, text = case(3, 16, 7, (5, 5), torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        value = cosine_logits(features.bfloat16() * 100, text, (20, 20))
    assert value.dtype == torch.float32
    assert value.abs().max() <= 1
    own = cosine_logits(text[None, 0, :, None, None], text, (1, 1)).flatten()
    torch.testing.assert_close(own, text @ text[0], rtol=0, atol=1e-6)
