"""From an experiment's settings to its model: encoder, text embeddings and what is trained."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from camvid_lang.encoder import (
    RESNET18,
    TINY,
    DenseCLIPEncoder,
    load_clip,
    load_resnet18,
    resolve_weights,
)
from camvid_lang.errors import InputError
from camvid_lang.experiments import Experiment
from camvid_lang.models import Adapter, Bilinear, Ladder, Segmenter, SwiftNet
from camvid_lang.taxonomy import CLASSES, NUM_CLASSES
from camvid_lang.text import CLIPText, PhraseFile, TextSource, class_phrases, embed_classes

__all__ = ["assemble", "build_model", "describe_encoder", "text_source", "trained_phrases"]


def text_source(experiment: Experiment) -> TextSource:
    """Where this experiment's text embeddings come from: its bank, or a text tower.

    ResNet-18 has no text tower; without a bank it learns the tiny CLIP's embeddings.
    """
    if experiment.text_bank:
        return PhraseFile(experiment.text_bank)
    if experiment.encoder == RESNET18:
        return CLIPText(TINY)
    return CLIPText(experiment.encoder, experiment.weights)


def trained_phrases(experiment: Experiment) -> dict[str, list[str]] | None:
    """{class: [phrase, ...]} of the 11 classes, by id, that the experiment learns with.

    None for swiftnet, which learns without language.

    Raises:
        InputError: a text set that does not name each of the 11 classes, and no others.
    """
    if experiment.model == "swiftnet":
        return None
    phrases = class_phrases(experiment.text_set)
    wrong = [f"lacks {name!r}" for name in CLASSES if name not in phrases]
    wrong += [f"{name!r} is none of them" for name in phrases if name not in CLASSES]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise InputError(
            f"text set {experiment.text_set}: labels have the 11 classes {', '.join(CLASSES)} "
            f"({'; '.join(wrong[:4])}{more}): map each of them to a phrase or several"
        )
    return {name: phrases[name] for name in CLASSES}


def build_model(
    experiment: Experiment, classes: Mapping | None = None, pretrained: bool = True
) -> Segmenter:
    """The experiment's model on the CPU, pretrained parts loaded, new parts seeded.

    Args:
        classes: {class: [phrase, ...]} in place of the experiment's text set.
        pretrained: False spares ResNet-18 its file where a checkpoint will replace it all.

    Raises:
        InputError: missing weights, a phrase that cannot be embedded, widths that do not meet.
    """
    if experiment.model == "swiftnet":
        text = None
    else:
        text = embed_classes(classes or trained_phrases(experiment), text_source(experiment))
    if experiment.encoder == RESNET18:
        encoder = load_resnet18(experiment.weights if pretrained else "random")
    else:
        encoder = DenseCLIPEncoder(load_clip(experiment.encoder, experiment.weights))
    return assemble(experiment, encoder, text)


def assemble(experiment: Experiment, encoder: nn.Module, text: Tensor | None) -> Segmenter:
    """The experiment's model around an encoder and a text matrix (K, C); new parts are seeded.

    Raises:
        InputError: widths of image and text that do not meet.
    """
    torch.manual_seed(experiment.seed)
    trained, temperature = experiment.train_encoder, experiment.temperature
    ladder = (experiment.width, experiment.spp_bottleneck, experiment.spp_width)
    if text is None:
        return SwiftNet(encoder, NUM_CLASSES, trained, *ladder)
    if experiment.model == "adapter":
        return Adapter(encoder, text, trained, temperature)
    if experiment.model == "ladder":
        return Ladder(encoder, text, trained, temperature, *ladder)
    if encoder.channels[-1] != text.shape[1]:
        raise InputError(
            f"{experiment.name} compares {encoder.channels[-1]}-d image embeddings "
            f"with {text.shape[1]}-d text: leave out text_bank, or give one of the same CLIP"
        )
    return Bilinear(encoder, text, False, temperature)


def describe_encoder(experiment: Experiment) -> dict:
    """Which encoder, weights and text a result was measured with, in words for a report."""
    if experiment.encoder == RESNET18:
        weights = {"": "ImageNet-1k (timm)", "random": "random initialisation"}.get(
            experiment.weights, Path(experiment.weights).name
        )
    else:
        weights = Path(resolve_weights(experiment.encoder, experiment.weights)).name
    text = "none" if experiment.model == "swiftnet" else text_source(experiment).label
    return {"name": experiment.encoder, "weights": weights, "text": text}
