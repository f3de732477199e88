"""Any words on any image: inputs are checked where they enter, results are those of the model."""

import shutil
import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import camvid_lang
from camvid_lang.data.classes import CLASSES, PALETTE
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.models.encoder import ASSETS
from camvid_lang.run import build_model, run
from camvid_lang.scenes.dataset import draw_scene, scene_seed
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
    result, cosines = segmenter.segment(RGB, words, compare="cosine"), segmenter.cosines(RGB, words)
    assert (result.ids.dtype, result.ids.shape, result.classes) == (np.uint8, (96, 128), words)
    assert (cosines.dtype, cosines.shape) == (np.float32, (3, 96, 128))
    assert np.abs(cosines).max() <= 1 + 1e-5
    best = np.take_along_axis(cosines, result.ids[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(best, cosines.max(axis=0), atol=1e-5)


def test_words_are_compared_through_the_classes_of_training(segmenter):
    words = "building, house | shop, vehicle, road"
    ids, found = segmenter.segment(RGB, words).ids, segmenter.probabilities(RGB, words)
    best = np.take_along_axis(found, ids[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(best, found.max(axis=0), atol=2e-3)
    np.testing.assert_allclose(found.astype(float).sum(axis=0), 1, atol=1e-2)
    by_cosine = segmenter.probabilities(RGB, words, compare="cosine")
    assert np.abs(found.astype(float) - by_cosine).max() > 0.1


def test_pixels_of_other_classes_are_none_of_these():
    scene, label = draw_scene(scene_seed(0, "test", 33))
    result = camvid_lang.load("demo").segment(scene, "street, cloudy sky", none_below=0.5)
    assert result.classes == ["street", "cloudy sky", "none of these"]
    assert result.colours[2] == (0, 0, 0)
    expected = {CLASSES.index("road"): 0, CLASSES.index("sky"): 1, CLASSES.index("tree"): 2}
    for class_id, found in expected.items():
        assert (result.ids == found)[label == class_id].mean() > 0.85
    everything = camvid_lang.load("demo").segment(scene, "street, cloudy sky")
    assert everything.classes == ["street", "cloudy sky"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": "dot"}, "anchored, cosine, clip"),
        ({"none_below": 2}, "0..1"),
        *(({"tile": tile}, f"tile={tile}: give a multiple of 32") for tile in (0, -32, 100)),
        ({"compare": "clip", "none_below": 0.5}, "needs the agreement"),
    ],
)
def test_options_are_checked(options, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(RGB, "car, tree", **options)
    with pytest.raises(InputError, match="needs classes in words"):
        segmenter.segment(RGB, none_below=0.5)


def test_own_classes_are_those_of_the_model(segmenter):
    with torch.inference_mode():
        expected = segmenter.model(torch.from_numpy(RGB).permute(2, 0, 1)[None])[0].numpy()
    for classes in (None, CLASSES):  # the run was trained on the names
        np.testing.assert_allclose(segmenter.cosines(RGB, classes), expected, atol=1e-5)
    assert segmenter.classes == segmenter.segment(RGB).classes == list(CLASSES)


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
    first, encoder = len(loads), segmenter._text_encoder()
    encode = encoder.encode
    monkeypatch.setattr(
        encoder, "encode", lambda prompts: encoded.append(prompts) or encode(prompts)
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


@pytest.mark.parametrize("size", [(96, 128), (128, 40)])
def test_an_image_that_fits_into_a_tile_is_segmented_as_without(size, segmenter):
    image, words = RGB[: size[0], : size[1]], "car, tree, sky"
    np.testing.assert_array_equal(
        segmenter.segment(image, words, tile=128).ids, segmenter.segment(image, words).ids
    )
    for scores in (segmenter.cosines, segmenter.probabilities):
        np.testing.assert_array_equal(scores(image, words, tile=128), scores(image, words))


@pytest.mark.parametrize("size", [(200, 301), (97, 5), (1, 400)])
def test_tiles_are_blended_without_seams(size, segmenter, swiftnet, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    words, seen = "car, tree, sky", []
    cosines = segmenter.cosines(image, words, tile=96)
    assert (cosines.dtype, cosines.shape) == (np.float32, (3, *size))
    result = segmenter.segment(image, words, tile=96, compare="cosine")
    np.testing.assert_array_equal(result.ids, cosines.argmax(axis=0))
    expected = np.exp(cosines / segmenter.temperature)
    found = segmenter.probabilities(image, words, tile=96, compare="cosine")
    np.testing.assert_allclose(found, expected / expected.sum(axis=0), atol=2e-3)
    assert swiftnet.segment(image, tile=96).ids.shape == size

    def brightness(images, text):  # a model that sees each pixel alone: tiles change nothing
        seen.append(images.shape[-2:])
        grey = images.float().mean(dim=1, keepdim=True) / 255
        return torch.cat([grey, 1 - grey, grey / 2], dim=1)

    monkeypatch.setattr(segmenter.model, "forward", brightness)
    tiled = segmenter.cosines(image, words, tile=96)
    if min(size) >= 32:  # thinner images are upsampled for the model
        np.testing.assert_allclose(tiled[0], image.mean(axis=2) / 255, atol=1e-5)
    assert max(max(shape) for shape in seen) <= 96
    assert len(seen) > 1


def test_probabilities_add_up_to_one(segmenter, swiftnet):
    for found in (segmenter.probabilities(RGB, "car, tree"), swiftnet.probabilities(RGB)):
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.astype(float).sum(axis=0), 1, atol=5e-3)
        assert found.shape[1:] == (96, 128)


def test_a_legend_is_below_the_overlay(segmenter):
    result = segmenter.segment(RGB, ["car", "tree", "a word that is wider than the image", "木"])
    plain, with_legend = (np.array(result.overlay(legend=on)) for on in (False, True))
    np.testing.assert_array_equal(with_legend[:96, :128], plain)
    strip = with_legend[96:]
    for colour in result.colours:
        assert (strip == colour).all(axis=-1).sum() > 50
    assert (strip[:, -3:] == 255).all()  # names end before the edge


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


# Runs whose files have moved or changed


def write_bank(path, sign=1, width=64, **more):
    """Of the 11 names, and of two words more whose vectors have the sign."""
    vectors = np.random.default_rng(0).normal(size=(13, width)).astype(np.float32)
    vectors[11:] *= sign
    np.savez(path, phrases=[*CLASSES, "lorry", "kerb"], embeddings=vectors, **more)


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """A folder of runs and the files that they were made with."""
    root = tmp_path_factory.mktemp("made")
    bank, weights = root / "bank.npz", root / "clip.safetensors"
    write_bank(bank)
    shutil.copy(ASSETS / "camvid-tiny.safetensors", weights)
    files = {"encoder": "camvid-tiny", "weights": str(weights), "text_bank": str(bank)}
    for name in ("bilinear-names", "adapter-names", "full-names"):
        run(configure(name, "smoke", **files), finished / "data", root / name, device="cpu")
    return root


@pytest.fixture
def moved(made, tmp_path):
    """The same, elsewhere: the recorded paths are free."""
    for path in made.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    for name in ("bank.npz", "clip.safetensors"):
        (made / name).unlink()
    yield tmp_path
    for name in ("bank.npz", "clip.safetensors"):
        (tmp_path / name).exists() and shutil.copy(tmp_path / name, made / name)


@pytest.mark.parametrize("name", ["bilinear-names", "adapter-names", "full-names"])
def test_a_run_needs_its_files_for_other_words_only(name, made, moved):
    (moved / name / "results.json").unlink()  # an unfinished run is loaded as a finished one
    given = {} if name == "full-names" else {"weights": moved / "clip.safetensors"}
    segmenter = camvid_lang.load(moved / name, device="cpu", **given)
    own = segmenter.segment(RGB)
    np.testing.assert_array_equal(segmenter.segment(RGB, CLASSES).ids, own.ids)
    assert segmenter.segment(RGB, "tree, Car").classes == ["tree", "Car"]
    assert segmenter.similarity(["car"])[0, CLASSES.index("car")] == pytest.approx(1)
    with pytest.raises(InputError, match=r"bank\.npz .*No such file.*give its path \(--text-bank"):
        segmenter.segment(RGB, "lorry, car")
    write_bank(made / "bank.npz", sign=-1)  # the own words' vectors are the same
    np.testing.assert_array_equal(segmenter.segment(RGB).ids, own.ids)
    with pytest.raises(
        InputError, match=rf"/{name} was made with another .*bank\.npz.*--text-bank"
    ):
        segmenter.segment(RGB, "lorry, car")
    (made / "bank.npz").unlink()
    given["text_bank"] = moved / "bank.npz"
    there = camvid_lang.load(moved / name, device="cpu", **given)
    np.testing.assert_array_equal(there.segment(RGB).ids, own.ids)
    assert there.cosines(RGB, "lorry, car").shape == (2, 96, 128)
    np.testing.assert_allclose(there.cosines(RGB, "car"), there.cosines(RGB)[8:9], atol=1e-6)


@pytest.mark.parametrize("name", ["bilinear-names", "adapter-names"])
def test_a_frozen_encoder_is_that_of_the_run_or_refused(name, made, moved, monkeypatch):
    with pytest.raises(InputError, match=r"clip\.safetensors' .*give its path \(--weights"):
        camvid_lang.load(moved / name)
    state = open_clip.create_model("camvid-tiny", load_weights=False).state_dict()
    torch.save(state, made / "other.pt")
    shutil.copy(made / "other.pt", made / "clip.safetensors")
    with pytest.raises(InputError, match=r"clip\.safetensors.*--weights"):
        camvid_lang.load(moved / name)
    (made / "clip.safetensors").unlink()
    for key, path in (("weights", made / "other.pt"), ("text_bank", made / "other.npz")):
        write_bank(made / "other.npz", sign=-1)
        with pytest.raises(InputError, match=f"was made with another .*{path.name}"):
            camvid_lang.load(moved / name, **{"weights": moved / "clip.safetensors", key: path})
    monkeypatch.chdir(moved)
    assert camvid_lang.load(name, weights="clip.safetensors").segment(RGB, "car, sky")


def test_the_text_tower_of_a_trained_clip_is_that_of_the_run(finished, tmp_path):
    weights = tmp_path / "clip.safetensors"
    shutil.copy(ASSETS / "camvid-tiny.safetensors", weights)
    entry = configure("full-names", "smoke", encoder="camvid-tiny", weights=str(weights))
    run(entry, finished / "data", tmp_path / "run", device="cpu")
    own = camvid_lang.load(tmp_path / "run").segment(RGB)
    camvid_lang.load(tmp_path / "run").segment(RGB, "lorry, kerb")
    weights.rename(tmp_path / "elsewhere.safetensors")
    segmenter = camvid_lang.load(tmp_path / "run")
    np.testing.assert_array_equal(segmenter.segment(RGB).ids, own.ids)
    with pytest.raises(InputError, match="--weights PATH"):
        segmenter.segment(RGB, "lorry, kerb")
    camvid_lang.load(tmp_path / "run", weights=tmp_path / "elsewhere.safetensors").similarity("bus")
    write_bank(tmp_path / "bank.npz")
    with pytest.raises(InputError, match=r"was made with another .*bank\.npz"):
        camvid_lang.load(tmp_path / "run", text_bank=tmp_path / "bank.npz")


def test_a_bank_of_another_clip_is_refused(tmp_path):
    def build(model, width=64, **settings):
        write_bank(tmp_path / "bank.npz", width=width, **({"model": model} if model else {}))
        files = {"text_bank": str(tmp_path / "bank.npz"), "weights": "random"}
        return build_model(configure(settings.pop("name"), "smoke", **files, **settings))

    for name in ("bilinear-names", "adapter-names", "frozen-names"):
        for model in ("ViT-B-16", "camvid-tiny-2"):
            with pytest.raises(InputError, match=f"is of {model}, but the encoder is camvid-tiny"):
                build(model, name=name, encoder="camvid-tiny")
        for model in ("", "camvid-tiny", "Camvid_Tiny"):
            build(model, name=name, encoder="camvid-tiny")
    build("ViT-B-16", width=512, name="frozen-names", encoder="resnet18")  # any bank fits


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


def test_a_16_bit_file_is_read_if_its_values_are_those_of_8_bits(tmp_path):
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "low.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "low.png")[..., 0], GREY)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "high.png")
    with pytest.raises(InputError, match=r"high\.png: uint16 values 0 to 65535: scale the image"):
        read_rgb(tmp_path / "high.png")
    with pytest.raises(InputError, match="list: not an image"):
        read_rgb([[1, 2], [3]])


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
        ("absent.png", "absent.png: cannot be read as an image .No such file"),
        (".", "cannot be read as an image"),
    ],
)
def test_what_is_not_an_image_is_refused(array, message, segmenter):
    with pytest.raises(InputError, match=message):
        segmenter.segment(array)
