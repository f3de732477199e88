"""Write the model of a run as an ONNX graph, for runtimes without PyTorch and this package.

    python scripts/export_onnx.py RUN OUT.onnx [--classes "road, car"] [--text-input]

RUN is a folder, or `demo`. Needs `pip install "camvid-lang[onnx]"`. N, H, W and K are dynamic:

    image   (N, 3, H, W) uint8, RGB, both sides at least 32
    text    (K, C) float32, a vector per class, of any length but zero; only with --text-input. It
            is `cl.load(RUN).vocabulary(["road", "car"]).vectors.numpy()`
    scores  (N, K, H, W) float32. The class of a pixel is the largest of K, and its probabilities
            are the softmax of scores / temperature: cosines for the classes of the run, logits for
            SwiftNet; other words are compared through the classes of training, as in `segment`

Metadata hold `temperature`, what `scores` are and, without --text-input, `classes`:

    import json, numpy as np, onnxruntime
    from PIL import Image

    session = onnxruntime.InferenceSession("street.onnx")
    image = np.array(Image.open("street.jpg").convert("RGB")).transpose(2, 0, 1)[None]  # uint8
    ids = session.run(["scores"], {"image": image})[0][0].argmax(axis=0)  # from (1, K, H, W)
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camvid_lang as cl
from camvid_lang.data.words import Classes
from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, TINY
from camvid_lang.models.cosine import _neighbours, _upsampled
from camvid_lang.models.segmentation import LanguageModel, Match, SegmentationModel
from camvid_lang.results import atomic_write
from camvid_lang.segmenter import Segmenter


def cosine_logits_float32(features: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """`cosine_logits` of float32 tensors, in float32 throughout: ops that other runtimes have too.

    Differs from `cosine_logits` by 1e-7 |f|^2 / |u|^2, where u is the upsampled vector and f the
    longest of the four that it lies between: by 1e-6 at most for a ResNet-18 on CamVid.
    """
    products = torch.einsum("nchw,kc->nkhw", features, text)
    inner = ((a * b).sum(dim=1) for a, b in _neighbours(features))
    return _upsampled(products, inner, size, features.dtype).clamp(-1, 1)


class Graph(nn.Module):
    """What is exported: the model, with the head in float32.

    A projection P = QR of the features is replaced: <Pu, t> = <Ru, Q't> and |Pu| = |Ru|, which
    needs no map wider than the features and loses no digits by squaring P. `text` may be None.
    """

    def __init__(self, model: SegmentationModel, text: Tensor | None, is_anchored: bool):
        super().__init__()
        self.model, self.is_anchored = model, is_anchored
        basis = triangle = None
        if getattr(model, "projection", None) is not None:
            basis, triangle = torch.linalg.qr(model.projection.detach().double())
            basis, triangle = basis.float(), triangle[:, :, None, None].float()
        self.register_buffer("basis", basis)
        self.register_buffer("triangle", triangle)
        self.register_buffer("text", text)

    def forward(self, image: Tensor, text: Tensor | None = None) -> Tensor:
        if not isinstance(self.model, LanguageModel):
            return self.model(image)
        text = F.normalize(self.text if text is None else text, dim=1)
        features = self.model.features(self.model.encode(image))
        if self.triangle is not None:
            features = F.conv2d(features, self.triangle)
        anchors = self.model.anchors if self.is_anchored else text[:0]
        compared = torch.cat([anchors, text])
        compared = compared if self.basis is None else compared @ self.basis
        cosines = cosine_logits_float32(features, compared, image.shape[-2:])
        if not self.is_anchored:
            return cosines
        agreement, temperature = self.model.agreement(cosines, text), self.model.temperature
        match = Match(agreement, cosines[:, len(anchors) :])
        return temperature * match.scores(temperature, "anchored")


def translations() -> dict:
    """ONNX of two functions that torch.onnx does not translate at dynamic sizes."""
    from onnxscript import opset18 as op

    def rounded(number, digits=None):
        return op.Cast(op.Round(number), to=7)  # INT64; half to even, as Python

    def averages(size, count):
        """(count, size): row i averages cells from floor(i size/count) to ceil((i+1) size/count)"""
        first = op.Range(0, count, 1)
        low, high = op.Div(op.Mul(first, size), count), op.Add(first, 1)
        high = op.Div(op.Add(op.Mul(high, size), op.Sub(count, 1)), count)
        cell, low, high = op.Range(0, size, 1), op.Unsqueeze(low, [1]), op.Unsqueeze(high, [1])
        inside = op.And(op.GreaterOrEqual(cell, low), op.Less(cell, high))
        return op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(high, low), to=1))

    def adaptive_avg_pool2d(x, output_size):
        rows, columns = output_size
        height, width = (op.Squeeze(op.Shape(x, start=i, end=i + 1)) for i in (2, 3))
        pooled = op.MatMul(averages(height, rows), x)
        return op.MatMul(pooled, op.Transpose(averages(width, columns), perm=[1, 0]))

    return {round: rounded, torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d}


def onnx_file(graph: Graph, text: Tensor | None, metadata: Mapping[str, str]) -> bytes:
    """The content of an ONNX file; `text` is an example of the second input, if there is one."""
    try:
        table = translations()
    except ImportError as error:
        advice = 'python -m pip install "camvid-lang[onnx]"'
        raise InputError(f"ONNX needs {error.name}: {advice}") from error
    if sum(tensor.nbytes for tensor in graph.state_dict().values()) > 2**31 - 2**20:
        raise InputError("the weights are over the 2 GB that an ONNX file may have")
    arguments = (torch.zeros(2, 3, 96, 128, dtype=torch.uint8),)
    shapes = {"image": {0: "N", 2: "H", 3: "W"}}
    if text is not None:
        arguments, shapes = (*arguments, text), {**shapes, "text": {0: "K"}}
    sizes = {key: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for key, axes in shapes.items()}
    # torch.onnx.export would trace with assertions that cannot hold the sizes of pyramid pooling.
    traced = torch.export.export(graph.eval(), arguments, dynamic_shapes=sizes)
    options = {"output_names": ["scores"], "custom_translation_table": table, "verbose": False}
    program = torch.onnx.export(traced, dynamic_shapes=shapes, **options)
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def export(
    segmenter: Segmenter, path: str | Path, classes: Classes | None = None, text_input: bool = False
) -> dict[str, str]:
    """Write the file described above and return its metadata.

    Raises:
        InputError: onnx or onnxscript is missing; classes or `text_input` for SwiftNet; both.
    """
    if classes is not None and text_input:
        raise InputError("with text as an input, classes are chosen later: leave out one")
    if text_input:
        segmenter.need_language()
    model, experiment, kind, is_anchored = segmenter.model, segmenter.experiment, "logits", False
    words = getattr(model, "vocabulary", None) if classes is None else segmenter.vocabulary(classes)
    if words:
        is_other = text_input or words.prompts != model.vocabulary.prompts
        is_anchored = is_other and len(model.anchors) > 0
        kind = "compared through the classes of training" if is_anchored else "cosines in [-1, 1]"
    metadata = {"experiment": experiment.name, "temperature": str(segmenter.temperature)}
    metadata["scores"] = f"(N, K, H, W) float32, {kind}"
    if text_input:
        source = Path(experiment.text_bank or experiment.encoder.replace(RESNET18, TINY)).name
        metadata["text"] = f"(K, {words.vectors.shape[1]}) float32, by the text encoder of {source}"
    else:
        names = words.names if words else segmenter.classes
        metadata["classes"] = json.dumps(names, ensure_ascii=False)
    text = words and words.vectors.clone()  # torch.export takes the model's for a constant
    constant, example = (None, text) if text_input else (text, None)
    with atomic_write(path) as file:
        file.write(onnx_file(Graph(model, constant, is_anchored), example, metadata))
    return metadata


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model of a run as an ONNX file.")
    parser.add_argument("run", help="the run's folder, or demo")
    parser.add_argument("path", metavar="OUT.onnx")
    parser.add_argument("--classes", help='words instead of the run\'s, as "road, car | lorry"')
    parser.add_argument("--text-input", action="store_true", help="text vectors are an input")
    parser.add_argument("--weights", help="where the encoder's weights are now")
    parser.add_argument("--text-bank", help="where the text bank is now")
    args = parser.parse_args()
    Path(args.path).parent.mkdir(parents=True, exist_ok=True)
    try:
        segmenter = cl.load(args.run, "cpu", text_bank=args.text_bank, weights=args.weights)
        metadata = export(segmenter, args.path, args.classes, args.text_input)
    except InputError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{key}: {value}" for key, value in metadata.items()))


if __name__ == "__main__":
    main()
