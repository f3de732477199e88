"""Image encoders with feature maps at four strides: CLIP towers of open_clip, and ResNet-18.

Both take RGB images and return four maps at strides 4, 8, 16 and 32, finest first.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import open_clip
import timm
import torch
from torch import Tensor, nn

from camvid_lang.errors import InputError
from camvid_lang.models import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS, TINY
from camvid_lang.models.weights import check_finite, read_state_dict

ASSETS = Path(__file__).parent.parent / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FOLDER, HUB = "local-dir:", "hf-hub:"  # open_clip's names for a model with its configuration


def load_clip(name: str, weights: str = "") -> open_clip.CLIP:
    """An open_clip model in float32 and evaluation mode, loaded by open_clip itself.

    Args:
        name: a name of `open_clip.list_models()`; `camvid-tiny`, which the package ships; or
            `local-dir:FOLDER` or `hf-hub:ORG/NAME`, a model in open_clip's format with its weights.
        weights: a pretrained tag, or a file in open_clip's format (.safetensors, or a checkpoint
            saved by torch). Empty: see `resolve_weights`. `random`: untrained, for measuring speed.

    Raises:
        InputError: unknown model; weights that are missing, cannot be downloaded or do not fit.

    Example:
        >>> load_clip("camvid-tiny").encode_image(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64])
    """
    if name == TINY and TINY not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{TINY}.json")
    if not name.startswith((FOLDER, HUB)) and name not in open_clip.list_models():
        raise InputError(
            f"encoder {name!r} is not a model of open_clip: see open_clip.list_models(), or give "
            f"{FOLDER}FOLDER or {HUB}ORG/NAME"
        )
    if weights == "random":
        with _hub_errors(f"encoder {name} cannot be read"):
            return open_clip.create_model(name, load_weights=False).eval()
    source = resolve_weights(name, weights)
    files, packed = weight_files(name, source), name.startswith((FOLDER, HUB))
    if not (files or packed or open_clip.is_pretrained_cfg(name, source)):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"weights '{source}' are neither a file nor a tag of {name} (has: {tags}); for a "
            f"folder in open_clip's format set encoder to {FOLDER}FOLDER"
        )
    with _hub_errors(f"weights {source} of {name} cannot be loaded"):
        if packed:
            model = open_clip.create_model(name)
        elif files:
            model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
            try:
                open_clip.load_checkpoint(model, str(files[0]))
            except Exception:  # of a training script, or no weights at all
                model.load_state_dict(read_state_dict(files[0]))
        else:
            model = open_clip.create_model(name, source, require_pretrained=True)
    check_finite(model, source)
    return model.eval()


def resolve_weights(name: str, weights: str = "") -> str:
    """What `load_clip` reads: `weights`, the default of `name`, or `name` with weights of its own.

    Raises:
        InputError: no weights given, and open_clip has none for this model; or both given, with a
            `name` that has its own.

    Example:
        >>> resolve_weights("convnext_base_w_320")
        'laion_aesthetic_s13b_b82k_augreg'
    """
    if name == RESNET18 or weights == "random":
        return weights
    if name.startswith((FOLDER, HUB)):
        if weights:
            raise InputError(f"encoder {name} has its own weights: leave out weights ({weights})")
        return name
    defaults = {TINY: ASSETS / f"{TINY}.safetensors", THESIS_ENCODER: THESIS_WEIGHTS}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source := weights or defaults.get(name) or next(iter(tags), ""):
        return str(source)
    raise InputError(f"open_clip has no weights for '{name}': set weights to a file")


def weight_files(name: str, source: str) -> list[Path]:
    """The local files that `load_clip(name, source)` reads: none for a tag or a name of the hub."""
    path = Path(source.removeprefix(FOLDER))
    if source.startswith(FOLDER) and path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() and not open_clip.is_pretrained_cfg(name, source) else []


@contextlib.contextmanager
def _hub_errors(problem: str) -> Iterator[None]:
    """Report any error as one `InputError`; what open_clip logs on the way to it is dropped."""
    root = logging.getLogger()  # open_clip's; a filter does not hold for other loggers

    def drop(_record: logging.LogRecord) -> bool:
        return False

    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol|'torch.load' received")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # open_clip, timm, torch and the hub raise almost any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise InputError(f"{problem} ({reason}): set weights to a file that fits") from error
    finally:
        root.removeFilter(drop)


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
        stages: the same before the head, as `taps` returns them.
    """

    embeds_in_text_space = True

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
        self.channels, self.stages = (*skips, width), (*skips, deepest)

    def taps(self, images: Tensor) -> list[Tensor]:
        """The tower's own four maps for (N, 3, H, W) images, the last without the head."""
        features = self.visual.forward_intermediates(
            self.normalise(images), indices=[0, 1, 2, 3], intermediates_only=True
        )
        return features["image_intermediates"]

    def first_stages(self, count: int) -> list[nn.Module]:
        """The stem and the first `count` of the four stages."""
        trunk = self.visual.trunk
        return [trunk.stem, *(trunk.get_submodule(x["module"]) for x in trunk.feature_info[:count])]

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

    channels = stages = (64, 128, 256, 512)
    embeds_in_text_space = False  # whatever the width

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.normalise = _Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def first_stages(self, count: int) -> list[nn.Module]:
        """The stem and the first `count` of the four stages."""
        net = self.network
        return [net.conv1, net.bn1, *(net.layer1, net.layer2, net.layer3, net.layer4)[:count]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), uint8 or float in [0, 1] -> maps at strides 4, 8, 16, 32."""
        return self.network.forward_intermediates(
            self.normalise(images), indices=[1, 2, 3, 4], intermediates_only=True
        )


def load_resnet18(weights: str = "") -> ResNetEncoder:
    """ResNet-18 from timm.

    Args:
        weights: a file with the key names of timm and torchvision (.safetensors, or a checkpoint
            saved by torch), whose classifier `fc` is not used; `random` for none; empty for timm's
            ImageNet weights from the hub.

    Raises:
        InputError: weights that are missing, cannot be downloaded or do not fit.
    """
    file = Path(weights)
    if weights not in ("", "random") and not file.is_file():
        raise InputError(f"weights file {weights} is missing: set weights to a file")
    with _hub_errors(f"weights {weights or 'of ImageNet'} of {RESNET18} cannot be loaded"):
        network = timm.create_model(RESNET18, pretrained=not weights)
        network.reset_classifier(0)
        if file.is_file():
            state = read_state_dict(file)
            network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    check_finite(network, weights)
    return ResNetEncoder(network)
