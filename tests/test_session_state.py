"""Results do not depend on what the session has set, and models take no images they misread."""

import contextlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import camvid_lang as cl
from camvid_lang.data import camvid
from camvid_lang.errors import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@contextlib.contextmanager
def changed(get, change, value):
    before = get()
    change(value)
    try:
        yield
    finally:
        change(before)


STATES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: changed(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: changed(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "numpy": lambda: np.errstate(all="raise"),
    "warnings": warnings.catch_warnings,
}


def everything(data, out):
    """What all parts of the API answer."""
    camvid._load.cache_clear()  # what is read in one state must be of use in another
    results = cl.run(cl.experiment("full-names", profile="smoke"), data, out, device="cpu")
    segmenter = cl.load(out, device="cpu")
    scored = cl.evaluate(segmenter.model, cl.load_camvid(data, "test"))
    words = "car | lorry, tree, shop window"
    found = segmenter.cosines(IMAGE, words), segmenter.probabilities(IMAGE, words)
    ids = segmenter.segment(IMAGE, words).ids, segmenter.segment(IMAGE).ids
    shift = segmenter.vocabulary_shift(cl.load_camvid(data, "test"))["wordings"]["own"]["cosine"]
    assert scored["confusion"] == results["confusion"]
    return [scored["miou"], shift["miou"], segmenter.similarity(["van"]), *found, *ids]


@pytest.fixture(scope="module")
def expected(finished, tmp_path_factory):
    return everything(finished / "data", tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_session_changes_no_result(state, finished, expected, tmp_path):
    with STATES[state]():
        if state == "warnings":
            warnings.simplefilter("error", DeprecationWarning)
        found = everything(finished / "data", tmp_path / "out")
        assert cl.score(*[finished / "data" / "testannot"] * 2)["miou"] == 100
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    cl.run(cl.experiment("adapter-names", profile="smoke"), finished / "data", tmp_path / "next")


def test_the_random_generator_of_the_session_is_restored(finished):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cl.load(finished / "swiftnet", device="cpu")
    cl.run(cl.experiment("swiftnet", profile="smoke"), finished / "data", finished / "swiftnet")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("flags", [["-OO"], ["-W", "error"], ["-bb", "-X", "dev"]])
def test_the_command_line_works_with_any_flags_of_python(flags, finished, tmp_path):
    labels = str(finished / "data" / "testannot")
    # With -OO Python would compile all of torch anew, which `list` does not import.
    for arguments in (["list"], *([["score", labels, labels]] if "error" in flags else [])):
        command = [sys.executable, *flags, "-m", "camvid_lang", *arguments]
        found = subprocess.run(command, capture_output=True, text=True, timeout=200)
        # A warning of another package is one line, too.
        assert found.returncode == 0 or ("error" in flags and found.stderr.startswith("error: "))
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.float32, "normalised", "nan"])
def test_images_of_another_range_are_refused(kind, finished):
    segmenter = cl.load(finished / "frozen-names", device="cpu")
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    if kind == "nan":
        images = torch.full((1, 3, 64, 96), torch.nan)
    else:
        images = pixels / 127 - 1 if kind == "normalised" else pixels.to(kind)
    frames = camvid.Frames(images, torch.zeros(1, 64, 96, dtype=torch.uint8), ("one",))
    model = segmenter.model
    for use in (model, model.segment, lambda _: cl.evaluate(model, frames)):
        with pytest.raises(InputError, match=r"give uint8 in 0\.\.255, or floats in 0\.\.1 as t"):
            use(images)
    model.train()
    with pytest.raises(InputError, match="images are"):
        model(images)
    model.eval()
    with torch.no_grad():
        same = model(pixels.double() / 255), model(pixels)
    torch.testing.assert_close(*same)
