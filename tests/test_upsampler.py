"""Sizes and parameter counts of the upsampler."""

import pytest
import torch

from camvid_lang.models.upsampler import BNReLUConv, SpatialPyramidPooling, Upsampler

CHANNELS = (4, 6, 8, 10)


@pytest.mark.parametrize(("level", "parameters"), [(640, 15_254_272), (160, 13_038_592)])
def test_parameters_are_the_thesiss(level, parameters):
    upsampler = Upsampler((128, 256, 512, 640), 640, 512, level)
    assert sum(p.numel() for p in upsampler.parameters()) == parameters


@pytest.mark.parametrize("sizes", [((90, 120), (45, 60), (22, 30), (11, 15)), ((8, 8),) * 4])
def test_result_has_the_size_of_the_finest_map_and_every_parameter_a_gradient(sizes):
    upsampler = Upsampler(CHANNELS, 12, 5, 3)
    maps = [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    result = upsampler(maps)
    assert result.shape == (2, 12, *sizes[0])
    result.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in upsampler.parameters())


def test_pyramid_grids_follow_the_aspect_ratio():
    seen = []
    pyramid = SpatialPyramidPooling(3, 4, 2, 2).eval()
    for level in pyramid.levels:
        level.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    pyramid(torch.randn(1, 3, 12, 16))
    assert seen == [(6, 8), (3, 4), (2, 3), (1, 1)]


@torch.no_grad()
def test_folding_equals_the_linear_map_afterwards_in_float32_under_autocast():
    unit, x, fold = BNReLUConv(6, 20, 3).eval(), torch.randn(2, 6, 9, 7), torch.randn(5, 20)
    expected = torch.einsum("kd,ndhw->nkhw", fold, unit(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(unit(x, fold), expected, rtol=1e-4, atol=1e-5)
