"""What comes from outside: a defined result or a one-line error, no code executed, and nothing
written outside --out.

Valid files are damaged, since random bytes never get past a file's first four.
"""

import contextlib
import io
import json
import os
import pickle
import zlib
from functools import cache, partial

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from camvid_lang.cli import main
from camvid_lang.data.camvid import read_image
from camvid_lang.data.labels import CLASSES_KEY, read_dataset_info, read_label
from camvid_lang.data.words import class_prompts, parse_classes
from camvid_lang.errors import InputError
from camvid_lang.experiments import EXPERIMENTS, PROFILES, SETTINGS, Experiment, configure
from camvid_lang.models.encoder import ASSETS, TINY, load_clip, load_resnet18
from camvid_lang.models.text import TextBank
from camvid_lang.segmenter import load, read_rgb

fuzz = partial(settings, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])


@contextlib.contextmanager
def result_or_input_error(start=""):
    """Nothing but an `InputError` of one line may come out."""
    try:
        yield
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(error).startswith(start)  # noqa: PT017


places = st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(1, 64))
changes = st.lists(st.tuples(st.sampled_from("cidsx"), places), min_size=1, max_size=6)


def damage(content, steps):
    """The bytes of a file after some accidents."""
    content = bytearray(content)
    for kind, (where, value, length) in steps:
        at = int(where * (len(content) - 1))
        part = content[at : at + length]
        content[at:] = {
            "c": b"",  # cut
            "i": bytes([value]) * length + content[at:],
            "d": content[at + length :],
            "s": part[::-1] + content[at + length :],
            "x": bytes([part[0] ^ (value or 1)]) + content[at + 1 :] if part else b"",
        }[kind]
    return bytes(content)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def samples():
    """Valid images of many kinds: (suffix, content)."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(random.integers(0, 256, (24, 32), np.uint16))
    ids = Image.fromarray(random.integers(0, 12, (24, 32), np.uint8))
    exif, named = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    named.add_itxt(CLASSES_KEY, "\n".join(["car", "tree", "sky"] * 4))
    return [
        *[(".png", encoded(rgb.convert(mode), "PNG")) for mode in ("RGB", "P", "RGBA", "LA", "1")],
        *[(".png", encoded(image, "PNG")) for image in (deep, ids)],
        (".png", encoded(ids, "PNG", pnginfo=named)),
        (".jpg", encoded(rgb.convert("CMYK"), "JPEG", exif=exif)),
        (".jpg", encoded(rgb.convert("L"), "JPEG", progressive=True)),
        (".webp", encoded(rgb, "WEBP", lossless=True)),
        *[(f".{form.lower()}", encoded(rgb, form)) for form in ("BMP", "GIF", "TIFF")],
    ]


@pytest.mark.filterwarnings("ignore")
@fuzz(max_examples=500)
@given(sample=st.sampled_from(samples()), steps=st.just([]) | changes)
def test_damaged_images_and_labels(sample, steps, tmp_path_factory):
    suffix, content = sample
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(damage(content, steps))
    for read in (read_rgb, read_image):
        with result_or_input_error(f"{path}: "):
            image = read(path)
            assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))
    if not steps:
        read_rgb(path)
    with result_or_input_error(f"{path}: "):
        ids = read_label(path)
        assert (ids.dtype, ids.ndim, ids.max() <= 11) == (np.uint8, 2, True)


@fuzz(max_examples=300)
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
        assert read_rgb(array).shape == (*shape[:2], 3)


def test_an_image_that_declares_a_huge_size_is_refused(tmp_path):
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "PNG"))
    content[16:24] = (0x7FFFFFFF).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=r"huge\.png"):
        read_rgb(tmp_path / "huge.png")


run_of = cache(lambda finished: load(finished / "frozen-names", device="cpu"))
texts = st.text(max_size=60) | st.from_regex(r'([a-z$<>_\\|,{}" ]{0,9}[,|\n]){0,6}', fullmatch=True)


@pytest.mark.filterwarnings("ignore:every pixel")
@fuzz(max_examples=100)
@given(text=texts)
def test_any_words_are_segmented(text, finished):
    segmenter = run_of(finished)
    with result_or_input_error():
        classes = parse_classes(text)
        assert all(prompt.strip() for prompts in classes.values() for prompt in prompts)
        result = segmenter.segment(np.zeros((32, 32, 3), np.uint8), text)
        assert result.ids.max() < len(result.classes) == len(classes)
        assert result.overlay(legend=True).width >= 32


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
cards = st.dictionaries(st.sampled_from(["name", "note", "first_id", "void", "x", "car"]), values)
odd_values = st.sampled_from(["nan", "inf", "-1", "1e400", "0", "1_0", "٣", "True"])


@fuzz(max_examples=300)
@given(value=values | cards)
def test_any_json_as_a_text_set_or_a_card(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "dataset.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with result_or_input_error():
        prompts = class_prompts(str(path))
        assert all(isinstance(p, str) and p for group in prompts.values() for p in group)
    with result_or_input_error():
        ids = read_dataset_info(path.parent).ids
        assert (0 <= ids.first_id <= 244, 0 <= ids.void <= 255) == (True, True)


@fuzz(max_examples=300)
@given(*map(st.sampled_from, map(list, (EXPERIMENTS, PROFILES, SETTINGS))), st.text() | odd_values)
def test_any_setting(name, profile, key, value):
    with result_or_input_error():
        assert isinstance(configure(name, profile, **{key: value}), Experiment)


@fuzz(max_examples=150)
@given(steps=changes)
def test_damaged_text_banks(steps, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bank.npz"
    np.savez(path, phrases=np.array(["car", "tree"]), embeddings=np.eye(2, dtype=np.float32))
    path.write_bytes(damage(path.read_bytes(), steps))
    with result_or_input_error():
        assert TextBank(path).encode(["car"]).isfinite().all()


@pytest.mark.slow(10)
@fuzz(max_examples=25)
@given(steps=changes)
def test_damaged_weights(steps, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "weights.safetensors"
    whole = (ASSETS / f"{TINY}.safetensors").read_bytes()
    path.write_bytes(damage(whole[:20_000], steps) + whole[20_000:])  # the header and some tensors
    with result_or_input_error():
        assert all(tensor.isfinite().all() for tensor in load_clip(TINY, str(path)).parameters())


class Call(tuple):
    """(function, arguments); unpickled carelessly, it is called."""

    def __reduce__(self):
        return tuple(self)


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("weights.pt", "run bilinear-names --profile smoke --data {data} --weights {path}"),
        ("resnet.pt", "run swiftnet --profile smoke --data {data} --weights {path}"),
        ("bank.npz", "run bilinear-names --profile smoke --data {data} --text-bank {path}"),
        ("checkpoints/last-0001.pt", "segment {data}/test --run {folder}"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_not_executed(file, command, form, finished, tmp_path, capsys):
    touched, path = tmp_path / "touched", tmp_path / file
    path.parent.mkdir(exist_ok=True)
    state = {"visual.w": Call((os.system, (f"touch '{touched}'",)))}
    if file == "bank.npz" and form != "pickle":
        np.savez(path, phrases=np.array([state], dtype=object), embeddings=np.eye(2))
    elif form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    command = command.format(path=path, data=finished / "data", folder=tmp_path)
    assert main(f"{command} --out {tmp_path}/out".split()) == 1
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("error: ")
    assert path.name in output.out + output.err
    assert not touched.exists()


@pytest.mark.parametrize("load_weights", [load_resnet18, partial(load_clip, TINY)])
def test_code_is_not_executed_by_a_careless_timm_either(load_weights, tmp_path, monkeypatch):
    """timm 1.0.17 to 1.0.25 run code in a checkpoint unless `weights_only` is given."""
    touched, path = tmp_path / "touched", tmp_path / "crafted.pth"

    def load_state_dict(checkpoint_path, use_ema=True, device="cpu", weights_only=False):
        return torch.load(checkpoint_path, map_location=device, weights_only=weights_only)

    monkeypatch.setattr(timm.models, "load_state_dict", load_state_dict)
    torch.save({"w": Call((open, (str(touched), "w")))}, path)
    with pytest.raises(InputError, match=r"crafted\.pth"):
        load_weights(str(path))
    assert not touched.exists()
    load_state_dict(path)["w"].close()  # which the file would have done
    assert touched.exists()


def test_a_run_on_data_of_any_name(make_dataset, tmp_path, capsys):
    data = str(make_dataset("a b\u00a0c\u202fd\te\udcff"))
    command = ["run", "bilinear-names", "--profile", "smoke", "--out", str(tmp_path / "out")]
    for expected in ("mIoU", "finished before"):
        assert main([*command, "--data", data]) == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((words, 0) for words in ("<script>alert(1)</script>, road", "$x$, $\\frac{", "路, 🚗")),
        *((words, 0) for words in ("_hidden, {brace}, %s, ../../up", "a\tb\x07, c")),
        *((words, 1) for words in (" , ", "car, car", "word " * 3000, "b\udcff")),
    ],
)
def test_segment_writes_two_files_or_an_error(words, code, finished, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "street.png")
    command = ["segment", str(tmp_path / "street.png"), "--run", str(finished / "frozen-names")]
    assert main([*command, "--out", str(tmp_path / "out"), "--classes", words]) == code
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} - {"street.png"}
    assert written == (set() if code else {"out/street.png", "out/street_overlay.png"})
    assert capsys.readouterr().err.startswith("error: " * code)
