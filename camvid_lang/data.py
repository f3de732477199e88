"""The data set in memory: decoded once, then cropped and flipped as tensors.

`load` decodes a split to uint8 tensors (CamVid whole takes 0.5 GB), after which no picture file is
touched again: two slow cores then never starve an accelerator. The layout on disk and all checks
are in `layout`, single files in `pictures`; what users of the data need is offered here as well.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from camvid_lang.errors import InputError
from camvid_lang.layout import (
    SPLITS,
    DataReport,
    check_pairs,
    common_size,
    find_pairs,
    raise_any,
    survey,
    verify,
)
from camvid_lang.pictures import group_labels, one_line, read_image, read_label

__all__ = [
    "SPLITS",
    "DataReport",
    "Frames",
    "batches",
    "find_pairs",
    "group_labels",
    "load",
    "number_of_batches",
    "random_crops",
    "read_image",
    "read_label",
    "verify",
]


@dataclass(frozen=True)
class Frames:
    """A decoded split.

    images: uint8 (N, 3, H, W), 0..255, red green blue; labels: uint8 (N, H, W), ids 0..11;
    names: N texts like "test/0001TP_008550".
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: str | torch.device) -> "Frames":
        """The same frames with both tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load(root: str | Path, split: str, limit: int | None = None) -> Frames:
    """Decodes a split (`train`, `val`, `trainval`, `test`) into memory, checking while at it.

    Frames are sorted by name, `trainval` being train followed by val. `limit` takes that many,
    evenly spaced, instead of all. Raises one `InputError` with all problems found (the first eight
    spelled out). A folder with CamVid's names that differs from the release gives a warning only.
    """
    if split not in SPLITS:
        raise InputError(one_line(f"split {split!r} is unknown: {', '.join(SPLITS)} are known"))
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: at least one frame is needed")
    found = survey(root, SPLITS[split])
    pairs = [pair for held in found.pairs.values() for pair in held]
    if limit is not None and limit < len(pairs):
        pairs = [pairs[i * len(pairs) // limit] for i in range(limit)]
    size = common_size(found, pairs)
    height, width = size or (0, 0)
    images = torch.empty((len(pairs), 3, height, width), dtype=torch.uint8)
    labels = torch.empty((len(pairs), height, width), dtype=torch.uint8)
    image_rows, label_rows = images.numpy(), labels.numpy()

    def store(index: int, image: np.ndarray, label: np.ndarray) -> None:
        image_rows[index] = image.transpose(2, 0, 1)
        label_rows[index] = label

    problems = check_pairs(found.root, pairs, size, store)
    raise_any(found.root, found.problems + problems)
    if found.missing:
        warnings.warn(
            f"{found.root}: not the whole CamVid release ({len(found.missing)} differences, first: "
            f"{found.missing[0]}); scores will not be comparable with published ones",
            stacklevel=2,
        )
    return Frames(images, labels, tuple(pair.name for pair in pairs))


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
