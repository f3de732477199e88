"""Image encoders with feature maps at four strides: CLIP towers of open_clip, and ResNet-18.

Both take RGB images and return four maps at strides 4, 8, 16 and 32, finest first.
"""

import contextlib
import pickle
import shutil
import tempfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import open_clip
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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
    "weight_files",
]

ASSETS = Path(__file__).parent.parent / "assets"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Raised for weights that are missing, damaged or of another model; the hub's are OSErrors.
UNLOADABLE = (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError)
UNLOADABLE += (EOFError, StopIteration, pickle.UnpicklingError, SafetensorError)
FOLDER, HUB = "local-dir:", "hf-hub:"  # open_clip's names for a model with its configuration
CONFIG = "open_clip_config.json"
# Where checkpoints keep the state dict; averaged weights are preferred, as timm does.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict")
CONTAINERS += ("model_state_dict", "model", "module", "network", "net", "weights", "params")


def load_clip(name: str, weights: str = "") -> open_clip.CLIP:
    """An open_clip model in float32 and evaluation mode, loaded by open_clip itself.

    Args:
        name: a name of `open_clip.list_models()`; `camvid-tiny`, which the package ships; or
            `local-dir:FOLDER` or `hf-hub:ORG/NAME`, a model in open_clip's format with its weights.
        weights: a pretrained tag; a file in open_clip's format (.safetensors, or a checkpoint
            saved by torch); or a folder or `hf-hub:` name, as above, of the model `name`. Empty:
            see `resolve_weights`. `random`: untrained, for measuring speed.

    Raises:
        InputError: unknown model; weights that are missing, cannot be downloaded or do not fit.

    Example:
        >>> load_clip("camvid-tiny").encode_image(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 64])
    """
    if name == TINY and TINY not in open_clip.list_models():
        open_clip.add_model_config(ASSETS / f"{TINY}.json")
    own = name.startswith((FOLDER, HUB))
    if not own and name not in open_clip.list_models():
        raise InputError(
            f"encoder {name!r} is not a model of open_clip: see open_clip.list_models(), or give "
            f"{FOLDER}FOLDER or {HUB}ORG/NAME"
        )
    if weights == "random":
        with _explained(f"encoder {name} cannot be read"):
            return open_clip.create_model(name, load_weights=False).eval()
    source = resolve_weights(name, weights)
    if download := open_clip.get_pretrained_cfg(name, source):
        # create_model would download too, but logs the error that it raises.
        with _explained(f"weights '{source}' of {name} cannot be downloaded"):
            open_clip.download_pretrained(download)
    files = weight_files(name, source)
    if not (download or files or source.startswith(HUB)):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(
            f"weights '{source}' are neither a file nor a folder nor a tag of {name} (has: {tags})"
        )
    if folder := len(files) == 2:
        source = f"{FOLDER}{source.removeprefix(FOLDER)}"
    if not own and (folder or source.startswith(HUB)):
        _compare_models(name, source)
    problem = f"weights {source} of {name} cannot be loaded"
    # timm's and open_clip's training checkpoints hold a Namespace.
    with tempfile.TemporaryDirectory() as copy, torch.serialization.safe_globals([Namespace]):
        if files:
            state, as_it_is = _read_weights(files[-1])
            problem = f"weights {source}{_architecture(state)} do not fit open_clip's {name}"
            if not as_it_is:
                source = f"{copy}/open_clip_pytorch_model.bin"
                torch.save(state, source)
                if folder:
                    shutil.copy(files[0], copy)
                    source = f"{FOLDER}{copy}"
            del state
        with _explained(problem):
            if source.startswith((FOLDER, HUB)):
                model = open_clip.create_model(source, require_pretrained=True)
            else:
                model = open_clip.create_model(name, pretrained=source, require_pretrained=True)
    _refuse_not_finite(model, weights or name)
    return model.eval()


def resolve_weights(name: str, weights: str = "") -> str:
    """The tag, file or folder that `load_clip` reads: `weights`, or the default of model `name`.

    Raises:
        InputError: no weights given, and open_clip has none for this model; or both given, with a
            `name` that has its own.

    Example:
        >>> resolve_weights("convnext_base_w_320")
        'laion_aesthetic_s13b_b82k_augreg'
    """
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
    """What `load_clip(name, source)` reads: a file; of a folder, its configuration and weights.

    Nothing for a tag, a name of the hub and a missing file.

    Raises:
        InputError: a folder that is not in open_clip's format.
    """
    path = Path(source.removeprefix(FOLDER))
    if not source or open_clip.is_pretrained_cfg(name, source):
        return []
    if not path.is_dir():
        return [path] if path.is_file() and not source.startswith(FOLDER) else []
    found = [file for kind in ("safetensors", "bin", "pth") for file in path.glob(f"*.{kind}")]
    # The names that open_clip prefers, in its order.
    named = [file for file in found if file.stem in ("open_clip_model", "open_clip_pytorch_model")]
    if not (path / CONFIG).is_file() or not (named or len(found) == 1):
        raise InputError(
            f"weights {path}: a folder in open_clip's format holds {CONFIG} and "
            "open_clip_model.safetensors (or open_clip_pytorch_model.bin); give such a folder, or "
            "the file of the weights"
        )
    return [path / CONFIG, (named or found)[0]]


def _compare_models(name: str, source: str) -> None:
    """Refuse the weights `source` of another model than `name`, by their configurations."""
    keys = ("embed_dim", "quick_gelu", "timm_model_name", "context_length", "vocab_size")
    with _explained(f"the configuration of {source} cannot be read"):
        configs = [open_clip.get_model_config(which) for which in (source, name)]
        parts = [{**c["text_cfg"], **c["vision_cfg"], **c} for c in configs]
        differs = [key for key in keys if (parts[0].get(key) or 0) != (parts[1].get(key) or 0)]
    if differs:
        raise InputError(
            f"weights {source} are not of {name} ({', '.join(differs)} differ): set encoder to "
            f"{source} and leave out weights"
        )


def _read_weights(file: Path) -> tuple[dict[str, Tensor], bool]:
    """The state dict in a file, by names without wrappers' prefixes; code in it is never run.

    Returns:
        The state dict, and whether open_clip reads the same from the file.

    Raises:
        InputError: a file without a state dict; the message says what it is.
    """
    with file.open("rb") as opened:
        head = opened.read(2048)
    zipped = zipfile.is_zipfile(file)
    tensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30  # safetensors
    if problem := "" if zipped or tensors else _not_weights(head):
        raise InputError(f"weights {file}: {problem}")
    try:
        if tensors:
            saved = load_file(file)
        else:
            with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about what is refused here
                saved = torch.load(file, "cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged bytes raise almost any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        pickled = zipped or (head.startswith(b"\x80") and not tensors)
        kind = "safetensors" if tensors else "neither safetensors nor of torch.save, or"
        what = f"{kind} damaged or cut short ({reason}); download it again"
        raise InputError(f"weights {file}: {(pickled and _pickled(file)) or what}") from error
    found = saved
    while isinstance(found, Mapping) and (
        inner := [found[key] for key in CONTAINERS if isinstance(found.get(key), Mapping)]
    ):
        found = inner[0]
    found = found if isinstance(found, Mapping) else {}
    state = _plain_names({str(k): v for k, v in found.items() if isinstance(v, Tensor)}, file)
    if not state:
        what = type(saved).__name__
        if isinstance(saved, Mapping):
            what += f" of {', '.join(map(str, list(saved)[:5]))}" if saved else " that is empty"
        raise InputError(f"weights {file}: a {what}, not a state dict; save model.state_dict()")
    own = found is saved or found is saved.get("state_dict")
    own &= tensors == (file.suffix == ".safetensors")
    return state, own and list(state) == [str(key).removeprefix("module.") for key in found]


def _plain_names(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Names as in the network itself, without what DataParallel, compilers and trainers add."""
    state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's
    names = {}
    for key in state:
        parts = [part for part in key.split(".") if part not in ("module", "_orig_mod")]
        while parts[0:1] == ["model"]:
            parts.pop(0)
        names[key] = parts
    # A name before all others is a wrapper's too, but for a CLIP file of the image tower alone.
    while len(first := {parts[0] if parts[1:] else "" for parts in names.values()}) == 1:
        if first & {"", "visual"}:
            break
        names = {key: parts[1:] for key, parts in names.items()}
    plain = {".".join(names[key]): value for key, value in state.items()}
    if len(plain) < len(state):
        raise InputError(
            f"weights {file}: two networks in one state dict (such as {', '.join(list(state)[:2])})"
            "; save the state_dict() of one"
        )
    return plain


def _not_weights(head: bytes) -> str:
    """What a file is that is not of weights, by its first bytes, and how to fix it; or ''."""
    text = head.decode("utf-8-sig", errors="replace").strip()
    if head.startswith(b"PK"):
        return "a zip archive that is cut short; download it again"
    if not text:
        return "an empty file; download it again"
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the weights; run `git lfs pull`, or download the file itself"
    if "<html" in text.lower() or "<!doctype html" in text.lower():
        return "a web page, not weights (sign-in, quota, wrong link?); download the file itself"
    return f"a text file, not weights (it begins with {text[:40]!r}); give the right file"


def _pickled(file: Path) -> str:
    """What keeps torch from reading a zip archive or a pickle safely, and how to fix it; or ''."""
    members, objects = None, []
    with contextlib.suppress(Exception):  # damaged bytes raise almost any exception
        with zipfile.ZipFile(file) as archive:
            members = {Path(name).name for name in archive.namelist()}
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if members is not None and "data.pkl" not in members:
        return "a zip archive, not a file of torch.save; unpack it and give the weights in it"
    if members and "constants.pkl" in members:
        return "a TorchScript archive, which holds code; save its state_dict() with torch.save"
    if members and not objects:
        return ""
    what = f"pickled objects ({', '.join(objects[:3])})" if objects else "not a pickle of tensors"
    return f"{what}, and to load it may run code; save model.state_dict() with torch.save"


def _architecture(keys: Iterable[str]) -> str:
    """' (a ResNet-50)', or what else a state dict looks like by its keys; '' if unknown."""
    blocks = tuple(
        len({key.split(".")[1] for key in keys if key.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    )
    if all(blocks):
        bottleneck = "layer1.0.conv3.weight" in keys
        depth = (3 if bottleneck else 2) * sum(blocks) + 2
        return f" (a ResNet-{depth})"
    for start, what in (
        ("visual.", "an open_clip model"),
        ("vision_model.", "a CLIP of transformers, not of open_clip"),
        ("stages.", "an image network without text tower"),
    ):
        if any(key.startswith(start) for key in keys):
            return f" ({what})"
    return ""


@contextlib.contextmanager
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
        stages: the same before the head, as `taps` returns them.
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
        self.channels, self.stages = (*skips, width), (*skips, deepest)

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

    channels = stages = (64, 128, 256, 512)

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
        weights: a file with the key names of timm and torchvision (.safetensors, or a checkpoint
            saved by torch), whose classifier `fc` is not used; `random` for none; empty for timm's
            ImageNet weights from the hub.

    Raises:
        InputError: weights that are missing, cannot be downloaded or do not fit.
    """
    if weights in ("", "random"):
        with _explained(f"ImageNet weights of {RESNET18} cannot be downloaded"):
            network = timm.create_model(RESNET18, pretrained=not weights)
    elif (folder := Path(weights.removeprefix(FOLDER))).is_dir() or weights.startswith(HUB):
        clip = f"{FOLDER}{folder}" if folder.is_dir() else weights
        raise InputError(f"weights {weights} are not a file of {RESNET18}: set encoder={clip}")
    elif not Path(weights).is_file():
        raise InputError(f"weights file {weights} is missing: set weights to a file")
    else:
        network = timm.create_model(RESNET18, num_classes=0)
        state, _ = _read_weights(Path(weights))
        with _explained(f"weights {weights}{_architecture(state)} do not fit {RESNET18}"):
            network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
        _refuse_not_finite(network, weights)
    network.reset_classifier(0)
    return ResNetEncoder(network)
