"""A run's model as an ONNX file, for runtimes without PyTorch."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, TINY
from camvid_lang.models.cosine import cosine_logits_float32
from camvid_lang.models.segmentation import LanguageModel, Match, SegmentationModel
from camvid_lang.models.text import parse_classes
from camvid_lang.results import atomic_write
from camvid_lang.segmenter import MIN_SIDE, Classes, Segmenter

__all__ = ["export_onnx"]


def export_onnx(
    segmenter: Segmenter,
    path: str | Path,
    classes: Classes | None = None,
    text_input: bool = False,
) -> dict[str, str]:
    """Write the model as an ONNX file; returns the metadata in it, which describe its inputs.

    The graph maps `image`, (N, 3, H, W) uint8, to `scores`, (N, K, H, W) float32: cosines by
    `cosine_logits_float32`, other words compared as in `Segmenter.segment` (the scores of `Match`
    times the temperature), or SwiftNet's logits. N, H, W are dynamic, sides at least 32.

    Args:
        segmenter: loaded on a CPU.
        classes: as for `Segmenter.segment`; their text matrix becomes a constant of the graph.
        text_input: text vectors are a second input of the graph: `text`, (K, C) float32, K
            dynamic, rows of any length but zero in the space of the run's text embeddings.

    Raises:
        InputError: onnx or onnxscript is missing; classes or `text_input` for SwiftNet; both;
            classes as for `Segmenter.segment`; weights over the 2 GB that a file may have.
    """
    model, settings, names = segmenter.model, segmenter.experiment, segmenter.classes
    if next(model.parameters()).device.type != "cpu":
        raise InputError("load the run with device='cpu' to export it")
    if classes is not None and text_input:
        raise InputError("with text as an input, classes are chosen later: leave out one of them")
    text, arguments, scores = None, (torch.zeros(2, 3, 96, 128, dtype=torch.uint8),), "logits"
    shapes = {"image": {0: "N", 2: "H", 3: "W"}}
    about = {
        "experiment": settings.name,
        "image": f"(N, 3, H, W) uint8, RGB; H and W are at least {MIN_SIDE}",
    }
    words = text_input  # other words than the run's own, as `Segmenter.segment` tells them apart
    if classes is not None or text_input or isinstance(model, LanguageModel):
        text = torch.from_numpy(segmenter.embed(classes))
        if classes is not None:
            prompts = parse_classes(classes)
            own = [*prompts.values()] == [*model.prompts.values()] and not model.unseen
            names, words = list(prompts), not own
        words = words and len(model.anchors) > 0
        scores = "cosines in [-1, 1]"
        if words:
            scores = "comparisons with the words, through the classes of training"
    about["temperature"] = str(model.temperature)
    about["scores"] = (
        f"(N, K, H, W) float32 {scores}; the largest of K is the class of the pixel, and the "
        "softmax of scores / temperature its probability"
    )
    if text_input:
        tower = TINY if settings.encoder == RESNET18 else settings.encoder
        source = f"bank {Path(settings.text_bank).name}" if settings.text_bank else f"tower {tower}"
        about["text"] = f"(K, {text.shape[1]}) float32, a vector per class, by the text {source}"
        arguments, text = (*arguments, text), None
        shapes["text"] = {0: "K"}
    else:
        about["classes"] = json.dumps(names, ensure_ascii=False)
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > 2**31 - 2**20:
        raise InputError(f"encoder {settings.encoder}: an ONNX file holds 2 GB at most")
    try:
        translations = _translations()
    except ImportError as error:
        raise InputError(
            f'ONNX needs {error.name}: python -m pip install "camvid-lang[onnx]"'
        ) from error
    with atomic_write(path) as file:
        # torch.onnx.export would trace with deferred assertions, in which torch 2.14 cannot write
        # the sizes of the pyramid pooling.
        sizes = {key: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for key, axes in shapes.items()}
        graph = _Graph(model, text, words).eval()
        traced = torch.export.export(graph, arguments, dynamic_shapes=sizes)
        program = torch.onnx.export(
            traced,
            dynamic_shapes=shapes,
            output_names=["scores"],
            custom_translation_table=translations,
            verbose=False,
        )
        program.model.metadata_props.update(about)
        file.write(program.model_proto.SerializeToString())
    return about


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
