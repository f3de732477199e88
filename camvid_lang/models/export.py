"""A model as an ONNX graph, for runtimes without PyTorch."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camvid_lang.errors import InputError
from camvid_lang.models.cosine import cosine_logits_float32
from camvid_lang.models.segmentation import LanguageModel, Match, SegmentationModel


def onnx_graph(
    model: SegmentationModel,
    text: Tensor | None,
    words: bool,
    text_input: bool,
    about: Mapping[str, str],
) -> bytes:
    """The content of an ONNX file; see `Segmenter.export` for inputs and outputs.

    Args:
        model: on a CPU.
        text: (K, C) vectors of the classes; None for SwiftNet.
        words: compare as in `Match.scores` with "anchored", not by cosine.
        text_input: `text` is an example of a second input, not a constant.
        about: metadata of the file.

    Raises:
        InputError: onnx or onnxscript is missing; weights over the 2 GB that a file may have.
    """
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > 2**31 - 2**20:
        raise InputError("the weights are over the 2 GB that an ONNX file may have")
    try:
        translations = _translations()
    except ImportError as error:
        raise InputError(
            f'ONNX needs {error.name}: python -m pip install "camvid-lang[onnx]"'
        ) from error
    arguments = (torch.zeros(2, 3, 96, 128, dtype=torch.uint8),)
    shapes = {"image": {0: "N", 2: "H", 3: "W"}}
    if text_input:
        arguments, shapes = (*arguments, text), {**shapes, "text": {0: "K"}}
    sizes = {key: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for key, axes in shapes.items()}
    graph = _Graph(model, None if text_input else text, words).eval()
    # torch.onnx.export would trace with deferred assertions, in which torch 2.14 cannot write
    # the sizes of the pyramid pooling.
    traced = torch.export.export(graph, arguments, dynamic_shapes=sizes)
    program = torch.onnx.export(
        traced,
        dynamic_shapes=shapes,
        output_names=["scores"],
        custom_translation_table=translations,
        verbose=False,
    )
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


class _Graph(nn.Module):
    """What is exported: the model, with the head in float32.

    A projection P = QR of the features is replaced: <Pu, t> = <Ru, Q't> and |Pu| = |Ru|, which
    needs no map wider than the features and loses no digits by squaring P.
    """

    def __init__(self, model: SegmentationModel, text: Tensor | None, words: bool):
        super().__init__()
        self.model = model
        self.words = words
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
        anchors = self.model.anchors if self.words else text[:0]
        compared = torch.cat([anchors, text])
        compared = compared if self.basis is None else compared @ self.basis
        cosines = cosine_logits_float32(features, compared, image.shape[-2:])
        if not self.words:
            return cosines
        agreement, temperature = self.model.agreement(cosines, text), self.model.temperature
        match = Match(agreement, cosines[:, len(anchors) :])
        return temperature * match.scores(temperature, "anchored")


def _translations() -> dict:
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
