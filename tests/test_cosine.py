"""The exact cosine head against its plain reference, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference


def both(features, text, size, projection=None):
    """Values and gradients of the exact head and of the reference."""
    results = []
    for exact in (True, False):
        leaves = [x.clone().requires_grad_() for x in (features, text)]
        if projection is not None:
            leaves.append(projection.clone().requires_grad_())
        if exact:
            value = cosine_logits(leaves[0], leaves[1], size, *leaves[2:])
        else:
            wide = F.conv2d(leaves[0], leaves[2][:, :, None, None]) if leaves[2:] else leaves[0]
            value = cosine_logits_reference(wide, leaves[1], size)
        weight = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
        results.append((value, torch.autograd.grad((value * weight).sum(), leaves)))
    return results


def case(seed, channels, classes, small, dtype, width=None):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels, *small, generator=generator, dtype=torch.float64)
    text = torch.randn(classes, width or channels, generator=generator, dtype=torch.float64)
    return features.to(dtype), F.normalize(text, dim=1).to(dtype)


sizes = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    channels=st.integers(2, 24),
    classes=st.integers(1, 200),
    small=st.tuples(sizes, sizes),
    large=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_equals_the_reference_at_any_ratio_in_float64(seed, channels, classes, small, large):
    features, text = case(seed, channels, classes, small, torch.float64)
    (value, gradients), (expected, expected_gradients) = both(features, text, large)
    assert value.shape == (2, classes, *large)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max().clamp_min(1)
        torch.testing.assert_close(gradient / scale, other / scale, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    # With fewer channels neighbours often nearly cancel, and the reference itself is off by 1e-4.
    channels=st.integers(4, 64),
    classes=st.integers(1, 200),
    small=st.tuples(sizes, sizes),
    large=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_is_right_at_any_ratio_in_float32(seed, channels, classes, small, large):
    features, text = case(seed, channels, classes, small, torch.float32)
    value, gradients = both(features, text, large)[0]
    expected, expected_gradients = both(features.double(), text.double(), large)[1]
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max().clamp_min(1)
        torch.testing.assert_close(gradient.double() / scale, other / scale, rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), channels=st.integers(2, 8), classes=st.integers(1, 20))
def test_is_as_right_as_the_reference_where_neighbours_cancel(seed, channels, classes):
    features, text = case(seed, channels, classes, (5, 6), torch.float32)
    # Each column nearly undoes the one before, so that vectors between them all but vanish.
    features[..., 1::2] = -features[..., ::2] * (1 + 1e-2 * features[..., 1::2])
    right = cosine_logits_reference(features.double(), text.double(), (15, 19))
    errors = [
        (head(features, text, (15, 19)) - right).abs().max()
        for head in (cosine_logits, cosine_logits_reference)
    ]
    assert errors[0] <= 10 * errors[1].clamp_min(1e-6)


@pytest.mark.parametrize(("small", "large"), [((45, 60), (360, 480)), ((12, 15), (360, 480))])
def test_is_right_in_float32_at_the_sizes_of_camvid(small, large):
    # Held against the reference in float64: in float32 the reference itself is off by 3e-5 in the
    # gradient of the text, where it adds up 345,600 pixels.
    features, text = case(0, 64, 11, small, torch.float32)
    value, gradients = both(features, text, large)[0]
    expected, expected_gradients = both(features.double(), text.double(), large)[1]
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max()
        torch.testing.assert_close(
            gradient / scale, other / scale, rtol=0, atol=1e-5, check_dtype=False
        )


def test_a_projection_equals_projecting_first():
    features, text = case(1, 8, 5, (6, 7), torch.float64, width=20)
    projection = torch.randn(20, 8, generator=torch.Generator().manual_seed(2)).double()
    (value, gradients), (expected, others) = both(features, text, (24, 28), projection)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-9)


def test_zero_vectors_give_zeros_and_no_nan():
    features = torch.zeros(1, 4, 3, 3, requires_grad=True)
    text = F.normalize(torch.ones(2, 4), dim=1).requires_grad_()
    value = cosine_logits(features, text, (6, 6))
    value.sum().backward()
    assert (value == 0).all()
    assert features.grad.isfinite().all()
    assert text.grad.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    small=st.tuples(sizes, sizes),
    large=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0, 1),
)
def test_zero_vectors_among_others_do_no_harm(seed, small, large, share):
    features, text = case(seed, 5, 3, small, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    features = features * (torch.rand(2, 1, *small, generator=generator) > share)
    for value, gradients in both(features, text, large):
        for result in (value, *gradients):
            assert result.isfinite().all()


def test_cosines_stay_within_one_and_in_float32_under_autocast():
    features, text = case(3, 16, 7, (5, 5), torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        value = cosine_logits(features.bfloat16() * 100, text, (20, 20))
    assert value.dtype == torch.float32
    assert value.abs().max() <= 1
    (own,), (direct,) = (
        cosine_logits(text[None, 0, :, None, None], text, (1, 1)),
        [text[0] @ text.T],
    )
    torch.testing.assert_close(own.flatten(), direct, rtol=0, atol=1e-6)
