"""Random crops and flips of frames in memory, and the batches of an epoch.

Beyond the thesis, crops can also change in scale and colour. All of it runs on the frames' device;
random numbers are from a CPU generator, so that a seed gives the same crops on every device.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.distributed import world_size
from camvid_lang.errors import InputError


def random_crops(
    images: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    indices: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """One random crop per frame, flipped with probability 0.5: the thesis's augmentation.

    Args:
        images, labels: (N, 3, H, W) and (N, H, W), any dtype and device.
        size: (h, w) in pixels; `InputError` where frames are smaller.
        indices: which B of the frames.

    Returns:
        Images (B, 3, h, w) and labels (B, h, w).
    """
    count, (high, wide), (height, width) = len(indices), size, images.shape[-2:]
    if not (0 < high <= height and 0 < wide <= width):
        sizes = f"crop {high}x{wide} does not fit into frames of {height}x{width} (height x width)"
        raise InputError(f"{sizes}: set crop to less")
    tops = torch.randint(height - high + 1, (count,), generator=generator)
    lefts = torch.randint(width - wide + 1, (count,), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    windows = [*zip(indices, tops.tolist(), lefts.tolist(), flips.tolist(), strict=True)]

    def cut(frames: Tensor) -> Tensor:
        crops = (frames[i][..., y : y + high, x : x + wide] for i, y, x, _ in windows)
        return torch.stack([x.flip(-1) if w[3] else x for x, w in zip(crops, windows, strict=True)])

    return cut(images), cut(labels)


def scaled_crops(
    images: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    scales: tuple[float, float],
    generator: torch.Generator,
    indices: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """One random crop per frame at a random scale, flipped with probability 0.5.

    At scale 2 a crop of 224 pixels shows 112 pixels of the frame. Scales are log-uniform between
    the two `scales`. Outside the frame are its mean colour and the label void. For the other
    arguments see `random_crops`; images and labels are uint8.

    Returns:
        Images (B, 3, h, w) float in [0, 1], bilinear, and labels (B, h, w) uint8, nearest.
    """
    x, y, flips, log_scales = torch.rand(4, len(indices), generator=generator, dtype=torch.float64)
    low, high = map(math.log, scales)
    scale = (low + (high - low) * log_scales).exp()
    # Half the crop's sides and its centre in coordinates of the frame, which reach from -1 to 1.
    # The crop is within the frame along a side where it is smaller, and around it elsewhere.
    half_y, half_x = (a / b / scale for a, b in zip(size, images.shape[-2:], strict=True))
    centre_y, centre_x = (2 * y - 1) * (1 - half_y), (2 * x - 1) * (1 - half_x)
    zero, sign = torch.zeros_like(scale), 1 - 2 * (flips < 0.5).double()
    chosen = torch.tensor(list(indices), dtype=torch.float64)
    affine = [half_x * sign, zero, centre_x, zero, half_y, centre_y]
    packed = torch.stack([*affine, chosen], dim=1).to(images.device, non_blocking=True)
    index, affine = packed[:, 6].long(), packed[:, :6].view(-1, 2, 3).float()
    grid = F.affine_grid(affine, [len(index), 1, *size], align_corners=False)
    pixels = images[index].float() / 255
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    # grid_sample is 0 outside, so the value wanted there is subtracted before and added after.
    crops = F.grid_sample(pixels - mean, grid, align_corners=False) + mean
    ids = labels[index].float().unsqueeze(1) - VOID
    ids = F.grid_sample(ids, grid, mode="nearest", align_corners=False).squeeze(1) + VOID
    return crops.clamp(0, 1), ids.to(torch.uint8)


def jitter_colours(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of each image, times factors within 1 - x and 1 + x.

    (B, 3, h, w) uint8 or float in [0, 1] -> float in [0, 1]; `strength` is x.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), generator=generator) - 1)
    factors = factors.to(images.device, non_blocking=True)[:, :, None, None, None]
    brightness, contrast, saturation = factors
    images = images.float() / 255 if images.dtype == torch.uint8 else images

    def grey(colours: Tensor) -> Tensor:  # ITU-R BT.601
        red, green, blue = colours.split(1, dim=1)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    images = (images * brightness).clamp(0, 1)
    mean = grey(images.mean(dim=(2, 3), keepdim=True))
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    return torch.lerp(grey(images), images, saturation).clamp(0, 1)


def number_of_batches(frames: int, batch_size: int) -> int:
    """How many batches `batches` yields for so many frames; `InputError` for none.

    A last batch of one frame per process is left out: BatchNorm after the 1x1 level of the pyramid
    pooling needs two values per channel.

    Example:
        >>> number_of_batches(9, batch_size=4), number_of_batches(10, batch_size=4)
        (2, 3)
    """
    processes = world_size()
    least = 1 if processes == 1 else 2 * processes
    if batch_size < least:
        raise InputError(f"batch_size {batch_size}: {processes} process(es) need {least} at least")
    count = frames // batch_size + (frames % batch_size >= 2 * processes)
    if count == 0:
        raise InputError(f"{frames} frame(s) for batch_size {batch_size}: use at least two frames")
    return count


def batches(
    frames: Frames,
    batch_size: int,
    crop: int,
    generator: torch.Generator,
    scales: tuple[float, float] = (1.0, 1.0),
    colour_jitter: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: all frames in random order, each at most once, randomly cropped.

    Args:
        crop: side in pixels; 0 takes whole frames, which are still flipped.
        scales, colour_jitter: if not 1 to 1, and not 0, see `scaled_crops` and `jitter_colours`.

    Yields:
        Images (B, 3, h, w), uint8, or float in [0, 1] with `scales` or `colour_jitter`, and labels
        (B, h, w) uint8, on the frames' device; see also `number_of_batches`.
    """
    count = number_of_batches(len(frames), batch_size)
    order = torch.randperm(len(frames), generator=generator)
    size = (crop, crop) if crop else tuple(frames.images.shape[-2:])
    for indices in order.split(batch_size)[:count]:
        pair, chosen = (frames.images, frames.labels), indices.tolist()
        if tuple(scales) == (1, 1):
            images, labels = random_crops(*pair, size, generator, chosen)
        else:
            images, labels = scaled_crops(*pair, size, scales, generator, chosen)
        if colour_jitter:
            images = jitter_colours(images, colour_jitter, generator)
        yield images, labels
