"""Any words on any image: inputs are checked where they enter, results are those of the model."""

import io
import shutil
import warnings

import numpy as np
import open_clip
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image

import camvid_lang
from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import ASSETS
from camvid_lang.models.segmentation import COMPARE
from camvid_lang.report.legend import class_colours
from camvid_lang.runs import build_model, run
from camvid_lang.segmenter import read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.fixture(scope="module")
def segmenter(finished):
    return camvid_lang.load(finished / "frozen-names", device="cpu")


@pytest.fixture(scope="module")
def swiftnet(finished):
    return camvid_lang.load(finished / "swiftnet", device="cpu")


def test_ids_are_the_classes_of_the_largest_cosine_or_probability(segmenter, swiftnet):
    words = ["car", "vehicle", "shop window"]
    result, cosines = segmenter.segment(RGB, words, compare="cosine"), segmenter.cosines(RGB, words)
    assert (result.ids.dtype, result.ids.shape, result.classes) == (np.uint8, (96, 128), words)
    assert (cosines.dtype, cosines.shape) == (np.float32, (3, 96, 128))
    for found, ids in (
        (cosines, result.ids),
        (segmenter.probabilities(RGB, words), segmenter.segment(RGB, words).ids),
        (swiftnet.probabilities(RGB), swiftnet.segment(RGB).ids),
    ):
        best = np.take_along_axis(found, ids[None].astype(int), axis=0)[0]
        np.testing.assert_allclose(best, found.max(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.astype(float).sum(axis=0), 1, atol=1e-2)
    # Words are compared through the classes of training.
    by_cosine, found = (segmenter.probabilities(RGB, words, compare=x) for x in COMPARE[:2])
    assert np.abs(found.astype(float) - by_cosine).max() > 0.1


def test_pixels_of_other_classes_are_none_of_these(scenes):
    scene, label = (sorted((scenes / folder).iterdir())[0] for folder in ("test", "testannot"))
    label, segmenter = np.array(Image.open(label)), camvid_lang.load("demo")
    result = segmenter.segment(scene, "street, cloudy sky", none_below=0.5)
    assert result.classes == ["street", "cloudy sky", "none of these"]
    expected = {CLASSES.index("road"): 0, CLASSES.index("sky"): 1, CLASSES.index("tree"): 2}
    for class_id, found in expected.items():
        assert (result.ids == found)[label == class_id].mean() > 0.85
    shares = segmenter.probabilities(scene, "street, cloudy sky", none_below=0.5)
    assert (shares.argmax(axis=0) == result.ids).mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": "dot"}, "anchored, cosine, clip"),
        ({"none_below": 2}, r"none_below=2: choose a value in 0\.\.1"),
        *(({"tile": tile}, f"tile={tile}: choose a multiple of 32") for tile in (0, -32, 100)),
        ({"max_side": 31}, "max_side=31: choose at least 32"),
        ({"compare": "clip", "none_below": 0.5}, "excludes compare='clip'"),
        ({"classes": [f"word {i}" for i in range(256)]}, "at most 255"),
        ({"classes": ["street " * 100]}, "tokens"),
        ({"classes": None, "none_below": 0.5}, "needs classes in words"),
    ],
)
def test_arguments_are_checked(options, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(RGB, **{"classes": "car, tree", **options})


def test_the_default_is_the_model_and_its_vocabulary(segmenter):
    with torch.inference_mode():
        expected = segmenter.model(torch.from_numpy(RGB).permute(2, 0, 1)[None])[0].numpy()
    for classes in (None, CLASSES):  # the run was trained on the names
        np.testing.assert_allclose(segmenter.cosines(RGB, classes), expected, atol=1e-5)
    assert segmenter.classes == segmenter.segment(RGB).classes == list(CLASSES)


def test_similarity_is_the_cosine_with_the_classes(segmenter):
    found = segmenter.similarity(["car", "tree"])
    car, tree = (segmenter.classes.index(name) for name in ("car", "tree"))
    assert found[0, car] == pytest.approx(1)
    assert found[0, tree] == pytest.approx(found[1, car]) != pytest.approx(1)
    vocabulary = segmenter.vocabulary("Car, lorry | van")
    assert (vocabulary.names, vocabulary.prompts[1]) == (("Car", "lorry"), ("lorry", "van"))


def test_nothing_is_loaded_or_embedded_twice(finished, monkeypatch):
    segmenter, encoded = camvid_lang.load(finished / "frozen-names", device="cpu"), []
    segmenter.similarity(["van"])
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("loaded again"))
    encoder = segmenter._text_encoder()
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: encoded.append(texts) or encode(texts))
    for words in ("kerb, shop", "kerb, shop", "bus, tree", "kerb, shop"):
        segmenter.segment(RGB, words)
    assert encoded == [["kerb", "shop"], ["bus"]]


def test_an_overlay_blends_the_image_with_colours_above_a_legend(segmenter):
    words = ["lorry", "car", "a word that is wider than the image", "木"]
    result = segmenter.segment(RGB, words)
    np.testing.assert_array_equal(result.overlay(0), RGB)
    np.testing.assert_array_equal(result.overlay(1), np.array(result.colours)[result.ids])
    plain, with_legend = (np.array(result.overlay(legend=on)) for on in (False, True))
    np.testing.assert_array_equal(with_legend[:96, :128], plain)
    for colour in result.colours:
        assert (with_legend[96:] == colour).all(axis=-1).sum() > 50
    assert (with_legend[96:, -3:] == 255).all()  # names end before the edge
    assert len({*class_colours([*CLASSES, *map(str, range(244))])}) == 255


def test_a_notebook_shows_a_result_as_an_image_and_a_segmenter_in_one_line(segmenter, finished):
    def shown(value):
        return DisplayFormatter().format(value)[0]

    result = segmenter.segment(RGB, "car, tree")
    image = Image.open(io.BytesIO(shown(result)["image/png"]))
    np.testing.assert_array_equal(image, result.overlay(legend=True))
    large = segmenter.segment(np.zeros((300, 2100, 3), np.uint8))
    assert 512 < Image.open(io.BytesIO(shown(large)["image/png"])).width <= 1024
    line = shown(segmenter)["text/plain"]
    assert line == (
        f"Segmenter(frozen-names from {finished / 'frozen-names'}: {', '.join(CLASSES)})"
    )


def test_the_model_of_drawn_scenes_warns_of_other_images(scenes):
    segmenter, scene = camvid_lang.load("demo"), next((scenes / "test").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.segment(scene)
    with pytest.warns(UserWarning, match="demo knows drawn street scenes only"):
        segmenter.segment(RGB)


def test_a_missing_run_is_an_error_that_gives_a_similar_name(finished):
    for name, fix in (
        ("dmeo", "did you mean 'demo'?"),
        (str(finished / "frozen-nmaes"), f"did you mean '{finished / 'frozen-names'}'?"),
        (finished / "xyz", "give the folder of a run, or camvid or demo"),
    ):
        with pytest.raises(InputError) as error:
            camvid_lang.load(name)
        assert str(error.value) == f"{name}: no such run; {fix}"


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
    assert segmenter.max_side == 171  # 4/3 of frames of 96x128
    for shape, limit in zip(seen, (171, 512), strict=True):
        scale = min(1, limit / max(size))
        assert shape == tuple(max(32, round(side * scale)) for side in size)


@pytest.mark.parametrize("size", [(200, 301), (97, 5), (1, 400)])
def test_tiles_are_blended_without_seams(size, segmenter, swiftnet, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    words, seen = "car, tree, sky", []
    cosines = segmenter.cosines(image, words, tile=96)
    assert cosines.shape == (3, *size)
    result = segmenter.segment(image, words, tile=96, compare="cosine")
    np.testing.assert_array_equal(result.ids, cosines.argmax(axis=0))
    assert swiftnet.segment(image, tile=96).ids.shape == size

    def brightness(images, text):  # a model that sees each pixel alone: tiles change nothing
        seen.append(images.shape[-2:])
        grey = images.float().mean(dim=1, keepdim=True) / 255
        return torch.cat([grey, 1 - grey, grey / 2], dim=1)

    monkeypatch.setattr(segmenter.model, "forward", brightness)
    tiled = segmenter.cosines(image, words, tile=96)
    if min(size) >= 32:  # thinner images are upsampled for the model
        np.testing.assert_allclose(tiled[0], image.mean(axis=2) / 255, atol=1e-5)
    assert max(map(max, seen)) <= 96


def test_swiftnet_segments_its_classes_only(swiftnet):
    result = swiftnet.segment(RGB)
    assert result.classes == list(CLASSES)
    np.testing.assert_array_equal(swiftnet.segment(RGB, CLASSES).ids, result.ids)
    for ask, *arguments in ((swiftnet.segment, RGB, "car, lorry"), (swiftnet.cosines, RGB)):
        with pytest.raises(InputError, match="swiftnet has fixed classes, its 11: choose a run"):
            ask(*arguments)


def write_bank(path, sign=1, width=64, **more):
    """Of the 11 names, whose vectors have the sign, and of two other words."""
    vectors = np.random.default_rng(0).normal(size=(13, width)).astype(np.float32)
    vectors[:3] *= sign
    np.savez(path, phrases=[*CLASSES, "lorry", "kerb"], embeddings=vectors, **more)


@pytest.fixture
def moved(finished, tmp_path):
    """`moved(name)`: a run, and where its weights and its text bank, if it has one, are now."""

    def make(name, has_bank=True):
        bank, weights = tmp_path / "bank.npz", tmp_path / "clip.safetensors"
        write_bank(bank)
        shutil.copy(ASSETS / "camvid-tiny.safetensors", weights)
        files = {"weights": str(weights), "text_bank": str(bank) if has_bank else ""}
        experiment = configure(name, "smoke", encoder="camvid-tiny", **files)
        run(experiment, finished / "data", tmp_path / name, device="cpu")
        (tmp_path / "new").mkdir()
        return tmp_path / name, *(x.rename(tmp_path / "new" / x.name) for x in (weights, bank))

    return make


@pytest.mark.parametrize("name", ["bilinear-names", "adapter-names", "full-names"])
def test_a_run_needs_its_files_for_other_words_only(name, moved, tmp_path):
    folder, weights, bank = moved(name)
    (folder / "results.json").unlink()  # an unfinished run is loaded as a finished one
    files = {} if name == "full-names" else {"weights": weights}
    segmenter = camvid_lang.load(folder, device="cpu", **files)
    expected = segmenter.segment(RGB).ids
    np.testing.assert_array_equal(segmenter.segment(RGB, CLASSES).ids, expected)
    with pytest.warns(UserWarning, match="every pixel is 'Car'"):
        assert segmenter.segment(RGB, "Car").classes == ["Car"]
    with pytest.raises(InputError, match=r"bank\.npz .*No such.* its path \(text_bank=PATH\)"):
        segmenter.segment(RGB, "lorry, car")
    write_bank(tmp_path / "bank.npz", sign=-1)
    with pytest.raises(InputError, match=rf"/{name} was made with another .*bank\.npz.*text_bank="):
        segmenter.segment(RGB, "lorry, car")
    (tmp_path / "bank.npz").unlink()
    found = camvid_lang.load(folder, device="cpu", text_bank=bank, **files)
    np.testing.assert_array_equal(found.segment(RGB).ids, expected)
    assert found.cosines(RGB, "lorry, car").shape == (2, 96, 128)
    np.testing.assert_allclose(found.cosines(RGB, "car"), found.cosines(RGB)[8:9], atol=1e-6)


@pytest.mark.parametrize("name", ["bilinear-names", "adapter-names"])
def test_a_frozen_encoder_is_that_of_the_run_or_refused(name, moved, tmp_path, monkeypatch):
    folder, weights, _ = moved(name)
    with pytest.raises(InputError, match=r"clip\.safetensors' .* give its path \(weights=PATH\)"):
        camvid_lang.load(folder)
    state = open_clip.create_model("camvid-tiny", load_weights=False).state_dict()
    torch.save(state, tmp_path / "other.pt")
    write_bank(tmp_path / "other.npz", sign=-1)
    for key, wrong in (("weights", "other.pt"), ("text_bank", "other.npz")):
        files = {"weights": weights, key: tmp_path / wrong}
        with pytest.raises(InputError, match=rf"was made with another .*{wrong}.*\({key}=PATH\)"):
            camvid_lang.load(folder, **files)
    monkeypatch.chdir(tmp_path)
    assert camvid_lang.load(name, weights="new/clip.safetensors")


def test_the_text_tower_of_a_trained_clip_is_that_of_the_run(moved):
    folder, weights, _ = moved("full-names", has_bank=False)
    segmenter = camvid_lang.load(folder)
    assert len(segmenter.segment(RGB).classes) == 11
    with pytest.raises(InputError, match="weights=PATH"):
        segmenter.segment(RGB, "lorry, kerb")
    camvid_lang.load(folder, weights=weights).segment(RGB, "lorry, kerb")


def test_a_bank_of_another_clip_is_refused(tmp_path):
    def build(name, model, width=64, encoder="camvid-tiny"):
        write_bank(tmp_path / "bank.npz", width=width, model=model)
        files = {"text_bank": str(tmp_path / "bank.npz"), "weights": "random"}
        return build_model(configure(name, "smoke", encoder=encoder, **files))

    for name in ("bilinear-names", "adapter-names", "frozen-names"):
        with pytest.raises(InputError, match="is of camvid-tiny-2, but the encoder is camvid-tiny"):
            build(name, "camvid-tiny-2")
        build(name, "Camvid_Tiny")
    build("frozen-names", "ViT-B-16", width=512, encoder="resnet18")  # any bank fits


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        *((RGB.astype(kind), RGB) for kind in ("uint16", "int16", "int64", "uint64")),
        *((image, RGB) for image in (RGB / 255, (RGB / 255).tolist(), Image.fromarray(RGB))),
        *((image, RGB) for image in (np.dstack([RGB, GREY | 255]), np.asfortranarray(RGB))),
        *((image, GREY) for image in (GREY, GREY[..., None], GREY / 255)),
        *((Image.fromarray(GREY).convert(x), GREY) for x in ("L", "P", "LA", "I", "CMYK")),
        *((Image.fromarray(GREY.astype(kind)), GREY) for kind in ("uint16", "int32")),
        (Image.fromarray((GREY / 255).astype(np.float32)), GREY),
    ],
)
def test_one_image_in_many_forms(image, expected):
    read = read_rgb(image)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, RGB if expected is RGB else np.dstack([GREY] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "P", "array"])
def test_transparency_is_composited_on_white(mode, tmp_path):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 40))
    if mode == "array":
        image = np.array(image) / 255
    elif mode == "P":  # transparent by a palette index, as in many icons
        ids = np.tile([0] * 20 + [1] * 20, (40, 1)).astype(np.uint8)
        Image.fromarray(ids).save(tmp_path / "icon.png", transparency=1)
        image = tmp_path / "icon.png"
    else:
        image = image.convert({"La": "LA", "PA": "P"}.get(mode, "RGBA")).convert(mode)
    read = read_rgb(image)
    assert (read[:, :20].max(), read[:, 20:].min()) == (0, 255)


def test_exif_orientation_is_applied(tmp_path):
    exif, path = Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(RGB).save(path, exif=exif)
    for image in (path, str(path), Image.open(path)):
        np.testing.assert_array_equal(read_rgb(image), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB.astype(int) + 1, "values 1 to 256"),
        (RGB.astype(int) - 1, "-1 to 254"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "uint16 values 0 to 65535: scale"),
        (RGB.astype(float), r"scale the image to 0\.\.1"),
        (np.where(RGB == 0, np.nan, 0.5), "nan"),
        (np.full_like(RGB, np.inf, dtype=float), "inf"),
        *((RGB.astype(kind), kind) for kind in ("bool", "complex", "object")),
        (RGB.transpose(2, 0, 1), r"shape \(3, 96, 128\)"),
        *((array, "shape") for array in (RGB[None], RGB[..., :2], RGB[:0], np.uint8(3), None)),
        ([[1, 2], [3]], "list: not an image"),
        ("absent.png", "absent.png: cannot be read as an image .No such file"),
    ],
)
def test_what_is_not_an_image_is_refused(array, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(array)
