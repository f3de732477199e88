"""Random crops and flips of frames in memory, and the batches of an epoch."""

from collections.abc import Iterator, Sequence

import torch

from camvid_lang.data.camvid import Frames
from camvid_lang.errors import InputError

__all__ = ["batches", "number_of_batches", "random_crops"]


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
    tops = torch.randint(height - high + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(width - wide + 1, (count,), generator=generator).tolist()
    flips = (torch.rand(count, generator=generator) < 0.5).tolist()
    image_crops = images.new_empty((count, images.shape[1], high, wide))
    label_crops = labels.new_empty((count, high, wide))
    # Plain integers: indexing by a tensor would wait for its copy to the device.
    for i, (index, top, left, flip) in enumerate(zip(indices, tops, lefts, flips, strict=True)):
        window = (..., slice(top, top + high), slice(left, left + wide))
        image, label = images[index][window], labels[index][window]
        image_crops[i] = image.flip(-1) if flip else image
        label_crops[i] = label.flip(-1) if flip else label
    return image_crops, label_crops


def number_of_batches(frames: int, batch_size: int) -> int:
    """How many batches `batches` yields for so many frames.

    A last batch of one frame is left out: BatchNorm after the 1x1 level of the pyramid pooling
    needs two values per channel. Raises `InputError` where no batch is left.

    Example:
        >>> number_of_batches(9, batch_size=4), number_of_batches(10, batch_size=4)
        (2, 3)
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}: at least 1 is needed")
    count = frames // batch_size + (frames % batch_size > 1)
    if count == 0:
        raise InputError(f"{frames} frame(s) for batch_size {batch_size}: use at least two frames")
    return count


def batches(
    frames: Frames, batch_size: int, crop: int | tuple[int, int], generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch: the frames in random order, each at most once, randomly cropped.

    Yields uint8 images (B, 3, h, w) and labels (B, h, w) on the frames' device. B is `batch_size`,
    or less in the last batch (see `number_of_batches`). `crop` is a side or (h, w) in pixels; 0
    takes whole frames, which are still flipped. `generator`, on the CPU, first draws the order,
    then each batch's crops. Raises `InputError` as `number_of_batches` and `random_crops` do.
    """
    count = number_of_batches(len(frames), batch_size)
    order = torch.randperm(len(frames), generator=generator)
    size = crop or tuple(frames.images.shape[-2:])
    for indices in order.split(batch_size)[:count]:
        yield random_crops(frames.images, frames.labels, size, generator, indices.tolist())
