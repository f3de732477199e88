"""ONNX files of runs give the scores that PyTorch gives, at sizes other than the traced one."""

import json
import subprocess
import sys

import export_onnx
import numpy as np
import onnxruntime
import pytest
import torch

import camvid_lang as cl
from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.runs import build_model, run
from camvid_lang.segmenter import Segmenter


def untrained(name):
    experiment = configure(name, "cpu")
    model, text_encoder = build_model(experiment)
    return Segmenter(model.eval(), experiment, text_encoder and (lambda: text_encoder))


def check(score, model, size, classes=None):
    """`score` maps inputs of a graph to its outputs, which are those of the model."""
    image = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    found = score({"image": image})[0]
    with torch.inference_mode():
        expected = model(torch.from_numpy(image))
        if classes is not None:
            match = model.match(torch.from_numpy(image), classes.vectors)
            expected = match.scores(0.01, "anchored") * 0.01
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow(30)  # torch.export derives every layer's size as an expression of H and W
def test_text_vectors_are_an_input(finished, tmp_path):
    path, files = tmp_path / "x.onnx", (tmp_path / "run", finished / "data")
    # A projection, as the upsampler does not have the text's width.
    run(configure("full-names", "smoke", width=48), *files[::-1], device="cpu")
    command = [sys.executable, export_onnx.__file__, files[0], path, "--text-input"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    segmenter, session = cl.load(files[0], device="cpu"), onnxruntime.InferenceSession(path)
    for words in (["car", "tree", "sky"], {"vehicle": ["car", "lorry"]}):
        classes = segmenter.vocabulary(words)
        text = {"text": 3 * classes.vectors.numpy()}  # of any length
        for size in ((96, 128), (67, 101), (32, 32)):
            check(lambda x, t=text: session.run(None, x | t), segmenter.model, size, classes)
    metadata = session.get_modelmeta().custom_metadata_map
    assert ("classes" in metadata, "camvid-tiny" in metadata["text"]) == (False, True)
    assert f"text: {metadata['text']}" in printed


@pytest.mark.slow(10)
def test_a_file_of_fixed_classes(tmp_path):
    segmenter, path = untrained("swiftnet"), tmp_path / "x.onnx"
    metadata = export_onnx.export(segmenter, path)
    session = onnxruntime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map == metadata
    assert json.loads(metadata["classes"]) == list(CLASSES)
    check(lambda x: session.run(None, x), segmenter.model, (67, 101))


def test_the_classes_of_a_run_are_compared_by_cosine():
    model = untrained("adapter-names").model
    graph = export_onnx.Graph(model, model.text, is_anchored=False)
    score = torch.inference_mode()(lambda x: [graph(torch.from_numpy(x["image"])).numpy()])
    check(score, model, (67, 101))


def test_what_cannot_be_exported_is_rejected(tmp_path, monkeypatch):
    segmenter = untrained("swiftnet")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for classes, text_input, message in (
        ("car, tree", False, "fixed classes"),
        (None, True, "fixed classes"),
        ("car, tree", True, "leave out one"),
        (None, False, r'pip install "camvid-lang\[onnx\]"'),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx.export(segmenter, tmp_path / "x.onnx", classes, text_input)
    assert not list(tmp_path.iterdir())
