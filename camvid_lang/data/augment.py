"""Random crops and flips of frames in memory, and the batches of an epoch.

Beyond the thesis, crops can also change in scale and colour. All of it runs on the frames' device,
with random numbers from a CPU generator, so that a seed gives the same crops on every device.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.device import world_size
from camvid_lang.errors import InputError


def random_crops(
    images: torch.Tensor,
    labels: torch.Tensor,
    size: int | tuple[int, int],
    generator: torch.Generator,
    indices: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One random crop per frame, flipped left to right with probability 0.5.

    This is all the augmentation that the thesis uses.

    Args:
        images: (N, 3, H, W), any dtype and device.
        labels: (N, H, W), cropped and flipped like the images.
        size: side or (h, w) in pixels.
        generator: on the CPU, so that a seed gives the same crops on every device.
        indices: which B of the frames; default all.

    Returns:
        Images (B, 3, h, w) and labels (B, h, w).

    Raises:
        InputError: frames smaller than the crop.

    Example:
        >>> images, labels = torch.zeros(2, 3, 96, 128), torch.zeros(2, 96, 128)
        >>> random_crops(images, labels, 64, torch.Generator())[0].shape
        torch.Size([2, 3, 64, 64])
    """
    high, wide = (size, size) if isinstance(size, int) else size
    indices = range(len(images)) if indices is None else indices
    count, (height, width) = len(indices), images.shape[-2:]
    if not (0 < high <= height and 0 < wide <= width):
        raise InputError(
            f"crop {high}x{wide} does not fit into frames of {height}x{width} (height x width): "
            "choose a smaller crop"
        )
    tops = torch.randint(height - high + 1, (count,), generator=generator)
    lefts = torch.randint(width - wide + 1, (count,), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    image_crops = images.new_empty((count, images.shape[1], high, wide))
    label_crops = labels.new_empty((count, high, wide))
    windows = zip(indices, tops.tolist(), lefts.tolist(), flips.tolist(), strict=True)
    for i, (index, top, left, flip) in enumerate(windows):
        window = (..., slice(top, top + high), slice(left, left + wide))
        image, label = images[index][window], labels[index][window]
        image_crops[i] = image.flip(-1) if flip else image
        label_crops[i] = label.flip(-1) if flip else label
    return image_crops, label_crops


def scaled_crops(
    images: Tensor,
    labels: Tensor,
    size: int | tuple[int, int],
    scales: tuple[float, float],
    generator: torch.Generator,
    indices: Sequence[int],
    void: int = VOID,
) -> tuple[Tensor, Tensor]:
    """One random crop per frame at a random scale, flipped with probability 0.5.

    At scale 2 a crop of 224 pixels shows 112 pixels of the frame. Scales are log-uniform. What is
    outside the frame, at small scales, has the frame's mean colour and the label void.

    Arguments are those of `random_crops`, and the smallest and largest of the `scales`; images
    and labels are uint8.

    Returns:
        Images (B, 3, h, w) float in [0, 1], bilinear, and labels (B, h, w) uint8, nearest.
    """
    size = (size, size) if isinstance(size, int) else size
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
    ids = labels[index].float().unsqueeze(1) - void
    ids = F.grid_sample(ids, grid, mode="nearest", align_corners=False).squeeze(1) + void
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
    """How many batches `batches` yields for so many frames.

    A last batch of one frame (for each process, see `device.processes`) is left out: BatchNorm
    after the 1x1 level of the pyramid pooling needs two values per channel. Raises `InputError`
    where no batch is left.

    Example:
        >>> number_of_batches(9, batch_size=4), number_of_batches(10, batch_size=4)
        (2, 3)
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: at least 1 is needed")
    least = 2 * world_size()
    if batch_size < least > 2:
        raise InputError(f"batch_size {batch_size}: {least // 2} processes need {least} at least")
    count = frames // batch_size + (frames % batch_size >= least)
    if count == 0:
        raise InputError(f"{frames} frame(s) for batch_size {batch_size}: use at least two frames")
    return count


def batches(
    sets: Sequence[Frames],
    batch_size: int,
    crop: int | tuple[int, int],
    generator: torch.Generator,
    scales: tuple[float, float] = (1.0, 1.0),
    colour_jitter: float = 0.0,
) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """One epoch: all frames in random order, each at most once, randomly cropped.

    Yields batches as {index of a set: its images (B, 3, h, w) and labels (B, h, w)}, uint8, on the
    frames' device. The B of all sets add up to `batch_size`, or less in the last batch (see
    `number_of_batches`). `crop` is a side or (h, w) in pixels; 0 takes whole frames, which are
    still flipped. `generator`, on the CPU, first draws the order, then each batch's crops. With
    other `scales` (see `scaled_crops`) or `colour_jitter` images are float in [0, 1]. Raises
    `InputError` as `number_of_batches` and `random_crops` do.
    """
    sizes = [len(frames) for frames in sets]
    count = number_of_batches(sum(sizes), batch_size)
    order = torch.randperm(sum(sizes), generator=generator)
    for indices in order.split(batch_size)[:count]:
        parts, start = {}, 0
        for number, frames in enumerate(sets):
            own = indices[(indices >= start) & (indices < start + sizes[number])] - start
            start += sizes[number]
            if not len(own):
                continue
            pair, chosen = (frames.images, frames.labels), own.tolist()
            size = crop or tuple(frames.images.shape[-2:])
            if tuple(scales) == (1, 1):
                images, labels = random_crops(*pair, size, generator, chosen)
            else:
                rest = size, scales, generator, chosen, frames.void
                images, labels = scaled_crops(*pair, *rest)
            if colour_jitter:
                images = jitter_colours(images, colour_jitter, generator)
            parts[number] = images, labels
        yield parts
