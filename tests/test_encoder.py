"""The dense CLIP encoder through open_clip's own loading, and ResNet-18."""

import json
import pickle
import warnings
import zipfile
from argparse import Namespace

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import camvid_lang
from camvid_lang.cli import main
from camvid_lang.errors import InputError
from camvid_lang.models.cosine import cosine_logits
from camvid_lang.models.encoder import (
    ASSETS,
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
    with pytest.raises(InputError, match=r"cannot be loaded \(.*cannot find.*\): set weights") as e:
        load()
    assert "\n" not in str(e.value)
    assert not caplog.records


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state["visual.head.proj.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"nan\.safetensors: visual\.head\.proj\.weight is not"):
        load_clip(TINY, str(tmp_path / "nan.safetensors"))


def test_weights_that_are_missing_are_refused(tmp_path):
    absent = str(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="neither a file nor a tag"):
        load_clip(TINY, absent)
    for weights in (absent, str(tmp_path), "hf-hub:nobody/nothing"):
        with pytest.raises(InputError, match=f"{weights} is missing"):
            load_resnet18(weights)


WRAPPED = {  # a state dict -> what is saved
    "plain": dict,
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
    "trainer": lambda s: {"model_state_dict": s, "args": Namespace(lr=1), "optimizer": {}},
    "backbone": lambda s: {"model": {f"backbone.net.{k}": v for k, v in s.items()}},
    "averaged": lambda s: {
        "model": {k: torch.zeros_like(v) for k, v in s.items()},
        "state_dict_ema": {f"module.{k}": v for k, v in s.items()},
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_load_through_the_wrappers_of_checkpoints(kind, tiny, tmp_path):
    resnet = timm.create_model("resnet18", num_classes=11).eval()
    torch.save(WRAPPED[kind](resnet.state_dict()), tmp_path / "resnet.pth")
    torch.save(WRAPPED[kind](tiny.state_dict()), tmp_path / "clip.pt")
    own = load_resnet18(str(tmp_path / "resnet.pth")).eval().network.state_dict()
    assert not [key for key, value in own.items() if not value.equal(resnet.state_dict()[key])]
    clip = load_clip(TINY, str(tmp_path / "clip.pt")).state_dict()
    assert not [key for key, value in clip.items() if not value.equal(tiny.state_dict()[key])]


def test_resnet18_loads_without_or_with_another_classifier(tmp_path):
    model = timm.create_model("resnet18", num_classes=0)
    plain, file = model.state_dict(), str(tmp_path / "w.safetensors")
    heads = {"fc.0.weight": torch.zeros(9, 512), "fc.2.bias": torch.zeros(3)}
    old = {k: v for k, v in AveragedModel(model).state_dict().items() if "num_batches" not in k}
    for state in (plain, {**plain, **heads}, {**plain, "fc.weight": torch.zeros(21843, 512)}, old):
        save_file(state, file)
        assert load_resnet18(file).network.layer4[1].bn2.weight.equal(plain["layer4.1.bn2.weight"])


def test_other_architectures_and_parts_are_refused_with_the_names(tiny, tmp_path):
    file = str(tmp_path / "w.pt")

    def refused(load, state, message):
        torch.save(state, file)
        with pytest.raises(InputError, match=rf"w\.pt of .* cannot be loaded.*{message}") as error:
            load(file)
        assert "\n" not in str(error.value)

    resnet = timm.create_model("resnet18").state_dict()
    part = {key: value for key, value in resnet.items() if not key.startswith("layer4.1.bn2")}
    both = {f"{part}.{k}": v for part in ("net", "ema") for k, v in resnet.items()}
    larger = {k: torch.zeros([2 * n for n in v.shape]) for k, v in resnet.items()}
    refused(load_resnet18, part, r'Missing key.*"layer4\.1\.bn2\.weight"')
    refused(load_resnet18, {**resnet, "head.weight": torch.zeros(1)}, r'Unexpected.*"head\.weight"')
    refused(load_resnet18, both, "Missing key")
    refused(load_resnet18, larger, "size mismatch")
    refused(load_resnet18, tiny.state_dict(), "Missing key")

    def clip(path):
        return load_clip(TINY, path)

    refused(clip, resnet, "Missing key")
    refused(clip, tiny.visual.state_dict(prefix="visual."), r'Missing key.*"positional_embedding"')
    larger = {k: torch.zeros([2 * n for n in v.shape]) for k, v in tiny.state_dict().items()}
    refused(clip, larger, "size mismatch")


def scripted(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(1, 1)).save(path)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("resnet18.pth", b"")


def cut(save):
    def write(path):
        save({"w": torch.rand(9999)}, path)
        path.write_bytes(path.read_bytes()[:9999])

    return write


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"<!-- saved -->\n<!DOCTYPE html><html>\n<p>Quota</html>", ""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ""),
        (b"PK\x03\x04 half an archive", ""),
        (bytes(range(256)) * 9, ""),
        (cut(save_file), ""),
        (cut(torch.save), ""),
        (pickle.dumps(Namespace(a=nn.Linear(1, 1))), ""),
        (lambda path: torch.save(nn.Linear(1, 1), path), ""),
        (scripted, ""),
        (zipped, ""),
        (lambda path: torch.save({"student": {"a": torch.zeros(1)}}, path), "tensors, but student"),
        (lambda path: torch.save([torch.zeros(1)], path), "list"),
        (lambda path: torch.save({}, path), "holds no tensors"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(content, message, name, tmp_path):
    path, said = tmp_path / name, message if name == "w.pt" else ""
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    for load in (load_resnet18, lambda path: load_clip(TINY, path)):
        with pytest.raises(InputError, match=rf"{name}: not a state dict .*{said}") as caught:
            load(str(path))
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tiny, tmp_path):
    """The tiny CLIP in open_clip's own format."""
    config = json.loads((ASSETS / f"{TINY}.json").read_text())
    (tmp_path / "own").mkdir()
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (tmp_path / "own" / "open_clip_config.json").write_text(text)
    torch.save(tiny.state_dict(), tmp_path / "own" / "open_clip_pytorch_model.bin")
    return tmp_path / "own"


def test_a_folder_in_open_clips_format_is_an_encoder(folder, tiny):
    clip = load_clip(f"local-dir:{folder}")
    assert clip.visual.head.proj.weight.equal(tiny.visual.head.proj.weight)
    assert DenseCLIPEncoder(clip).normalise.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert CLIPTextEncoder(clip, f"local-dir:{folder}").encode(["car"]).shape == (1, 64)
    file = str(folder / "open_clip_pytorch_model.bin")
    assert load_clip(TINY, file).visual.head.proj.weight.equal(tiny.visual.head.proj.weight)


def test_a_folder_that_does_not_fit_is_refused(folder, tmp_path):
    for arguments, message in (
        ((f"local-dir:{folder}", "other.pt"), "has its own weights"),
        ((TINY, str(folder)), "neither a file nor a tag .*set encoder to local-dir:FOLDER"),
        ((f"local-dir:{tmp_path}/absent",), "absent.* cannot be loaded"),
        (("hf-hub:nobody/nothing",), r"hf-hub:nobody/nothing .*cannot be loaded"),
        ((TINY, "hf-hub:nobody/nothing"), "neither a file nor a tag"),
    ):
        with pytest.raises(InputError, match=message):
            load_clip(*arguments)
    (folder / "open_clip_pytorch_model.bin").write_text("version https://git-lfs.github.com\n")
    with pytest.raises(InputError, match=r"own .*cannot be loaded"):
        load_clip(f"local-dir:{folder}")
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="own"):
        load_clip(f"local-dir:{folder}")


def test_a_run_on_a_folder_is_known_by_the_content_of_its_weights(
    folder, tiny_dataset, tmp_path, capsys
):
    command = ["run", "bilinear-names", "--profile", "smoke", "--data", str(tiny_dataset)]
    command += ["--out", str(tmp_path / "out"), "--set", f"encoder=local-dir:{folder}"]
    assert main(command) == 0
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().out
    assert camvid_lang.load(tmp_path / "out").similarity(["lorry"]).shape == (1, 11)
    moved = folder.rename(folder.with_name("moved"))
    with pytest.raises(InputError, match=r"give its path .--weights PATH"):
        camvid_lang.load(tmp_path / "out")
    found = camvid_lang.load(tmp_path / "out", weights=moved)
    assert found.similarity(["lorry"]).shape == (1, 11)
    moved.rename(folder)
    state = torch.load(folder / "open_clip_pytorch_model.bin")
    state["visual.head.proj.weight"] *= 2
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    assert main(command) == 1
    assert "weights has other content" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"was made with another encoder than .*own"):
        camvid_lang.load(tmp_path / "out")


def test_imagenet_weights_of_resnet18_load(resnet18_weights):
    encoder = load_resnet18(str(resnet18_weights)).eval()
    with torch.no_grad():
        maps = encoder(images(1, (64, 64)))
    assert all(m.isfinite().all() for m in maps)
    assert encoder.network.conv1.weight.abs().mean() > 0.01


@pytest.mark.slow(10)
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
