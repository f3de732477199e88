"""Image encoders with feature maps at four strides: CLIP towers of open_clip, and ResNet-18.

Both take RGB images and return four maps at strides 4, 8, 16 and 32, finest first.
"""

import contextlib
import logging
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import open_clip
import timm
import torch
from torch import Tensor, nn

from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS, TINY

ASSETS = Path(__file__).parent.parent / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_clip(name: str, weights: str = "") -> open_clip.CLIP:
    """An open_clip model in float32 and evaluation mode, loaded by open_clip itself.

    Args:
        name: a name of `open_clip.list_models()`, or `camvid-tiny`, which the package ships.
        weights: a pretrained tag, or a file in open_clip's format (.safetensors, or a checkpoint
            saved by torch); empty for the default, `random` for none.

    Raises:
        InputError: unknown model; weights that are missing, cannot be downloaded or do not fit.

    Example:
        >>> load_clip("camvid-tiny").encode_image(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64])
    """
    if name == TINY and TINY not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{TINY}.json")
    if name not in open_clip.list_models():
        raise InputError(f"encoder {name!r} is not in open_clip.list_models(): choose one of these")
    if weights == "random":
        with _hub_errors(f"encoder {name} cannot be built"):  # open_clip logs a warning
            return open_clip.create_model(name, load_weights=False).eval()
    source = resolve_weights(name, weights)
    if not (open_clip.is_pretrained_cfg(name, source) or Path(source).is_file()):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"weights '{source}' are neither a file nor a tag of {name} (has: {tags})")
    with _hub_errors(f"weights {source} of {name} cannot be loaded"):
        model = open_clip.create_model(name, source, require_pretrained=True, weights_only=True)
    check_finite(model, source)
    return model.eval()


def resolve_weights(name: str, weights: str = "") -> str:
    """What `load_clip` reads: `weights`, or the default of `name`; `InputError` if it has none."""
    if name == RESNET18 or weights == "random":
        return weights
    defaults = {TINY: ASSETS / f"{TINY}.safetensors", THESIS_ENCODER: THESIS_WEIGHTS}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source := weights or defaults.get(name) or next(iter(tags), ""):
        return str(source)
    raise InputError(f"open_clip has no weights for '{name}': give a file of weights")


@contextlib.contextmanager
def _hub_errors(problem: str) -> Iterator[None]:
    """Report any error as one `InputError`; what open_clip logs on the way to it is dropped."""
    root, drop = logging.getLogger(), lambda _: False  # open_clip's; others are not filtered
    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol|'torch.load' received")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # open_clip, timm, torch and the hub raise almost any exception
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 400, placeholder=" ...")
        if "weights_only" in reason:  # timm and torch go on to advise against this check
            reason = "it holds other objects than tensors"
        raise InputError(f"{problem} ({reason}): choose other weights, or a file") from error
    finally:
        root.removeFilter(drop)


class _Normalise(nn.Module):
    """Images, uint8 or floats in [0, 1], to the values that a network was trained on."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif images.numel() and not torch.compiler.is_compiling():
            low, high = map(float, images.aminmax())  # less than 0 by a rounding error
            if not (images.is_floating_point() and -1e-3 <= low <= high <= 1.001):
                found = f"images are {images.dtype} with values {low:g} to {high:g}"
                raise InputError(f"{found}: give uint8 in 0..255, or floats in 0..1 as they are")
        return (images.to(self.mean.dtype) - self.mean) / self.std


class DenseCLIPEncoder(nn.Module):
    """CLIP's image tower with its head applied at every position instead of to the average.

    The thesis skips the head's global pooling and applies its linear layer at each position of the
    stride-32 map; the LayerNorm between the two is kept and applied per position too.

    `channels` of the four maps end with the width of the text embeddings; `stages` are those before
    the head. `InputError`: a CLIP whose image tower is not a timm network with maps at strides 4,
    8, 16 and 32 (all `convnext_*` have them).
    """

    embeds_in_text_space = True

    def __init__(self, clip: open_clip.CLIP):
        super().__init__()
        self.visual = clip.visual
        info = getattr(getattr(self.visual, "trunk", None), "feature_info", None)
        if not info or [level["reduction"] for level in info] != [4, 8, 16, 32]:
            what = "the encoder's image tower has no maps at strides 4, 8, 16 and 32"
            raise InputError(f"{what}: choose a convnext_* model of open_clip")
        preprocess = open_clip.get_model_preprocess_cfg(clip)
        self.normalise = _Normalise(preprocess["mean"], preprocess["std"])
        *skips, deepest = (level["num_chs"] for level in info)
        with torch.no_grad():
            width = self.head(torch.zeros(1, deepest, 1, 1)).shape[1]
        self.channels, self.stages = (*skips, width), (*skips, deepest)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The tower's four maps for (N, 3, H, W) images, the last without the head."""
        options = {"indices": [0, 1, 2, 3], "intermediates_only": True}
        images = self.normalise(images)
        return self.visual.forward_intermediates(images, **options)["image_intermediates"]

    def head(self, deepest: Tensor) -> Tensor:
        """LayerNorm and linear layer at each position: (N, C, h, w) -> (N, D, h, w)."""
        n, c, h, w = deepest.shape
        # Each position goes through the tower's head as a 1x1 map, whose average is itself.
        cells = deepest.permute(0, 2, 3, 1).reshape(n * h * w, c, 1, 1)
        embedded = self.visual.head(self.visual.trunk.forward_head(cells))
        return embedded.reshape(n, h, w, -1).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16 and, embedded, 32."""
        *skips, deepest = self.taps(images)
        return [*skips, self.head(deepest)]


class ResNetEncoder(nn.Module):
    """A ResNet-18 of timm, for SwiftNet and for the language model on a small machine."""

    channels = stages = (64, 128, 256, 512)
    embeds_in_text_space = False  # whatever the width

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.normalise = _Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16, 32."""
        options = {"indices": [1, 2, 3, 4], "intermediates_only": True}
        return self.network.forward_intermediates(self.normalise(images), **options)


def load_resnet18(weights: str = "") -> ResNetEncoder:
    """ResNet-18 from timm; `InputError` as `load_clip`.

    Args:
        weights: a file with the key names of timm and torchvision (.safetensors, or a checkpoint
            saved by torch), whose classifier `fc` is not used; `random` for none; empty for timm's
            ImageNet weights from the hub.
    """
    if weights not in ("", "random") and not Path(weights).is_file():
        raise InputError(f"weights file {weights} is missing: give a file of weights")
    with _hub_errors(f"weights {weights or 'of ImageNet'} of {RESNET18} cannot be loaded"):
        network = timm.create_model(RESNET18, pretrained=not weights)
        network.reset_classifier(0)
        if weights not in ("", "random"):
            # weights_only: timm 1.0.17 to 1.0.25 would run code in the file by default.
            state = timm.models.load_state_dict(weights, weights_only=True)
            state = {key: value for key, value in state.items() if not key.startswith("fc.")}
            network.load_state_dict(state)
    check_finite(network, weights)
    return ResNetEncoder(network)


def check_finite(model: nn.Module, source: str) -> None:
    """`InputError` where a weight of the model is not finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"weights {source}: {name} is not finite; download the file again")
