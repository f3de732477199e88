"""Image encoders with four taps: any open_clip model on a timm feature hierarchy, and ResNet-18.

Both take RGB images and give four maps at strides 4, 8, 16 and 32, finest first.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import timm
import torch
from torch import Tensor, nn

from camvid_lang.errors import InputError

__all__ = [
    "RESNET18",
    "THESIS_ENCODER",
    "THESIS_WEIGHTS",
    "TINY",
    "DenseCLIPEncoder",
    "ResNetEncoder",
    "load_clip",
    "load_resnet18",
]

TINY = "camvid-tiny"
RESNET18 = "resnet18"
THESIS_ENCODER = "convnext_base_w_320"
THESIS_WEIGHTS = "laion_aesthetic_s13b_b82k_augreg"

ASSETS = Path(__file__).parent.parent / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_clip(name: str, weights: str = "") -> open_clip.CLIP:
    """An open_clip model in float32, in evaluation mode, through open_clip's own loading.

    Args:
        name: a name of `open_clip.list_models()`, or `camvid-tiny`, the model the package carries.
        weights: a pretrained tag, or a file in open_clip's format (.safetensors, or a state dict
            saved by torch: .pt, .bin). Empty: the tag the thesis used, or the shipped file.
            `random`: none, for measuring speed.

    Raises:
        InputError: unknown model, missing or unfitting weights, hub out of reach.
    """
    if name == TINY and TINY not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{TINY}.json")
    if name not in open_clip.list_models():
        raise InputError(
            f"encoder '{name}' is no open_clip model; python -c 'import open_clip; "
            "print(open_clip.list_models())' lists those there are"
        )
    if weights == "random":
        with _quiet():
            return open_clip.create_model(name, load_weights=False).eval()
    source = resolve_weights(name, weights)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source not in tags and not Path(source).is_file():
        known = f"a tag of {name} ({', '.join(tags)})" if tags else "one of its tags"
        raise InputError(
            f"weights '{source}' are neither a file nor {known}; give a file in open_clip's format"
        )
    try:
        with _quiet():
            model = open_clip.create_model(name, pretrained=source, require_pretrained=True)
    except Exception as error:
        raise InputError(_why_not_loaded(name, source, source in tags, error)) from error
    _refuse_not_finite(model, source)
    return model.eval()


def resolve_weights(name: str, weights: str) -> str:
    """The tag or file that `load_clip` reads for these arguments."""
    if weights:
        return str(weights)
    if name == TINY:
        return str(ASSETS / f"{TINY}.safetensors")
    if name == THESIS_ENCODER:
        return THESIS_WEIGHTS
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise InputError(f"open_clip knows no weights for '{name}': give a file with --weights")
    return tags[0]


def _why_not_loaded(name: str, source: str, is_tag: bool, error: Exception) -> str:
    if is_tag:
        return (
            f"weights '{source}' of {name} are not on this machine and the model hub cannot be "
            "reached; give a local file in open_clip's format with --weights FILE "
            f"(or connect once, and open_clip keeps them); the reason: {_short(error)}"
        )
    return f"weights file {source} does not fit open_clip's {name}: {_short(error)}"


def _refuse_not_finite(model: nn.Module, source: str) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {source}: {name} is not finite; fetch the file again")


def _short(error: Exception) -> str:
    """The first words of an error, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs what it then also raises, and torch warns of it; our users get one line."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


class _Normalised(nn.Module):
    """Brings images to the scale a network was trained on."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 in 0..255 or float in [0, 1] -> normalised float."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self.mean) / self.std


class DenseCLIPEncoder(nn.Module):
    """CLIP's image tower with its head applied to every position instead of to the average.

    The thesis skips the head's global pooling and applies its linear layer at each position of the
    stride-32 map; the LayerNorm between the two is kept and applied per position too.

    Args:
        clip: an open_clip model whose image tower is a timm network with feature maps at strides
            4, 8, 16 and 32 (all `convnext_*`).

    Attributes:
        channels: channels of the four maps; the last is the width of the text embeddings.

    Raises:
        InputError: the image tower is no such hierarchy.
    """

    def __init__(self, clip: open_clip.CLIP):
        super().__init__()
        self.visual = clip.visual
        info = getattr(getattr(self.visual, "trunk", None), "feature_info", None)
        if not info or [level["reduction"] for level in info] != [4, 8, 16, 32]:
            raise InputError(
                f"the image tower of {type(clip).__name__} has no maps at strides 4, 8, 16 and 32: "
                "choose a convnext_* model of open_clip"
            )
        preprocess = open_clip.get_model_preprocess_cfg(clip)
        self.normalise = _Normalised(preprocess["mean"], preprocess["std"])
        self.indices = list(range(len(info)))
        with torch.no_grad():
            deepest = torch.zeros(1, info[-1]["num_chs"], 1, 1)
            width = self.head(deepest).shape[1]
        self.channels = (*(level["num_chs"] for level in info[:-1]), width)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The tower's own four maps for (N, 3, H, W) images, the last without the head."""
        features = self.visual.forward_intermediates(
            self.normalise(images), indices=self.indices, intermediates_only=True
        )
        return features["image_intermediates"]

    def head(self, deepest: Tensor) -> Tensor:
        """LayerNorm and linear layer at each position: (N, C, h, w) -> (N, D, h, w).

        Each position is handed to the tower's own head as a 1x1 map, whose average it is.
        """
        n, c, h, w = deepest.shape
        cells = deepest.permute(0, 2, 3, 1).reshape(n * h * w, c, 1, 1)
        embedded = self.visual.head(self.visual.trunk.forward_head(cells))
        return embedded.reshape(n, h, w, -1).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16 and, embedded, 32."""
        *skips, deepest = self.taps(images)
        return [*skips, self.head(deepest)]


class ResNetEncoder(nn.Module):
    """timm's ResNet-18 with four taps, for SwiftNet and for real words on a small machine.

    Attributes:
        channels: (64, 128, 256, 512).
    """

    channels = (64, 128, 256, 512)

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.normalise = _Normalised(IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16, 32."""
        return self.network.forward_intermediates(
            self.normalise(images), indices=[1, 2, 3, 4], intermediates_only=True
        )


def load_resnet18(weights: str = "") -> ResNetEncoder:
    """ResNet-18 from timm.

    Args:
        weights: a file under timm's key names (.safetensors or .pth); `random` for no weights;
            empty for timm's ImageNet weights from the hub.

    Raises:
        InputError: missing or unfitting file, hub out of reach.
    """
    if weights in ("", "random"):
        try:
            with _quiet():
                network = timm.create_model(RESNET18, pretrained=not weights)
        except Exception as error:
            raise InputError(
                "ImageNet weights of resnet18 are not on this machine and the model hub cannot be "
                "reached; give a local file under timm's key names with --weights FILE; "
                f"the reason: {_short(error)}"
            ) from error
    else:
        if not Path(weights).is_file():
            raise InputError(f"weights file {weights} does not exist")
        network = timm.create_model(RESNET18)
        try:
            with _quiet():
                timm.models.load_checkpoint(network, str(weights), weights_only=True)
        except Exception as error:
            raise InputError(
                f"weights file {weights} is no ResNet-18 of timm: {_short(error)}"
            ) from error
        _refuse_not_finite(network, weights)
    network.reset_classifier(0)
    return ResNetEncoder(network)
