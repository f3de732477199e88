"""Image encoders with feature maps at four strides: CLIP towers of open_clip, and ResNet-18.

Both take RGB images and return four maps at strides 4, 8, 16 and 32, finest first.
"""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS, TINY

__all__ = [
    "RESNET18",
    "THESIS_ENCODER",
    "THESIS_WEIGHTS",
    "TINY",
    "DenseCLIPEncoder",
    "ResNetEncoder",
    "load_clip",
    "load_resnet18",
    "resolve_weights",
]

ASSETS = Path(__file__).parent.parent / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Raised for weights that are missing, damaged or of another model; the hub's are OSErrors.
UNLOADABLE = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
UNLOADABLE += (EOFError, StopIteration, pickle.UnpicklingError, SafetensorError)


def load_clip(name: str, weights: str = "") -> open_clip.CLIP:
    """An open_clip model in float32 and evaluation mode, loaded by open_clip itself.

    Args:
        name: a name of `open_clip.list_models()`, or `camvid-tiny`, which the package ships.
        weights: a pretrained tag, or a file in open_clip's format (.safetensors, or a state dict
            saved by torch: .pt, .bin). Empty: see `resolve_weights`. `random`: untrained, for
            measuring speed.

    Raises:
        InputError: unknown model; weights that are missing, cannot be downloaded or do not fit.

    Example:
        >>> load_clip("camvid-tiny").encode_image(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64])
    """
    if name == TINY and TINY not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{TINY}.json")
    if name not in open_clip.list_models():
        raise InputError(
            f"encoder {name!r} is not a model of open_clip: see open_clip.list_models()"
        )
    if weights == "random":
        logging.disable(logging.WARNING)  # open_clip warns of what is wanted here
        try:
            return open_clip.create_model(name, load_weights=False).eval()
        finally:
            logging.disable(logging.NOTSET)
    source = resolve_weights(name, weights)
    if download := open_clip.get_pretrained_cfg(name, source):
        # create_model would download too, but logs the error that it raises.
        with _explained(f"weights '{source}' of {name} cannot be downloaded"):
            open_clip.download_pretrained(download)
    elif not Path(source).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"weights '{source}' are neither a file nor a tag of {name} (has: {tags})")
    with _explained(f"weights {source} do not fit open_clip's {name}"):
        model = open_clip.create_model(name, pretrained=source, require_pretrained=True)
    _refuse_not_finite(model, source)
    return model.eval()


def resolve_weights(name: str, weights: str = "") -> str:
    """The tag or file that `load_clip` reads: `weights`, or the default of the model `name`.

    Raises:
        InputError: no weights given, and open_clip has none for this model.

    Example:
        >>> resolve_weights("convnext_base_w_320")
        'laion_aesthetic_s13b_b82k_augreg'
    """
    defaults = {TINY: ASSETS / f"{TINY}.safetensors", THESIS_ENCODER: THESIS_WEIGHTS}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source := weights or defaults.get(name) or next(iter(tags), ""):
        return str(source)
    raise InputError(f"open_clip has no weights for '{name}': set weights to a file")


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Report a loading error as an `InputError`, its own text on one line."""
    try:
        yield
    except UNLOADABLE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        raise InputError(f"{problem} ({reason}): set weights to a file that fits") from error


def _refuse_not_finite(model: nn.Module, source: str) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {source}: {name} is not finite; download the file again")


class _Normalise(nn.Module):
    """Images to the value range that a network was trained on."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (images - self.mean) / self.std


class DenseCLIPEncoder(nn.Module):
    """CLIP's image tower with its head applied at every position instead of to the average.

    The thesis skips the head's global pooling and applies its linear layer at each position of the
    stride-32 map; the LayerNorm between the two is kept and applied per position too.

    Args:
        clip: an open_clip model whose image tower is a timm network with feature maps at strides
            4, 8, 16 and 32 (all `convnext_*`); another raises `InputError`.

    Attributes:
        channels: channels of the four maps; the last is the width of the text embeddings.
    """

    def __init__(self, clip: open_clip.CLIP):
        super().__init__()
        self.visual = clip.visual
        info = getattr(getattr(self.visual, "trunk", None), "feature_info", None)
        if not info or [level["reduction"] for level in info] != [4, 8, 16, 32]:
            raise InputError(
                "the encoder's image tower has no maps at strides 4, 8, 16 and 32: choose a "
                "convnext_* model of open_clip"
            )
        preprocess = open_clip.get_model_preprocess_cfg(clip)
        self.normalise = _Normalise(preprocess["mean"], preprocess["std"])
        *skips, deepest = (level["num_chs"] for level in info)
        with torch.no_grad():
            width = self.head(torch.zeros(1, deepest, 1, 1)).shape[1]
        self.channels = (*skips, width)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The tower's own four maps for (N, 3, H, W) images, the last without the head."""
        features = self.visual.forward_intermediates(
            self.normalise(images), indices=[0, 1, 2, 3], intermediates_only=True
        )
        return features["image_intermediates"]

    def head(self, deepest: Tensor) -> Tensor:
        """LayerNorm and linear layer at each position: (N, C, h, w) -> (N, D, h, w).

        Each position goes through the tower's own head as a 1x1 map, which is its own average.
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
    """A ResNet-18 of timm, for SwiftNet and for the language model on a small machine."""

    channels = (64, 128, 256, 512)

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.normalise = _Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16, 32."""
        return self.network.forward_intermediates(
            self.normalise(images), indices=[1, 2, 3, 4], intermediates_only=True
        )


def load_resnet18(weights: str = "") -> ResNetEncoder:
    """ResNet-18 from timm.

    Args:
        weights: a file with timm's key names (.safetensors or .pth); `random` for none; empty for
            timm's ImageNet weights from the hub.

    Raises:
        InputError: weights that are missing, cannot be downloaded or do not fit.
    """
    if weights in ("", "random"):
        with _explained(f"ImageNet weights of {RESNET18} cannot be downloaded"):
            network = timm.create_model(RESNET18, pretrained=not weights)
    elif not Path(weights).is_file():
        raise InputError(f"weights file {weights} is missing: set weights to a file")
    else:
        network = timm.create_model(RESNET18)
        with _explained(f"weights {weights} do not fit timm's {RESNET18}"):
            timm.models.load_checkpoint(network, str(weights), weights_only=True)
        _refuse_not_finite(network, weights)
    network.reset_classifier(0)
    return ResNetEncoder(network)
