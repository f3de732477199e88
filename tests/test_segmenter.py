"""Any words on any image: inputs are checked where they enter, results are those of the model."""

import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import camvid_lang
from camvid_lang.data.classes import CLASSES, PALETTE
from camvid_lang.errors import InputError
from camvid_lang.segmenter import class_colours, read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.fixture(scope="module")
def segmenter(finished):
    return camvid_lang.load(finished / "frozen-names", device="cpu")


@pytest.fixture(scope="module")
def swiftnet(finished):
    return camvid_lang.load(finished / "swiftnet", device="cpu")


# Results


def test_ids_are_the_classes_of_the_largest_cosine(segmenter):
    words = ["car", "vehicle", "shop window"]
    result, cosines = segmenter.segment(RGB, words), segmenter.cosines(RGB, words)
    assert (result.ids.dtype, result.ids.shape, result.classes) == (np.uint8, (96, 128), words)
    assert (cosines.dtype, cosines.shape) == (np.float32, (3, 96, 128))
    assert np.abs(cosines).max() <= 1 + 1e-5
    best = np.take_along_axis(cosines, result.ids[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(best, cosines.max(axis=0), atol=1e-5)


def test_own_classes_are_those_of_the_model(segmenter):
    with torch.inference_mode():
        expected = segmenter.model(torch.from_numpy(RGB).permute(2, 0, 1)[None])[0].numpy()
    for classes in (None, CLASSES):  # the run was trained on the names
        np.testing.assert_allclose(segmenter.cosines(RGB, classes), expected, atol=1e-5)
    assert segmenter.classes == segmenter.segment(RGB).classes == list(CLASSES)


@pytest.mark.parametrize(
    "classes",
    [["car", "tree"], ("car", "tree"), {"car": "car", "tree": ["tree"]}, "car, tree", "car\ntree"],
)
def test_classes_are_a_list_a_mapping_or_a_text(classes, segmenter):
    expected = segmenter.segment(RGB, {"car": ["car"], "tree": ["tree"]})
    result = segmenter.segment(RGB, classes)
    assert result.classes == expected.classes
    np.testing.assert_array_equal(result.ids, expected.ids)


def test_several_prompts_of_a_class_are_averaged(segmenter):
    both = segmenter.cosines(RGB, "car | lorry")[0]
    car, lorry = segmenter.cosines(RGB, ["car", "lorry"])
    # A unit mean of two unit vectors: the sum of their cosines, up to one positive factor.
    factor = (both * (car + lorry)).sum() / ((car + lorry) ** 2).sum()
    np.testing.assert_allclose(both, factor * (car + lorry), atol=1e-5)


def test_similarity_is_the_cosine_with_the_classes(segmenter):
    found = segmenter.similarity(["car", "tree"])
    car, tree = (segmenter.classes.index(name) for name in ("car", "tree"))
    assert found.shape == (2, 11)
    assert found[0, car] == pytest.approx(1)
    assert found[0, tree] == pytest.approx(found[1, car])
    assert found[0, tree] < 0.999
    np.testing.assert_allclose(segmenter.similarity("car"), found[:1], atol=1e-6)


def test_nothing_is_loaded_or_embedded_twice(finished, monkeypatch):
    loads, encoded = [], []
    create = open_clip.create_model
    monkeypatch.setattr(
        open_clip, "create_model", lambda *a, **k: loads.append(a) or create(*a, **k)
    )
    segmenter = camvid_lang.load(finished / "frozen-names", device="cpu")
    segmenter.similarity(["van"])
    first, encode = len(loads), segmenter._text_encoder.encode
    monkeypatch.setattr(
        segmenter._text_encoder,
        "encode",
        lambda prompts: encoded.append(prompts) or encode(prompts),
    )
    for words in ("kerb, shop", "kerb, shop", "bus, tree", "kerb, shop"):
        segmenter.segment(RGB, words)
    assert len(loads) == first
    assert len(encoded) == 2


def test_overlay_blends_the_image_with_the_classes_colours(segmenter):
    result = segmenter.segment(RGB, "lorry, car, van")
    assert result.overlay().size == (128, 96)
    np.testing.assert_array_equal(result.overlay(0), RGB)
    np.testing.assert_array_equal(result.overlay(1), np.array(result.colours)[result.ids])
    assert result.colours[1] == PALETTE[CLASSES.index("car")]


def test_colours_are_distinct():
    colours = class_colours([*CLASSES, *map(str, range(244))])
    assert len(set(colours)) == 255
    assert colours[:11] == list(PALETTE[:11])
    assert np.array(colours).min() >= 0
    assert np.array(colours).max() <= 255


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (40, 33), (1100, 300), (3000, 1)])
def test_an_image_of_any_size_gets_ids_of_its_size(size, segmenter):
    seen = []
    hook = segmenter.model.encoder.register_forward_pre_hook(
        lambda _, images: seen.append(tuple(images[0].shape[-2:]))
    )
    image = np.zeros((*size, 3), np.uint8)
    assert segmenter.segment(image, "car, tree").ids.shape == size
    assert segmenter.cosines(image, "car, tree", max_side=512).shape == (2, *size)
    hook.remove()
    for shape, limit in zip(seen, (1024, 512), strict=True):
        scale = min(1, limit / max(size))
        assert shape == tuple(max(32, round(side * scale)) for side in size)


def test_one_class_is_warned_of(segmenter):
    with pytest.warns(UserWarning, match="every pixel is 'car'"):
        assert segmenter.segment(RGB, "car").ids.max() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.cosines(RGB, "car")


def test_swiftnet_segments_its_own_classes_only(swiftnet, finished):
    frame = next((finished / "data" / "test").iterdir())
    result = swiftnet.segment(frame)
    assert result.classes == list(CLASSES)
    np.testing.assert_array_equal(swiftnet.segment(frame, CLASSES).ids, result.ids)
    for ask in (
        lambda: swiftnet.segment(frame, "car, lorry"),
        lambda: swiftnet.cosines(frame),
        lambda: swiftnet.similarity(["car"]),
    ):
        with pytest.raises(InputError, match="swiftnet segments its own 11 classes only: choose"):
            ask()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([f"word {i}" for i in range(256)], "at most 255"),
        ("car, car", "twice"),
        ([], "class"),
        ({"car": []}, "'car'"),
        ({"car": [1]}, "'car'"),
        (["street " * 100], "tokens"),
    ],
)
def test_bad_classes_are_refused(classes, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(RGB, classes)


def test_a_folder_without_a_run_or_an_unknown_device_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        camvid_lang.load(tmp_path)
    with pytest.raises(InputError, match="tpu9"):
        camvid_lang.load(finished / "frozen-names", device="tpu9")


# Images


@pytest.mark.parametrize(
    "image",
    [
        *[RGB.astype(kind) for kind in ("uint16", "int16", "int64", "uint64")],
        RGB / 255,
        (RGB / 255).astype(np.float32),
        (RGB / 255).tolist(),
        Image.fromarray(RGB),
        np.dstack([RGB, np.full_like(GREY, 255)]),
        np.asfortranarray(RGB),
    ],
    ids=lambda image: str(getattr(image, "dtype", type(image).__name__)),
)
def test_one_image_in_many_forms(image):
    read = read_rgb(image)
    assert (read.dtype, read.shape) == (np.uint8, RGB.shape)
    np.testing.assert_array_equal(read, RGB)


@pytest.mark.parametrize(
    "image",
    [
        *[
            GREY,
            GREY[..., None],
            GREY / 255,
            Image.fromarray(GREY),
            Image.fromarray(GREY).convert("P"),
        ],
        *[Image.fromarray(GREY).convert(mode) for mode in ("LA", "I", "CMYK", "RGBA")],
        Image.fromarray((GREY / 255).astype(np.float32)),
        Image.fromarray(GREY.astype(np.uint16)),
    ],
)
def test_grey_images_become_rgb(image):
    np.testing.assert_array_equal(read_rgb(image), np.dstack([GREY] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "P", "array", "float"])
def test_transparency_is_composited_on_white(mode, tmp_path):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    if mode in ("array", "float"):
        image = np.array(image) / 255 if mode == "float" else np.array(image)
    elif mode == "P":  # transparent by a palette index, as in many icons
        Image.fromarray(np.tile([0] * 20 + [1] * 20, (40, 1)).astype(np.uint8)).save(
            tmp_path / "icon.png", transparency=1
        )
        image = tmp_path / "icon.png"
    else:
        step = {"La": "LA", "PA": "P"}.get(mode, "RGBA")
        image = image.convert(step).convert(mode)
    read = read_rgb(image)
    assert read[:, :20].max() == 0
    assert read[:, 20:].min() == 255


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    for image in (path, str(path), Image.open(path)):
        upright = read_rgb(image)
        assert upright.shape == (32, 16, 3)
        assert upright[:14].mean() > 250
        assert upright[18:].mean() < 5


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB.astype(int) + 1, "values 1 to 256"),
        (RGB.astype(int) - 1, "-1 to 254"),
        (RGB.astype(np.uint16) * 257, r"scale the image to 0\.\.255"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), r"0\.\.255"),
        (RGB.astype(float), r"scale the image to 0\.\.1"),
        (RGB / 255 - 0.1, r"0\.\.1"),
        (np.where(RGB == 0, np.nan, 0.5), "nan"),
        (np.full_like(RGB, np.inf, dtype=float), "inf"),
        (RGB > 9, "bool"),
        (RGB.astype(complex), "complex"),
        (RGB.astype(object), "object"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 96, 128\)"),
        (RGB[None], "shape"),
        (RGB[..., :2], "shape"),
        (RGB[:0], "shape"),
        (np.uint8(3), "shape"),
        (None, "shape"),
        ("absent.png", "absent.png: not a readable image .No such file"),
        (".", "not a readable image"),
    ],
)
def test_what_is_not_an_image_is_refused(array, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(array)
