"""Cosine similarity of every full-resolution pixel with the text embeddings, computed cheaply.

The thesis upsamples a map of C-dimensional features to full resolution, normalises every pixel and
multiplies by the text matrix, as `cosine_logits_reference` does. `cosine_logits` returns the same
numbers without ever holding a full-resolution feature map.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-12  # as in torch.nn.functional.normalize: a zero vector gives zeros
CHANNELS_AT_ONCE = 64  # how many are held in float64


def cosine_logits_reference(features: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """As `cosine_logits`: upsample, normalise, multiply (thesis, section 5.1). Slow; for tests."""
    upsampled = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    return torch.einsum("nchw,kc->nkhw", F.normalize(upsampled, dim=1, eps=EPSILON), text)


def cosine_logits(
    features: Tensor, text: Tensor, size: tuple[int, int], projection: Tensor | None = None
) -> Tensor:
    """Cosine of each bilinearly upsampled feature vector with each text vector.

    Equal to `cosine_logits_reference` in values and in gradients of both arguments.

    Derivation. Let u be the upsampled vector of one pixel and t a text vector.

    * Numerator: upsampling is linear and acts on each channel alone, so <u, t> is the upsampled
      map of the products <f, t>. The K products are taken on the small map, and K channels are
      upsampled instead of C.
    * Denominator: bilinear weights factorise into rows and columns. Let g be the features
      interpolated along the width only; with weights a, 1-a of the neighbouring columns j, j+1:
      |g|^2 = a^2 |f_j|^2 + (1-a)^2 |f_j+1|^2 + 2 a (1-a) <f_j, f_j+1>, and likewise the inner
      product of g in row i with g in row i+1. Interpolating along the height is the same formula
      again. So |u|^2 is linear in five small maps: the inner products of each cell with itself,
      its right, its lower and its two diagonal neighbours.

    A linear map P of the features to the text's width needs no wide map either: <P u, t> =
    <u, P't> and <P u, P v> = <u, P'P v>. (A wide map makes a `cpu` step a tenth slower.)

    Where neighbours nearly cancel, both parts are small sums of large terms. So they are summed and
    upsampled in float64, a few channels at a time, and divided in float32, which is as accurate as
    the reference.

    Args:
        features: (N, C, h, w).
        text: (K, C), rows of length one; (K, D) with a projection.
        size: (H, W) of the result; any ratio to (h, w), smaller sizes included.
        projection: (D, C), applied to every feature vector first.

    Returns:
        (N, K, H, W) cosines in [-1, 1] up to rounding, zeros where a pixel's vector is zero;
        float32 also under autocast (float64 for float64 features).

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [4.0, 1.0]]).view(1, 2, 1, 2)
        >>> cosine_logits(features, torch.eye(2), (1, 2)).squeeze()
        tensor([[0.6000, 0.0000],
                [0.8000, 1.0000]])
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        text, paired = text.to(features.dtype), None
        if projection is not None:
            projection = projection.to(features.dtype)
            text = text @ projection
            paired = torch.einsum("cd,ndhw->nchw", projection.T @ projection, features)
        products, *inner = _InnerProducts.apply(features, text, paired)
        cosines = _upsampled(products, inner, size, features.dtype)
        return cosines if cosines.requires_grad else cosines.clamp(-1, 1)


def _upsampled(
    products: Tensor, inner: Iterable[Tensor], size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Cosines (N, K, H, W) in `dtype` from the inner products with text and with `_neighbours`."""
    own, right, lower, falling, rising = inner
    products = F.interpolate(products, size=size, mode="bilinear", align_corners=False)
    x_squares, x_pairs = _weights(own.shape[2], size[1], own)
    y_squares, y_pairs = _weights(own.shape[1], size[0], own)
    same_row = own @ x_squares + right @ x_pairs  # |g|^2, (N, h, W)
    next_row = lower @ x_squares + (falling + rising) @ (x_pairs / 2)  # (N, h-1, W)
    squared_norm = (y_squares.T @ same_row + y_pairs.T @ next_row).unsqueeze(1)
    # Rounding can push the square of a short vector slightly below zero.
    return products.to(dtype) * squared_norm.clamp_min(EPSILON**2).rsqrt().to(dtype)


def _weights(cells: int, pixels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the cells' squares, (n, m), and of neighbours' products, (n-1, m), for n -> m."""
    # Read off torch's interpolation of the unit vectors, so that its rules are not repeated.
    unit = torch.eye(cells, dtype=like.dtype, device=like.device).unsqueeze(1)
    weights = F.interpolate(unit, size=pixels, mode="linear", align_corners=False).squeeze(1)
    return weights.square(), 2 * weights[:-1] * weights[1:]


def _neighbours(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of x (N, C, h, w) that pair each cell with itself and with each neighbour."""
    yield x, x
    yield x[..., :-1], x[..., 1:]  # right
    yield x[..., :-1, :], x[..., 1:, :]  # lower
    yield x[..., :-1, :-1], x[..., 1:, 1:]  # falling diagonal
    yield x[..., :-1, 1:], x[..., 1:, :-1]  # rising diagonal


class _InnerProducts(torch.autograd.Function):
    """Inner products of cells with text, (N, K, h, w), and with `_neighbours`, in float64.

    The neighbours are taken from `paired`, the projected features, if it is given. With autograd's
    backward, a product as large as the features would be held for each of the five.
    """

    @staticmethod
    def forward(ctx, features: Tensor, text: Tensor, paired: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(features, text, paired)
        tensors = (features, text, features if paired is None else paired)
        parts = []
        for chunks in zip(*(x.split(CHANNELS_AT_ONCE, dim=1) for x in tensors), strict=True):
            f, t, p = (chunk.double() for chunk in chunks)
            views = zip(_neighbours(f), _neighbours(p), strict=True)
            inner = [(a * b).sum(dim=1) for (a, _), (_, b) in views]
            parts.append([F.conv2d(f, t[:, :, None, None]), *inner])
        return tuple(map(sum, zip(*parts, strict=True)))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        features, text, paired = ctx.saved_tensors
        of_products, *of_pairs = (g.to(features.dtype) for g in gradients)
        # Not a convolution, which would round float32 to TensorFloat-32 on newer GPUs.
        to_features = torch.einsum("nkhw,kc->nchw", of_products, text)
        with_text = ctx.needs_input_grad[1]
        to_text = torch.einsum("nkhw,nchw->kc", of_products, features) if with_text else None
        second = features if paired is None else paired
        to_first, to_second = torch.zeros_like(features), torch.zeros_like(second)
        views = map(_neighbours, (features, second, to_first, to_second))
        for gradient, (a, _), (_, b), (to_a, _), (_, to_b) in zip(of_pairs, *views, strict=True):
            to_a.addcmul_(b, gradient.unsqueeze(1))
            to_b.addcmul_(a, gradient.unsqueeze(1))
        if paired is None:
            return to_features + (to_first + to_second), to_text, None
        return to_features + to_first, to_text, to_second
