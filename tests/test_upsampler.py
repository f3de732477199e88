"""Sizes and parameter counts of the upsampler."""

import pytest
import torch

from camvid_lang.models.upsampler import SpatialPyramidPooling, Upsampler

THESIS_CHANNELS = (128, 256, 512, 640)


@pytest.mark.parametrize(("level", "parameters"), [(640, 15_254_272), (160, 13_038_592)])
def test_parameters_are_the_thesiss(level, parameters):
    upsampler = Upsampler(THESIS_CHANNELS, 640, 512, level)
    assert sum(p.numel() for p in upsampler.parameters()) == parameters


@pytest.mark.parametrize("sizes", [((90, 120), (45, 60), (22, 30), (11, 15)), ((8, 8),) * 4])
def test_result_has_the_size_of_the_finest_skip(sizes):
    upsampler = Upsampler((4, 6, 8, 10), 12, 5, 3).eval()
    maps = [torch.randn(2, c, *size) for c, size in zip((4, 6, 8, 10), sizes, strict=True)]
    assert upsampler(maps).shape == (2, 12, *sizes[0])


def test_pyramid_grids_follow_the_aspect_ratio():
    seen = []
    pyramid = SpatialPyramidPooling(3, 4, 2, 2).eval()
    for level in pyramid.levels:
        level.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    pyramid(torch.randn(1, 3, 12, 16))
    assert seen == [(6, 8), (3, 4), (2, 3), (1, 1)]


def test_every_parameter_learns():
    upsampler = Upsampler((4, 6, 8, 10), 12, 5, 3)
    maps = [torch.randn(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate((4, 6, 8, 10))]
    upsampler(maps).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in upsampler.parameters())
