"""The models of the thesis: bilinear and adapter baselines, the language segmenter, SwiftNet.

Every model maps (N, 3, H, W) images, uint8 or float in [0, 1], to (N, K, H, W) scores whose argmax
is the segmentation; `scores / model.temperature` are the logits of the loss.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits
from camvid_lang.models.upsampler import BNReLUConv, Upsampler

__all__ = [
    "Adapter",
    "Bilinear",
    "CLIPUpsampler",
    "LanguageModel",
    "SegmentationModel",
    "SwiftNet",
]


class SegmentationModel(nn.Module):
    """What all models share: an encoder that may be frozen.

    A frozen encoder takes no gradient and stays in evaluation mode, so neither its weights nor
    the statistics of its normalisation move, and its weights need not be saved.
    """

    temperature = 1.0

    def __init__(self, encoder: nn.Module, train_encoder: bool):
        super().__init__()
        self.encoder = encoder
        self.train_encoder = train_encoder
        encoder.requires_grad_(train_encoder)

    def train(self, mode: bool = True) -> "SegmentationModel":
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        return self

    def encode(self, images: Tensor) -> list[Tensor]:
        """The encoder's four maps, without a graph when it is frozen."""
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.encoder(images)

    def segment(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8, the id of the best class of each pixel."""
        return self(images).argmax(dim=1).to(torch.uint8)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What learns besides the encoder."""
        for name, parameter in self.named_parameters():
            if not name.startswith("encoder."):
                yield parameter

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without a frozen encoder."""
        state = self.state_dict()
        if self.train_encoder:
            return state
        return {key: value for key, value in state.items() if not key.startswith("encoder.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `trained_state`.

        Raises:
            RuntimeError: keys or shapes that do not match this model, or values not finite.
        """
        own = self.state_dict()
        frozen = {k: v for k, v in own.items() if k.startswith("encoder.") and k not in state}
        if frozen and self.train_encoder:
            raise RuntimeError("the state lacks the encoder, which this model trains")
        self.load_state_dict({**frozen, **state})
        if not all(tensor.isfinite().all() for tensor in state.values()):
            raise RuntimeError("the state holds values that are not finite")


class LanguageModel(SegmentationModel):
    """Compares a map of embeddings with the text matrix; subclasses say where the map comes from.

    Args:
        text: (K, C) text embeddings, rows of length one.
        temperature: divides the cosines in the loss (0.01 in the thesis).
    """

    def __init__(self, encoder: nn.Module, text: Tensor, train_encoder: bool, temperature: float):
        super().__init__(encoder, train_encoder)
        self.temperature = temperature
        self.register_buffer("text", text, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, h, w), what `projection` maps into the space of the text."""
        raise NotImplementedError

    @property
    def projection(self) -> Tensor | None:
        """(D, C), or None where the features lie in the space of the text already."""
        return None

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """Cosines (N, K, H, W) in [-1, 1] with `text`, or with the model's own text matrix."""
        text = self.text if text is None else text
        return cosine_logits(self.features(images), text, images.shape[-2:], self.projection)

    def products(self, images: Tensor, text: Tensor) -> Tensor:
        """Inner products (N, K, h, w) of the features with the text, before upsampling."""
        projection, features = self.projection, self.features(images)
        with torch.autocast(images.device.type, enabled=False):  # compared in float32
            text = text if projection is None else text @ projection
            return torch.einsum("nchw,kc->nkhw", features.float(), text)

    def segment(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """Ids (N, H, W) uint8, equal to the argmax of the cosines but for exact ties.

        A pixel's length divides all its cosines alike, so the argmax needs the products only; and
        those are linear in the features, so they are upsampled instead.
        """
        products = self.products(images, self.text if text is None else text).float()
        size = images.shape[-2:]
        upsampled = F.interpolate(products, size=size, mode="bilinear", align_corners=False)
        return upsampled.argmax(dim=1).to(torch.uint8)


class Bilinear(LanguageModel):
    """Baseline 1: the dense encoder's stride-32 map as it is (thesis, table 7.1)."""

    def features(self, images: Tensor) -> Tensor:
        return self.encode(images)[-1]


class Adapter(LanguageModel):
    """Baseline 2: two 1x1 convolutions with ReLUs on the stride-32 map (thesis, table 7.2).

    After CLIP-Adapter (Gao et al., 2021), without its residual.
    """

    def __init__(self, encoder: nn.Module, text: Tensor, train_encoder: bool, temperature: float):
        super().__init__(encoder, text, train_encoder, temperature)
        width = text.shape[1]
        self.adapter = nn.Sequential(
            nn.Conv2d(encoder.channels[-1], width, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
            nn.ReLU(),
        )

    def features(self, images: Tensor) -> Tensor:
        return self.adapter(self.encode(images)[-1])


class CLIPUpsampler(LanguageModel):
    """The language segmenter: encoder, upsampler, cosine with text (thesis, section 5.1).

    When the upsampler is not as wide as the text vectors, a 1x1 unit projects its result.
    """

    def __init__(
        self,
        encoder: nn.Module,
        text: Tensor,
        train_encoder: bool,
        temperature: float,
        width: int,
        bottleneck: int,
        level_channels: int,
    ):
        super().__init__(encoder, text, train_encoder, temperature)
        self.upsampler = Upsampler(encoder.channels, width, bottleneck, level_channels)
        self.project = None if width == text.shape[1] else BNReLUConv(width, text.shape[1])

    def features(self, images: Tensor) -> Tensor:
        x = self.upsampler(self.encode(images))
        if self.project is None:
            return x
        normalise, relu, _ = self.project
        return relu(normalise(x))

    def products(self, images: Tensor, text: Tensor) -> Tensor:
        if self.project is not None:
            return super().products(images, text)
        return self.upsampler(self.encode(images), fold=text)

    @property
    def projection(self) -> Tensor | None:
        # The unit's convolution is left to the cosine, which needs no wide map for it.
        return None if self.project is None else self.project[-1].weight.flatten(1)


class SwiftNet(SegmentationModel):
    """SwiftNet single-scale over fixed classes, without language (thesis, table 7.6)."""

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        train_encoder: bool,
        width: int,
        bottleneck: int,
        level_channels: int,
    ):
        super().__init__(encoder, train_encoder)
        self.upsampler = Upsampler(encoder.channels, width, bottleneck, level_channels)
        self.classify = BNReLUConv(width, classes, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, H, W)."""
        logits = self.classify(self.upsampler(self.encode(images)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
