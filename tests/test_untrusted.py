"""Images, words, text banks and weights from outside: a defined result or a one-line error, never a
traceback, no code executed, nothing written outside --out.

The fuzzing damages valid files (bytes changed, cut, inserted, swapped), since random bytes never
get past a file's first four.
"""

import contextlib
import io
import json
import os
import pickle
import zlib
from functools import partial

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from camvid_lang.cli import main
from camvid_lang.data.camvid import read_image
from camvid_lang.data.labels import read_label
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, PROFILES, Experiment, configure
from camvid_lang.models.encoder import ASSETS, TINY, load_clip, load_resnet18
from camvid_lang.models.text import TextBank, class_prompts, parse_classes
from camvid_lang.segmenter import load, read_rgb


def fuzz(cases):
    return settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def result_or_input_error():
    """Nothing but an `InputError` may come out."""
    with contextlib.suppress(InputError):
        yield


changes = st.lists(
    st.tuples(st.sampled_from("cidsx"), st.floats(0, 1), st.integers(0, 255), st.integers(1, 64)),
    min_size=1,
    max_size=6,
)


def damage(content, steps):
    """The bytes of a file after some accidents."""
    content = bytearray(content)
    for kind, where, value, length in steps:
        at = int(where * len(content))
        if kind == "c":  # cut
            del content[max(at, 1) :]
        elif kind == "i":
            content[at:at] = bytes([value]) * length
        elif kind == "d":
            del content[at : at + length]
        elif kind == "s":
            content[at : at + length] = content[at : at + length][::-1]
        elif content:
            content[min(at, len(content) - 1)] ^= value or 1
    return bytes(content)


# Images and labels


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def samples():
    """Valid images of many kinds: (suffix, content)."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 500, zip=True)
    return [
        (".png", encoded(rgb, "PNG", pnginfo=text)),
        *[(".png", encoded(rgb.convert(mode), "PNG")) for mode in ("P", "RGBA", "LA", "1")],
        (".png", encoded(Image.fromarray(random.integers(0, 256, (9, 9), np.uint16)), "PNG")),
        (".png", encoded(Image.fromarray(random.integers(0, 12, (24, 32), np.uint8)), "PNG")),
        (".jpg", encoded(rgb, "JPEG", exif=exif)),
        (".jpg", encoded(rgb.convert("CMYK"), "JPEG")),
        (".jpg", encoded(rgb.convert("L"), "JPEG", progressive=True)),
        (".webp", encoded(rgb, "WEBP", lossless=True)),
        (".bmp", encoded(rgb, "BMP")),
        (".gif", encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])),
        (".tif", encoded(rgb, "TIFF", compression="tiff_lzw")),
    ]


IMAGES = samples()


@pytest.mark.parametrize(("suffix", "content"), IMAGES)
def test_whole_images_are_read(suffix, content, tmp_path):
    path = tmp_path / f"whole{suffix}"
    path.write_bytes(content)
    assert read_rgb(path).shape in ((24, 32, 3), (32, 24, 3), (9, 9, 3))


@pytest.mark.filterwarnings("ignore")
@fuzz(700)
@given(sample=st.sampled_from(IMAGES), steps=st.just([]) | changes)
def test_damaged_images(sample, steps, tmp_path_factory):
    suffix, content = sample
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(damage(content, steps))
    for read in (read_rgb, read_image):
        with result_or_input_error():
            image = read(path)
            assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))
    try:
        ids, _ = read_label(path)
        assert (ids.dtype, ids.ndim) == (np.uint8, 2)
        assert ids.max() <= 11
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@fuzz(300)
@given(
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    kind=st.sampled_from("?bBhHiIlLefdFDOSUM"),
    value=st.sampled_from([0, 1, 0.5, 255, 256, -1, np.nan, np.inf]),
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_any_array(shape, kind, value):
    array = np.zeros(shape, "M8[s]" if kind == "M" else kind)
    with contextlib.suppress(OverflowError, ValueError, TypeError):  # the value does not fit
        array = np.full(shape, value).astype(array.dtype)
    with result_or_input_error():
        image = read_rgb(array)
        assert image.shape == (*shape[:2], 3)


def test_an_image_that_declares_a_huge_size_is_refused(tmp_path):
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "PNG"))
    content[16:24] = (0x7FFFFFFF).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=r"huge\.png"):
        read_rgb(tmp_path / "huge.png")


# Words and settings

texts = st.text(max_size=60) | st.from_regex(r'([a-z$<>_\\|,{}" ]{0,9}[,|\n]){0,6}', fullmatch=True)


@fuzz(300)
@given(text=texts)
def test_any_text_is_read_as_classes(text):
    with result_or_input_error():
        classes = parse_classes(text)
        assert classes
        assert all(prompt.strip() for prompts in classes.values() for prompt in prompts)


@pytest.mark.filterwarnings("ignore:every pixel")
@fuzz(100)
@given(text=texts)
def test_any_words_are_segmented(text, segmenter):
    with result_or_input_error():
        result = segmenter.segment(np.zeros((32, 32, 3), np.uint8), text)
        assert result.ids.max() < len(result.classes)
        assert result.overlay().size == (32, 32)


@pytest.fixture(scope="module")
def segmenter(finished):
    return load(finished / "frozen-names", device="cpu")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["car", ""]) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@fuzz(300)
@given(value=values)
def test_any_json_as_a_text_set(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with result_or_input_error():
        prompts = class_prompts(str(path))
        assert all(isinstance(p, str) and p for group in prompts.values() for p in group)


@fuzz(300)
@given(
    name=st.sampled_from(sorted(EXPERIMENTS)),
    profile=st.sampled_from(PROFILES),
    key=st.sampled_from([*Experiment.__dataclass_fields__, "epoch"]),
    value=st.text(max_size=12)
    | st.sampled_from(["nan", "inf", "-1", "1e400", "0", "1_0", "٣", "True"]),
)
def test_any_setting(name, profile, key, value):
    if key not in ("name", "profile"):
        with result_or_input_error():
            assert isinstance(configure(name, profile, **{key: value}), Experiment)


# Text banks and weights


@fuzz(150)
@given(steps=changes)
def test_damaged_text_banks(steps, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bank.npz"
    np.savez(path, phrases=np.array(["car", "tree"]), embeddings=np.eye(2, dtype=np.float32))
    path.write_bytes(damage(path.read_bytes(), steps))
    with result_or_input_error():
        assert TextBank(path).encode(["car"]).isfinite().all()


@pytest.mark.slow(10)
@fuzz(25)
@given(steps=changes)
def test_damaged_weights(steps, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "weights.safetensors"
    whole = (ASSETS / f"{TINY}.safetensors").read_bytes()
    path.write_bytes(damage(whole[:20_000], steps) + whole[20_000:])  # the header and some tensors
    with result_or_input_error():
        assert all(tensor.isfinite().all() for tensor in load_clip(TINY, str(path)).parameters())


class Call:
    """Unpickled carelessly, it calls `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("kind", ["weights.pt", "weights.bin", "resnet.pt", "bank.npz"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_executed(kind, form, finished, tmp_path, capsys):
    touched, path = tmp_path / "touched", tmp_path / kind
    state = {"visual.w": Call(os.system, f"touch '{touched}'")}
    if kind == "bank.npz" and form != "pickle":
        np.savez(path, phrases=np.array([state], dtype=object), embeddings=np.eye(2))
    elif form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    option = "--text-bank" if kind == "bank.npz" else "--weights"
    name = "swiftnet" if kind == "resnet.pt" else "bilinear-names"
    out = tmp_path / "out"
    command = ["run", name, "--profile", "smoke", "--data", str(finished / "data")]
    assert main([*command, "--out", str(out), option, str(path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert kind in error
    assert not touched.exists()


@pytest.mark.parametrize("load_weights", [load_resnet18, partial(load_clip, TINY)])
def test_code_is_not_executed_by_a_careless_timm_either(load_weights, tmp_path, monkeypatch):
    """timm 1.0.17 to 1.0.25 run code in a checkpoint unless `weights_only` is given."""

    def load_state_dict(checkpoint_path, use_ema=True, device="cpu", weights_only=False):
        return torch.load(checkpoint_path, map_location=device, weights_only=weights_only)

    monkeypatch.setattr(timm.models, "load_state_dict", load_state_dict)
    torch.save({"w": Call(open, str(tmp_path / "touched"), "w")}, tmp_path / "crafted.pth")
    with pytest.raises(InputError, match=r"crafted\.pth"):
        load_weights(str(tmp_path / "crafted.pth"))
    assert not (tmp_path / "touched").exists()


def test_the_crafted_file_would_be_noticed(tmp_path):
    torch.save(Call(open, str(tmp_path / "touched"), "w"), tmp_path / "crafted.pt")
    torch.load(tmp_path / "crafted.pt", weights_only=False).close()
    assert (tmp_path / "touched").exists()


# Through the command line


@pytest.mark.parametrize("name", ["a b\u00a0c\u202fd\te", "b\udcff"])
def test_a_run_on_data_of_any_name_can_be_read_back(name, make_dataset, tmp_path, capsys):
    command = ["run", "bilinear-names", "--profile", "smoke", "--data", str(make_dataset(name))]
    for expected in ("mIoU", "finished before"):
        assert main([*command, "--out", str(tmp_path / "out")]) == 0
        assert expected in capsys.readouterr().out


def test_frames_smaller_than_the_encoders_need_are_one_line(make_dataset, tmp_path, capsys):
    command = ["run", "frozen-names", "--profile", "smoke", "--out", str(tmp_path / "out")]
    assert main([*command, "--data", str(make_dataset(size=(24, 128)))]) == 1
    assert "128x24" in capsys.readouterr().err.splitlines()[-1]


STREET = encoded(Image.new("RGB", (40, 30)), "PNG")


@pytest.mark.parametrize(
    ("words", "content", "code"),
    [
        ("<script>alert(1)</script>, road", STREET, 0),
        ("$x$, $\\frac{", STREET, 0),
        ("_hidden, {brace}, %s, ../../up", STREET, 0),
        ("a\tb\x07, c", STREET, 0),
        ("路, 🚗", STREET, 0),
        ("", STREET, 1),
        (" , ", STREET, 1),
        ("car, car", STREET, 1),
        ("word " * 3000, STREET, 1),
        ("b\udcff", STREET, 1),
        ("road, car", b"", 1),
        ("road, car", b"not an image", 1),
        ("road, car", STREET[:60], 1),
    ],
)
def test_segment_with_any_words_and_any_file(words, content, code, finished, tmp_path, capsys):
    (tmp_path / "street.png").write_bytes(content)
    command = ["segment", str(tmp_path / "street.png"), "--run", str(finished / "frozen-names")]
    assert main([*command, "--out", str(tmp_path / "out"), "--classes", words]) == code
    written = {path.name for path in tmp_path.rglob("*")} - {"street.png", "out"}
    if code:
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ")
        assert not written
    else:
        assert written == {"street_overlay.png"}
        assert (tmp_path / "out" / "street.png").exists()
