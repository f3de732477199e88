"""Crops at random scales and colours."""

import pytest
import torch

from camvid_lang.data.augment import batches, jitter_colours, scaled_crops
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID


def frames(count=3, height=40, width=60):
    generator = torch.Generator().manual_seed(1)
    sizes = (count, 3, height, width), (count, height, width)
    return [
        torch.randint(high, size, dtype=torch.uint8, generator=generator)
        for high, size in zip((256, VOID), sizes, strict=True)
    ]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_whole_frames_at_scale_one_are_the_frames_or_their_mirror_images():
    images, labels = frames(8)
    crops, ids = scaled_crops(images, labels, (40, 60), (1, 1), seeded(), range(8))
    assert (crops.dtype, ids.dtype) == (torch.float32, torch.uint8)
    mirrored = 0
    for crop, found, image, label in zip(crops, ids, images / 255, labels, strict=True):
        if not found.equal(label):
            mirrored += 1
            image, label = image.flip(-1), label.flip(-1)
        assert found.equal(label)
        torch.testing.assert_close(crop, image, atol=1e-4, rtol=0)
    assert 0 < mirrored < 8


@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 2), (2, 2)])
def test_image_and_label_stay_together_under_scale_and_flip(scales):
    labels = torch.zeros(8, 64, 64, dtype=torch.uint8)
    labels[:, 16:40, 24:50] = 5
    images = (labels * 40)[:, None].expand(-1, 3, -1, -1).contiguous()
    crops, ids = scaled_crops(images, labels, 48, scales, seeded(3), range(8))
    assert (crops.shape, ids.shape) == ((8, 3, 48, 48), (8, 48, 48))
    assert set(ids.unique().tolist()) <= {0, 5, VOID}
    inside = ids != VOID
    assert ((crops[:, 0] > 100 / 255) == (ids == 5))[inside].float().mean() > 0.97
    area = (ids == 5).float().mean().item() * 48**2  # of 24x26 pixels, times the scale squared
    if scales == (0.5, 0.5):
        assert area == pytest.approx(24 * 26 / 4, rel=0.1)


def test_outside_the_frame_labels_are_void_and_pixels_the_mean_colour():
    images, labels = frames(1)
    crops, ids = scaled_crops(images, labels, (40, 60), (0.5, 0.5), seeded(), [0])
    assert (ids == VOID).float().mean().item() == pytest.approx(0.75, abs=0.02)
    outside = crops[0][:, ids[0] == VOID].median(dim=1).values
    torch.testing.assert_close(outside, (images[0] / 255).mean(dim=(1, 2)), atol=1e-3, rtol=0)


def test_batches_follow_the_seed():
    images, labels = frames(6)
    data = Frames(images, labels, tuple("abcdef"))

    def epoch(seed):
        found = batches([data], 3, 32, seeded(seed), scales=(0.5, 2), colour_jitter=0.3)
        return torch.cat([crops for parts in found for crops, _ in parts.values()])

    assert epoch(0).shape == (6, 3, 32, 32)
    assert epoch(0).equal(epoch(0))
    assert not epoch(0).equal(epoch(1))


def test_colours_stay_in_range_and_strength_zero_changes_nothing():
    images, _ = frames()
    same = jitter_colours(images, 0.0, seeded())
    torch.testing.assert_close(same, images / 255, atol=1e-5, rtol=0)
    changed = jitter_colours(images, 0.5, seeded())
    assert 0 <= changed.min() < changed.max() <= 1
    assert (changed - same).abs().mean() > 0.02
