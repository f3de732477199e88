"""Crops and batches: images and labels stay together, the seed decides, scales and colours."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camvid_lang.data import augment
from camvid_lang.data.augment import (
    batches,
    jitter_colours,
    number_of_batches,
    random_crops,
    scaled_crops,
)
from camvid_lang.data.camvid import Frames
from camvid_lang.data.classes import VOID
from camvid_lang.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(count=3):
    images = torch.randint(256, (count, 3, 40, 60), dtype=torch.uint8, generator=seeded(1))
    return images, torch.randint(VOID, (count, 40, 60), dtype=torch.uint8, generator=seeded(2))


@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 5), st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_crops_keep_image_and_label_together(high, wide, count, seed):
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    frame = torch.arange(count)[:, None, None].expand(count, 12, 15)
    # Every pixel holds its own frame, row and column.
    images = torch.stack([frame, rows.expand_as(frame), columns.expand_as(frame)], dim=1)
    labels = frame * 1000 + rows * 20 + columns
    crops, ids = random_crops(images, labels, (high, wide), seeded(seed), range(count))
    assert crops.shape == (count, 3, high, wide)
    assert torch.equal(ids, crops[:, 0] * 1000 + crops[:, 1] * 20 + crops[:, 2])
    assert torch.equal(crops[:, 0], torch.arange(count)[:, None, None].expand_as(ids))
    assert bool((crops[:, 1].diff(dim=1) == 1).all())  # rows stay in order, without gaps
    steps = crops[:, 2].diff(dim=2)
    assert bool((steps == steps[:, :1, :1]).all())
    assert bool((steps.abs() == 1).all())  # columns ascend or, flipped, descend


def test_crops_are_random_and_follow_the_seed():
    images = torch.arange(8 * 9).reshape(1, 1, 8, 9).expand(400, 3, 8, 9)

    def draw(seed):
        return random_crops(images, images[:, 0], (7, 7), seeded(seed), range(400))[1]

    once = draw(3)
    assert torch.equal(once, draw(3))
    assert not torch.equal(once, draw(4))
    assert len({tuple(ids[0, :2].tolist()) for ids in once}) == 2 * 3 * 2  # all tops, lefts, flips
    assert 0.4 < (once[:, 0, 1] < once[:, 0, 0]).float().mean() < 0.6
    with pytest.raises(InputError, match="crop 9x9 does not fit into frames of 8x9"):
        random_crops(images, images[:, 0], (9, 9), seeded(), [0])


@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_batches_hold_every_frame_once(count, batch_size, seed):
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 6, 6)
    order = torch.randperm(count, generator=seeded(seed))
    frames, generator = Frames(images, images[:, 0], tuple(map(str, range(count)))), seeded(seed)
    if count == 1 and batch_size > 1:
        with pytest.raises(InputError, match="at least two frames"):
            next(batches(frames, batch_size, 4, generator))
        return
    epoch = list(batches(frames, batch_size, 4, generator))
    assert len(epoch) == number_of_batches(count, batch_size)
    count -= batch_size > 1 and count % batch_size == 1
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in epoch])
    assert seen.tolist() == order[:count].tolist()
    assert all(len(images) == batch_size for images, _ in epoch[:-1])
    for images, labels in epoch:
        assert images.shape == (len(labels), 3, 4, 4)
        assert torch.equal(images[:, 0], labels)


def test_batches_follow_the_seed_and_crop_0_is_the_whole_frame():
    data, generator = Frames(*frames(6), tuple("abcdef")), seeded()

    def epoch(generator, crop=32, jitter=0.3):
        drawn = batches(data, 3, crop, generator, scales=(0.5, 2), colour_jitter=jitter)
        return torch.cat([crops for crops, _ in drawn])

    first = epoch(generator)
    assert first.equal(epoch(seeded()))
    assert not first.equal(epoch(generator))  # which the first has moved on
    assert not first[:3].equal(epoch(seeded(), jitter=0)[:3])  # of which the crops are the same
    assert first.shape == (6, 3, 32, 32)
    assert epoch(seeded(), crop=0).shape == (6, 3, 40, 60)


def test_each_process_needs_two_frames_of_a_batch(monkeypatch):
    monkeypatch.setattr(augment, "world_size", lambda: 2)
    assert [number_of_batches(count, 4) for count in (4, 7, 8, 12)] == [1, 1, 2, 3]
    with pytest.raises(InputError, match="batch_size 0"):
        number_of_batches(4, 0)
    with pytest.raises(InputError, match=r"batch_size 3: 2 process\(es\) need 4 at least"):
        number_of_batches(6, 3)


def test_whole_frames_at_scale_one_are_the_frames_or_their_mirror_images():
    images, labels = frames(8)
    crops, ids = scaled_crops(images, labels, (40, 60), (1, 1), seeded(), range(8))
    flips = torch.tensor([not found.equal(label) for found, label in zip(ids, labels, strict=True)])
    assert 0 < flips.sum() < 8
    assert ids.equal(torch.where(flips[:, None, None], labels.flip(-1), labels))
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(crops, images / 255, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.5, 2), (2, 2)])
def test_image_and_label_stay_together_under_scale_and_flip(scales):
    labels = torch.zeros(8, 64, 64, dtype=torch.uint8)
    labels[:, 16:40, 24:50] = 5
    images = (labels * 40)[:, None].expand(-1, 3, -1, -1).contiguous()
    crops, ids = scaled_crops(images, labels, (48, 48), scales, seeded(3), range(8))
    assert (crops.shape, ids.shape) == ((8, 3, 48, 48), (8, 48, 48))
    assert set(ids.unique().tolist()) <= {0, 5, VOID}
    inside = ids != VOID
    assert ((crops[:, 0] > 100 / 255) == (ids == 5))[inside].float().mean() > 0.97
    if scales == (0.5, 0.5):  # of 24x26 pixels, times the scale squared
        assert (ids == 5).sum() / 8 == pytest.approx(24 * 26 / 4, rel=0.1)


def test_outside_the_frame_labels_are_void_and_pixels_the_mean_colour():
    images, labels = frames(1)
    crops, ids = scaled_crops(images, labels, (40, 60), (0.5, 0.5), seeded(), [0])
    assert (ids == VOID).float().mean().item() == pytest.approx(0.75, abs=0.02)
    outside = crops[0][:, ids[0] == VOID].median(dim=1).values
    torch.testing.assert_close(outside, (images[0] / 255).mean(dim=(1, 2)), atol=1e-3, rtol=0)


def test_colours_stay_in_range_and_strength_zero_changes_nothing():
    images, _ = frames()
    same = jitter_colours(images, 0.0, seeded())
    torch.testing.assert_close(same, images / 255, atol=1e-5, rtol=0)
    changed = jitter_colours(images, 0.5, seeded())
    assert 0 <= changed.min() < changed.max() <= 1
    assert (changed - same).abs().mean() > 0.02
