"""The dense CLIP encoder through open_clip's own loading, and ResNet-18."""

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from camvid_lang.errors import InputError
from camvid_lang.models.cosine import cosine_logits
from camvid_lang.models.encoder import (
    THESIS_ENCODER,
    TINY,
    DenseCLIPEncoder,
    load_clip,
    load_resnet18,
)
from camvid_lang.models.segmentation import CLIPUpsampler
from camvid_lang.models.text import CLIPTextEncoder, class_prompts, embed_classes


@pytest.fixture(scope="module")
def tiny():
    return load_clip(TINY)


def images(n=2, size=(96, 160)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


def test_four_taps_at_strides_4_to_32(tiny):
    encoder = DenseCLIPEncoder(tiny)
    maps = encoder(images())
    strides = (4, 8, 16, 32)
    assert [tuple(m.shape[-2:]) for m in maps] == [(96 // s, 160 // s) for s in strides]
    assert tuple(m.shape[1] for m in maps) == encoder.channels
    assert encoder.channels[-1] == tiny.encode_text(torch.zeros(1, 77, dtype=torch.long)).shape[1]


@torch.no_grad()
def test_mean_over_positions_is_open_clips_own_embedding_with_the_norm_behind_the_pooling(tiny):
    encoder = DenseCLIPEncoder(tiny)
    x = images()
    own = tiny.encode_image(encoder.normalise(x))
    deepest = encoder.taps(x)[-1]
    # The whole head behind the pooling, as CLIP has it.
    torch.testing.assert_close(encoder.head(deepest.mean((2, 3), keepdim=True))[..., 0, 0], own)
    # The linear layer per position and only the LayerNorm's statistics moved behind the pooling:
    # with one mean and deviation for all positions the norm is linear, so the average commutes.
    norm, linear = tiny.visual.trunk.head.norm, tiny.visual.head.proj
    pooled = deepest.mean((2, 3))
    mean = pooled.mean(dim=1)[:, None, None, None]
    deviation = (pooled.var(dim=1, unbiased=False) + norm.eps).sqrt()[:, None, None, None]
    normalised = (deepest - mean) / deviation
    normalised = normalised * norm.weight[:, None, None] + norm.bias[:, None, None]
    dense = torch.einsum("nchw,dc->ndhw", normalised, linear.weight)
    torch.testing.assert_close(dense.mean((2, 3)), own, rtol=1e-4, atol=1e-5)
    # With the norm per position, as the thesis's dense encoder has it, it is another function.
    assert not torch.allclose(encoder(x)[-1].mean((2, 3)), own, atol=1e-3)


@torch.no_grad()
def test_the_head_is_applied_to_each_position_alone(tiny):
    encoder = DenseCLIPEncoder(tiny)
    deepest = encoder.taps(images())[-1]
    embedded = encoder.head(deepest)
    one = encoder.head(deepest[1:, :, 2:3, 3:4])
    torch.testing.assert_close(embedded[1:, :, 2:3, 3:4], one)


def test_bytes_and_floats_give_the_same(tiny):
    encoder = DenseCLIPEncoder(tiny)
    bytes_ = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(encoder(bytes_), encoder(bytes_ / 255), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", ["convnext_nonsense", "", "../x\n"])
def test_unknown_models_are_refused(bad):
    with pytest.raises(InputError, match="open_clip"):
        load_clip(bad)


def test_a_tower_without_feature_maps_is_refused():
    with pytest.raises(InputError, match="convnext"):
        DenseCLIPEncoder(open_clip.create_model("ViT-B-32", pretrained=None, load_weights=False))


@pytest.mark.parametrize("load", [lambda: load_clip(THESIS_ENCODER), load_resnet18])
def test_a_failed_download_is_reported_in_one_line_with_its_reason(load, caplog):
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(.*cannot find.*\): set weights"
    ) as e:
        load()
    assert "\n" not in str(e.value)
    assert not caplog.records


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state["visual.head.proj.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"nan\.safetensors: visual\.head\.proj\.weight is not"):
        load_clip(TINY, str(tmp_path / "nan.safetensors"))


def test_unfitting_weight_files_are_refused(tmp_path):
    rubbish = tmp_path / "rubbish.safetensors"
    rubbish.write_bytes(b"no weights")
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    for file in (rubbish, other):
        with pytest.raises(InputError, match=file.name) as caught:
            load_clip(TINY, str(file))
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=file.name):
            load_resnet18(str(file))
    with pytest.raises(InputError, match="neither a file nor"):
        load_clip(TINY, str(tmp_path / "absent.safetensors"))
    with pytest.raises(InputError, match=r"absent\.safetensors is missing"):
        load_resnet18(str(tmp_path / "absent.safetensors"))


def test_resnet18_has_four_taps_at_any_size():
    encoder = load_resnet18("random").eval()
    maps = encoder(images(1, (360, 480)))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 90, 120),
        (128, 45, 60),
        (256, 23, 30),
        (512, 12, 15),
    ]


def test_imagenet_weights_of_resnet18_load(resnet18_weights):
    encoder = load_resnet18(str(resnet18_weights)).eval()
    with torch.no_grad():
        maps = encoder(images(1, (64, 64)))
    assert all(m.isfinite().all() for m in maps)
    assert encoder.network.conv1.weight.abs().mean() > 0.01


@pytest.mark.slow
def test_the_real_architecture_runs_from_a_local_file(tmp_path):
    """ConvNeXt-Base of open_clip, random weights in a file of open_clip's format, 360x480."""
    torch.manual_seed(0)
    untrained = load_clip(THESIS_ENCODER, "random")
    file = tmp_path / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in untrained.state_dict().items()}, file)
    del untrained
    clip = load_clip(THESIS_ENCODER, str(file))
    text = embed_classes(class_prompts("names"), CLIPTextEncoder(clip, THESIS_ENCODER))
    assert text.shape == (11, 640)
    encoder = DenseCLIPEncoder(clip)
    assert encoder.channels == (128, 256, 512, 640)
    model = CLIPUpsampler(encoder, text, False, 0.01, 640, 512, 640).eval()
    assert sum(p.numel() for p in model.decoder_parameters()) == 15_254_272
    with torch.inference_mode():
        bilinear = cosine_logits(encoder(images(1, (360, 480)))[-1], text, (360, 480))
        cosines = model(images(1, (360, 480)))
    for output in (bilinear, cosines):
        assert output.shape == (1, 11, 360, 480)
        assert output.abs().max() <= 1
