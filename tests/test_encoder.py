"""The dense CLIP encoder through open_clip's loading, ResNet-18, and files of weights."""

import pickle
import warnings
import zipfile
from argparse import Namespace
from functools import partial

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn

from camvid_lang.data.words import class_prompts
from camvid_lang.errors import InputError
from camvid_lang.models import THESIS_ENCODER, TINY
from camvid_lang.models.encoder import DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.models.segmentation import CLIPUpsampler
from camvid_lang.models.text import CLIPTextEncoder, embed
from camvid_lang.models.upsampler import Upsampler


def images(n=2, size=(96, 160)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_maps_at_strides_4_to_32_of_floats_and_of_bytes():
    encoder = DenseCLIPEncoder(load_clip(TINY))
    bytes_ = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8)
    for a, b, stride in zip(encoder(bytes_), encoder(bytes_ / 255), (4, 8, 16, 32), strict=True):
        torch.testing.assert_close(a, b)
        assert a.shape[-2:] == (96 // stride, 160 // stride)
    assert tuple(m.shape[1] for m in encoder(bytes_)) == encoder.channels


@torch.no_grad()
def test_mean_over_positions_is_open_clips_embedding_with_the_norm_behind_the_pooling():
    tiny, x = load_clip(TINY), images()
    encoder = DenseCLIPEncoder(tiny)
    pooled = tiny.encode_image(encoder.normalise(x))
    deepest = encoder.taps(x)[-1]
    # The whole head behind the pooling, as CLIP has it.
    head = encoder.head(deepest.mean((2, 3), keepdim=True))
    torch.testing.assert_close(head[..., 0, 0], pooled)
    # The linear layer per position and only the LayerNorm's statistics moved behind the pooling:
    # with one mean and deviation for all positions the norm is linear, so the average commutes.
    norm, linear = tiny.visual.trunk.head.norm, tiny.visual.head.proj
    mean = deepest.mean((2, 3)).mean(dim=1)[:, None, None, None]
    variance = deepest.mean((2, 3)).var(dim=1, unbiased=False)[:, None, None, None]
    normalised = (deepest - mean) / (variance + norm.eps).sqrt()
    normalised = normalised * norm.weight[:, None, None] + norm.bias[:, None, None]
    dense = torch.einsum("nchw,dc->ndhw", normalised, linear.weight)
    torch.testing.assert_close(dense.mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)
    # With the norm per position, as the thesis's dense encoder has it, it is another function.
    assert not torch.allclose(encoder(x)[-1].mean((2, 3)), pooled, atol=1e-3)
    # Each position alone.
    one = encoder.head(deepest[1:, :, 2:3, 3:4])
    torch.testing.assert_close(encoder.head(deepest)[1:, :, 2:3, 3:4], one)


@pytest.mark.parametrize("bad", ["convnext_nonsense", "", "../x\n", "local-dir:.", "hf-hub:a/b"])
def test_unknown_models_are_refused(bad):
    with pytest.raises(InputError, match=r"not in open_clip\.list_models\(\)"):
        load_clip(bad)


def test_a_tower_without_feature_maps_is_refused():
    with pytest.raises(InputError, match="convnext"):
        DenseCLIPEncoder(open_clip.create_model("ViT-B-32", pretrained=None, load_weights=False))


# Files of weights


@pytest.mark.parametrize("load", [lambda: load_clip(THESIS_ENCODER), load_resnet18])
def test_a_failed_download_is_reported_in_one_line_with_its_reason(load, caplog):
    with pytest.raises(InputError, match=r"cannot be loaded \(.*cannot find.*\): choose") as e:
        load()
    assert "\n" not in str(e.value)
    assert not caplog.records


load_tiny = partial(load_clip, TINY)
RESNET, CLIP = timm.create_model("resnet18").state_dict(), load_tiny("").state_dict()
ODD, NAN = {"head.weight": torch.zeros(1)}, torch.full((64, 128), torch.nan)


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


def test_weights_that_are_missing_are_refused(tmp_path):
    for weights in (str(tmp_path / "absent.safetensors"), str(tmp_path), "hf-hub:nobody/nothing"):
        with pytest.raises(InputError, match=f"'{weights}' are neither a file nor a tag of"):
            load_tiny(weights)
        with pytest.raises(InputError, match=f"{weights} is missing"):
            load_resnet18(weights)


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
    ],
)
def test_weights_are_loaded_from_checkpoints_and_without_a_classifier(wrap, tmp_path):
    headless = without(RESNET, "fc.")
    large = {**headless, "fc.weight": torch.zeros(21843, 512)}
    old = without(headless, "num_batches")  # torchvision's first files
    for state in (RESNET, headless, large, old):
        torch.save(wrap(state), tmp_path / "w.pth")
        found = load_resnet18(str(tmp_path / "w.pth")).network.state_dict()
        assert found.keys() == headless.keys()
        assert all(found[key].equal(value) for key, value in old.items())
    torch.save(wrap(CLIP), tmp_path / "w.pt")
    found = load_tiny(str(tmp_path / "w.pt")).state_dict()
    assert all(found[key].equal(value) for key, value in CLIP.items())


@pytest.mark.parametrize(
    ("load", "state", "message"),
    [
        (load_resnet18, without(RESNET, "layer4.1.bn2"), r'Missing key.*"layer4\.1\.bn2\.weight"'),
        (load_resnet18, {**RESNET, **ODD}, r'Unexpected key.*"head\.weight"'),
        (load_resnet18, {**RESNET, "bn1.weight": torch.zeros(2)}, "size mismatch for bn1.weight"),
        (load_tiny, RESNET, "Missing key"),
        (load_tiny, without(CLIP, "positional_emb"), "positional_embedding"),
        (load_tiny, {**CLIP, **ODD}, r'Unexpected key.*"head\.weight"'),
        (load_tiny, {**CLIP, "visual.head.proj.weight": torch.zeros(2, 2)}, "size mismatch"),
        (load_tiny, {**CLIP, "visual.head.proj.weight": NAN}, "head.proj.weight is not finite"),
        (load_resnet18, {**RESNET, "bn1.weight": NAN[0, :64]}, "bn1.weight is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_names(load, state, message, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w\.pt.*{message}") as caught:
        load(str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value)


def scripted(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(1, 1)).save(path)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resnet18.pth", b"")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"<!DOCTYPE html><html>\n<p>Quota</html>", bytes(range(256)) * 9),
        *(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"PK\x03\x04 half"),
        *(save({"w": torch.rand(9999)})[:9999], scripted, zipped),
        pickle.dumps(Namespace(a=nn.Linear(1, 1))),
        lambda path: torch.save(nn.Linear(1, 1), path),
        lambda path: torch.save({"student": {"a": torch.zeros(1)}}, path),
        lambda path: torch.save([torch.zeros(1)], path),
        lambda path: torch.save({}, path),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(content, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    for load in (load_resnet18, load_tiny):
        with pytest.raises(InputError, match=rf"{name} of .* cannot be loaded \(.*choo") as caught:
            load(str(path))
        assert "\n" not in str(caught.value)


def test_imagenet_weights_of_resnet18_load(resnet18_weights):
    encoder = load_resnet18(str(resnet18_weights)).eval()
    with torch.no_grad():
        assert all(m.isfinite().all() for m in encoder(images(1, (64, 64))))


@pytest.mark.slow(10)
def test_the_real_architecture_runs_from_a_local_file(tmp_path):
    """ConvNeXt-Base of open_clip, random weights in a file of open_clip's format."""
    file = tmp_path / "open_clip_model.safetensors"
    state = load_clip(THESIS_ENCODER, "random").state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    clip = load_clip(THESIS_ENCODER, str(file))
    vocabulary = embed(class_prompts("names"), CLIPTextEncoder(clip, THESIS_ENCODER))
    encoder = DenseCLIPEncoder(clip)
    assert encoder.channels == (128, 256, 512, 640)
    upsampler = Upsampler(encoder.channels, 640, 512, 640)
    model = CLIPUpsampler(encoder, vocabulary, 0.01, upsampler=upsampler, train_encoder=False)
    assert sum(p.numel() for p in model.decoder_parameters()) == 15_254_272
    with torch.inference_mode():
        assert model.eval()(images(1, (180, 240))).abs().max() <= 1
