"""ONNX files of runs give the scores that PyTorch gives, at sizes other than the traced one."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch

import camvid_lang
from camvid_lang.cli import main
from camvid_lang.data.classes import CLASSES
from camvid_lang.experiments import configure
from camvid_lang.models.cosine import cosine_logits, cosine_logits_float32
from camvid_lang.run import build_model, run
from camvid_lang.segmenter import Segmenter

SIZES = ((96, 128), (67, 101), (32, 32))


def images(size, count=1):
    return np.random.default_rng(0).integers(0, 256, (count, 3, *size), dtype=np.uint8)


def assert_equal(path, model, sizes=SIZES, text=None):
    """Scores within 1e-4, and at most 1 of 10,000 pixels of another class (one, of few pixels)."""
    session = onnxruntime.InferenceSession(path)
    for size in sizes:
        image, more = images(size, 2), {} if text is None else {"text": text}
        found = session.run(["scores"], {"image": image, **more})[0]
        with torch.inference_mode():
            expected = model(torch.from_numpy(image))
            if text is not None:
                match = model.match(torch.from_numpy(image), torch.from_numpy(text))
                expected = match.scores(0.01, "anchored") * 0.01
            expected = expected.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        differ = (found.argmax(axis=1) != expected.argmax(axis=1)).sum()
        assert differ <= max(1, 1e-4 * 2 * np.prod(size))
    return session.get_modelmeta().custom_metadata_map


def untrained(name, **settings):
    experiment = configure(name, "cpu", **settings)
    model, text_encoder = build_model(experiment)
    return Segmenter(model.eval(), experiment, text_encoder and (lambda: text_encoder))


@pytest.mark.slow(30)  # torch.export derives every layer's size as an expression of H and W
def test_text_vectors_are_an_input(finished, tmp_path, capsys):
    path, out = str(tmp_path / "x.onnx"), tmp_path / "adapter"
    run(configure("adapter-names", "smoke"), finished / "data", out)
    assert main(["export", str(out), path, "--text-input"]) == 0
    segmenter = camvid_lang.load(out, device="cpu")
    for words in (["car", "tree", "sky"], {"vehicle": ["car", "lorry"]}):
        about = assert_equal(path, segmenter.model, ((67, 101),), segmenter.embed(words))
    assert "classes" not in about
    assert "camvid-tiny" in about["text"]
    assert f"text: {about['text']}" in capsys.readouterr().out


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    ("name", "classes", "scores"),
    # As in `segment`, words that are all the run's own are compared by cosine.
    [("swiftnet", None, "logits"), ("adapter-names", ",".join(CLASSES), "cosines")],
)
def test_own_classes_are_part_of_the_file(name, classes, scores, tmp_path):
    segmenter = untrained(name)
    segmenter.export(tmp_path / "x.onnx", classes)
    about = assert_equal(tmp_path / "x.onnx", segmenter.model)
    assert json.loads(about["classes"]) == list(CLASSES)
    assert scores in about["scores"]


@pytest.mark.slow(45)
def test_words_are_part_of_the_file(tmp_path):
    path, words = str(tmp_path / "x.onnx"), "road, car|lorry, sky, house"
    # The upsampler has not the text's width: a projection.
    segmenter = untrained("full-names", input_scale=2.0, width=48)
    segmenter.export(path, words)
    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["road", "car", "sky", "house"]
    for size in SIZES:
        scores = session.run(None, {"image": images(size)})[0][0] / float(about["temperature"])
        found = torch.from_numpy(scores).softmax(dim=0).numpy()
        rgb = images(size)[0].transpose(1, 2, 0)
        np.testing.assert_allclose(found, segmenter.probabilities(rgb, words), rtol=0, atol=2e-3)


def test_what_cannot_be_exported_is_refused(finished, tmp_path, capsys, monkeypatch):
    path = str(tmp_path / "x.onnx")
    for options in (["--text-input"], ["--classes", "car, tree"]):
        assert main(["export", str(finished / "swiftnet"), path, *options]) == 1
        assert "own 11 classes only" in capsys.readouterr().err
    assert main(["export", "demo", path, "--classes", "car, tree", "--text-input"]) == 1
    assert "leave out one" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "demo", path]) == 1
    assert 'pip install "camvid-lang[onnx]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [4, 64, 512])
def test_the_head_in_float32_is_close_to_that_in_float64(channels):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, channels, 45, 60, generator=generator)
    text = torch.nn.functional.normalize(torch.randn(11, channels, generator=generator), dim=1)
    found, exact = (
        head(features, text, (180, 240)) for head in (cosine_logits_float32, cosine_logits)
    )
    # Neighbours of few channels often nearly cancel.
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4 if channels < 64 else 2e-6)
