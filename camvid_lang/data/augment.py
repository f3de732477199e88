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

    images: (N, 3, H, W), labels: (N, H, W), any dtype, any device; `size`: side or (h, w) in
    pixels; `indices`: which B of the frames, all when not given. Returns (B, 3, h, w) and
    (B, h, w): picture and label of a frame are cut and flipped alike. `generator` is a CPU one, so
    that the same seed crops alike on every device. Raises `InputError` where the frames are smaller
    than the crop. This is all the augmentation the thesis uses.
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
    # By plain numbers: a tensor of indices would be copied to the device, which waits for it.
    for i, (index, top, left, flip) in enumerate(zip(indices, tops, lefts, flips, strict=True)):
        window = (..., slice(top, top + high), slice(left, left + wide))
        image, label = images[index][window], labels[index][window]
        image_crops[i] = image.flip(-1) if flip else image
        label_crops[i] = label.flip(-1) if flip else label
    return image_crops, label_crops


def number_of_batches(frames: int, batch_size: int) -> int:
    """How many batches `batches` yields for this many frames.

    A last, smaller batch counts, but not when it would hold a single frame: BatchNorm over the
    1x1 level of the pyramid pooling needs two values per channel. Raises `InputError` where
    nothing would be left.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: at least 1 is needed")
    count = frames // batch_size + (frames % batch_size > 1)
    if count == 0:
        raise InputError(f"{frames} frame(s) make no batch of {batch_size}: two frames are needed")
    return count


def batches(
    frames: Frames,
    batch_size: int,
    crop: int | tuple[int, int],
    generator: torch.Generator,
    order: torch.Tensor | None = None,
    skip: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One pass over the frames in random order, each at most once, randomly cropped.

    Yields uint8 images (B, 3, h, w), uint8 labels (B, h, w) on the frames' device, and the int64
    indices (B,) into `frames`, on the CPU. B is `batch_size`, less in the last batch; a last batch
    of a single frame is left out (see `number_of_batches`), another frame on each call. `crop` is
    a side or (h, w) in pixels; 0 takes whole frames, which are still flipped. `generator` is a CPU
    one and is advanced batch by batch; its state, the order (N,) of the frames (drawn from it when
    not given) and the number of batches to skip are all that a resumed training needs. Raises
    `InputError` as `number_of_batches` and `random_crops` do.
    """
    count = number_of_batches(len(frames), batch_size)
    if order is None:
        order = torch.randperm(len(frames), generator=generator)
    size = crop or tuple(frames.images.shape[-2:])
    for indices in order.split(batch_size)[skip:count]:
        crops = random_crops(frames.images, frames.labels, size, generator, indices.tolist())
        yield *crops, indices
