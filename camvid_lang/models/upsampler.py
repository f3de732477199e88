"""The upsampler of SwiftNet (single scale): pyramid pooling, then steps that blend in finer maps.

Source: Oršić and Šegvić, "Efficient semantic segmentation with pyramidal fusion", Pattern
Recognition 110 (2021); the thesis widens it to the 640 dimensions of CLIP (section 5.1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRIDS = (6, 3, 2, 1)  # rows of each level of the pyramid; columns follow the map's aspect ratio


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of (N, C, h, w) to `size`, (H, W)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class BNReLUConv(nn.Module):
    """BatchNorm -> ReLU -> convolution without bias, which keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        padding = kernel_size // 2
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)

    def forward(self, x: Tensor, fold: Tensor | None = None) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w); with `fold` (N, K, h, w).

        `fold`, (K, out_channels), is a linear map after the convolution. Multiplied into the
        kernel, it leaves K channels to compute. The result will be compared, so it is in float32:
        neither autocast nor TensorFloat-32 round it.
        """
        if fold is None:
            return self.conv(self.norm(x).relu())
        with (
            torch.autocast(x.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            kernel = torch.einsum("kd,dcij->kcij", fold, self.conv.weight)
            return F.conv2d(self.norm(x.float()).relu(), kernel, padding=self.conv.padding)


class SpatialPyramidPooling(nn.Module):
    """Averages over grids of 6, 3, 2 and 1 rows, concatenated with the map itself and fused.

    The first 1x1 unit has `bottleneck` channels (512 in the thesis), each pooled level
    `level_channels` (640 or 160).
    """

    def __init__(self, in_channels: int, out_channels: int, bottleneck: int, level_channels: int):
        super().__init__()
        self.bottleneck = BNReLUConv(in_channels, bottleneck)
        self.levels = nn.ModuleList(BNReLUConv(bottleneck, level_channels) for _ in GRIDS)
        self.fuse = BNReLUConv(bottleneck + len(GRIDS) * level_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        x = self.bottleneck(x)
        h, w = x.shape[-2:]
        parts = [x]
        for rows, level in zip(GRIDS, self.levels, strict=True):
            pooled = level(F.adaptive_avg_pool2d(x, (rows, max(1, round(rows * w / h)))))
            parts.append(upsample(pooled, (h, w)))
        return self.fuse(torch.cat(parts, dim=1))


class Upsampler(nn.Module):
    """Pyramid pooling on the stride-32 map and three blending steps up to stride 4.

    With channels (128, 256, 512, 640), width 640 and bottleneck 512 it has 15,254,272 parameters
    for 640 channels per pyramid level and 13,038,592 for 160 (thesis, section 7.3).

    Args:
        channels: channels of the four encoder maps, strides 4, 8, 16, 32.
        width: channels of every step and of the result.
    """

    def __init__(self, channels: Sequence[int], width: int, bottleneck: int, level_channels: int):
        super().__init__()
        self.width, (*skips, deepest) = width, channels
        self.spp = SpatialPyramidPooling(deepest, width, bottleneck, level_channels)
        self.skips = nn.ModuleList(BNReLUConv(c, width) for c in reversed(skips))
        self.blends = nn.ModuleList(BNReLUConv(width, width, 3) for _ in skips)

    def forward(self, maps: Sequence[Tensor], fold: Tensor | None = None) -> Tensor:
        """Four maps (N, channels[i], h_i, w_i), finest first -> (N, width, h_0, w_0).

        Each step goes to the size of its skip, so sizes need not be powers of two of each other.
        `fold`, (K, width), goes to the last unit, see `BNReLUConv.forward`: (N, K, h_0, w_0).
        """
        *skips, x = maps
        x = self.spp(x)
        for skip, narrow, blend in zip(reversed(skips), self.skips, self.blends, strict=True):
            x = upsample(x, skip.shape[-2:]) + narrow(skip)
            x = blend(x, fold if blend is self.blends[-1] else None)
        return x
