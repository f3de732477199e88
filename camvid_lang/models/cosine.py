"""Cosine similarity of every full-resolution pixel with the text embeddings, computed cheaply.

The thesis upsamples a map of C-dimensional features to full resolution, normalises every pixel
and multiplies by the text matrix. `cosine_logits_reference` does just that. `cosine_logits` gives
the same numbers without ever holding a full-resolution feature map.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "cosine_logits",
    "cosine_logits_reference",
]

# torch.nn.functional.normalize uses the same floor, so that a zero vector gives zeros.
EPSILON = 1e-12
CHANNELS_AT_ONCE = 64  # how many are held in float64


def cosine_logits_reference(features: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample bilinearly, normalise, multiply (thesis, section 5.1). Slow and large; for tests.

    Same arguments and result as `cosine_logits`.
    """
    upsampled = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    return torch.einsum("nchw,kc->nkhw", F.normalize(upsampled, dim=1, eps=EPSILON), text)


def cosine_logits(
    features: Tensor, text: Tensor, size: tuple[int, int], projection: Tensor | None = None
) -> Tensor:
    """Cosine of each upsampled feature vector with each text vector.

    Equal to `cosine_logits_reference` for values and for gradients in both arguments.

    Derivation. Write U for bilinear upsampling and u = U(f) for the vector of one pixel.

    * Numerator: U is linear and acts on each channel alone, so <u, t> = U(<f, t>). The K products
      are taken on the small map and K channels are upsampled instead of C.
    * Denominator: bilinear weights factorise into rows and columns. Let g be the features
      interpolated along the width only; with weights a, 1-a of the neighbouring columns j, j+1:
      |g|^2 = a^2 |f_j|^2 + (1-a)^2 |f_j+1|^2 + 2 a (1-a) <f_j, f_j+1>, and likewise the inner
      product of g in row i with g in row i+1. Interpolating along the height then is the same
      formula once more. So |u|^2 is linear in five maps of inner products: of each cell with
      itself, its right, its lower and its two diagonal neighbours.

    A last linear map P to the text's width needs no wide features either: <P u, t> = <u, P't>, and
    <P u, P v> = <u, G v> with G = P'P, so both parts are taken from the narrow features.

    The interpolation weights are read off torch's own one-dimensional interpolation of the unit
    vectors, hence any ratio (enlarging or shrinking) is matched without repeating its rules.

    Where neighbours nearly cancel, both parts are small sums of large terms, and the square makes
    that worse. So the small maps are added up and upsampled in float64, a few channels of the
    features at a time: a float32 result is then as good as the reference's own.

    Args:
        features: (N, C, h, w).
        text: (K, C), rows of length one; (K, D) with a projection.
        size: (H, W) of the result.
        projection: (D, C), applied to every feature vector before all else.

    Returns:
        (N, K, H, W) cosines in [-1, 1]; computed in float32 (or float64 for float64 features)
        also under autocast. A pixel whose vector is zero gets zeros.
    """
    with torch.autocast(features.device.type, enabled=False):
        if features.dtype != torch.float64:
            features = features.float()
        text, paired = text.to(features.dtype), features
        if projection is not None:
            projection = projection.to(features.dtype)
            text = text @ projection
            paired = torch.einsum("cd,ndhw->nchw", projection.T @ projection, features)
        numerator = _TextProducts.apply(features, text)
        numerator = F.interpolate(numerator, size=size, mode="bilinear", align_corners=False)
        # Rounding can push the square of a short vector slightly below zero.
        squared_norm = _upsampled_squared_norm(features, paired, size).clamp_min(EPSILON**2)
        cosines = (numerator * squared_norm.rsqrt()).to(features.dtype)
        return cosines.clamp(-1, 1) if not cosines.requires_grad else cosines


def _upsampled_squared_norm(features: Tensor, paired: Tensor, size: tuple[int, int]) -> Tensor:
    """Squared length of each upsampled vector, (N, 1, H, W) float64, from five small maps.

    `paired` holds G f for features f, where G is the symmetric matrix of the inner product.
    """
    rows = _Quadratic(features.shape[3], size[1], features.device)
    columns = _Quadratic(features.shape[2], size[0], features.device)
    own, right, lower, falling, rising = _InnerProducts.apply(features, paired)
    # Per row: squared length after interpolation along the width, (N, h, W).
    same_row = own @ rows.own + right @ rows.cross
    # Per pair of neighbouring rows: inner product after interpolation along the width, (N, h-1, W).
    next_row = lower @ rows.own + (falling + rising) @ (rows.cross / 2)
    return (columns.own.T @ same_row + columns.cross.T @ next_row).unsqueeze(1)


# Which cells are multiplied, as offsets (rows, columns) of the one and of the other.
_NEIGHBOURS = (
    ((0, 0), (0, 0)),  # with itself
    ((0, 0), (0, 1)),  # with its right neighbour
    ((0, 0), (1, 0)),  # with its lower neighbour
    ((0, 0), (1, 1)),  # along the falling diagonal
    ((0, 1), (1, 0)),  # along the rising diagonal
)


class _TextProducts(torch.autograd.Function):
    """Inner products of each cell with each row of `text` (K, C): (N, K, h, w) float64."""

    @staticmethod
    def forward(ctx, features: Tensor, text: Tensor) -> Tensor:
        ctx.save_for_backward(features, text)
        return sum(F.conv2d(x, t[:, :, None, None]) for x, t in _in_float64(features, text))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        features, text = ctx.saved_tensors
        gradient = gradient.to(features.dtype)
        # Not by a convolution, which would round float32 to TensorFloat-32 on newer GPUs.
        into_features = torch.einsum("nkhw,kc->nchw", gradient, text)
        if not ctx.needs_input_grad[1]:
            return into_features, None
        return into_features, torch.einsum("nkhw,nchw->kc", gradient, features)


class _InnerProducts(torch.autograd.Function):
    """Inner products of each cell of `a` with five cells of `b`, (N, h or h-1, w or w-1) float64.

    The gradient is gathered in place, where autograd would hold a product as large as the features
    for each of the five.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(a, b)
        parts = (
            [(x * y).sum(dim=1) for x, y in _windows(some_a, some_b)]
            for some_a, some_b in _in_float64(a, b)
        )
        return tuple(map(sum, zip(*parts, strict=True)))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        into_a, into_b = torch.zeros_like(a), torch.zeros_like(b)
        windows = zip(gradients, _windows(a, b), _windows(into_a, into_b), strict=True)
        for gradient, (x, y), (into_x, into_y) in windows:
            gradient = gradient.to(a.dtype).unsqueeze(1)
            into_x.addcmul_(y, gradient)
            into_y.addcmul_(x, gradient)
        return into_a, into_b


def _in_float64(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same few channels (dimension 1) of both at a time."""
    for some_a, some_b in zip(*(x.split(CHANNELS_AT_ONCE, dim=1) for x in (a, b)), strict=True):
        yield some_a.double(), some_b.double()


def _windows(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The views of `a` and `b` that are multiplied, in the order of `_NEIGHBOURS`."""
    height, width = a.shape[2:]
    for one, other in _NEIGHBOURS:
        h, w = (n - max(i, j) for n, i, j in zip((height, width), one, other, strict=True))
        yield (
            a[:, :, one[0] : one[0] + h, one[1] : one[1] + w],
            b[:, :, other[0] : other[0] + h, other[1] : other[1] + w],
        )


class _Quadratic:
    """Weights of squares (`own`, (n, m)) and neighbour products (`cross`, (n-1, m)) for n -> m."""

    def __init__(self, cells: int, pixels: int, device: torch.device):
        unit = torch.eye(cells, dtype=torch.float64, device=device).unsqueeze(1)
        weights = F.interpolate(unit, size=pixels, mode="linear", align_corners=False).squeeze(1)
        self.own = weights.square()
        self.cross = 2 * weights[:-1] * weights[1:]
