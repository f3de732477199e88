"""The models of the thesis: bilinear and adapter baselines, the CLIP upsampler, and SwiftNet.

Every model maps (N, 3, H, W) images, uint8 or float in [0, 1], to (N, K, H, W) scores whose argmax
is the segmentation; `scores / model.temperature` are the logits of the loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camvid_lang.models.cosine import cosine_logits
from camvid_lang.models.upsampler import BNReLUConv, Upsampler

CLIP_TEMPERATURE = 0.01  # at which CLIP's training ends (Radford et al., 2021, section 2.5)

COMPARE = ("anchored", "cosine", "clip")  # ways to compare pixels with words, see `Match.scores`
DIRECT = 0.3  # weight of a word's own cosine next to its agreement
SAME_TEXT = 0.99  # cosine from which a word counts as one of the trained classes


def best_class(scores: Tensor) -> Tensor:
    """(N, K, H, W) -> (N, H, W) uint8, the first of the largest scores."""
    # On a CPU argmax over the channels of a contiguous map takes five times as long as max.
    return scores.max(dim=1).indices.to(torch.uint8)


class Match(NamedTuple):
    """How well K words fit each pixel, measured by `LanguageModel.match`; all (N, K, H, W)."""

    agreement: Tensor  # with the word, through the classes of training, in [0, 1]
    cosines: Tensor  # with the word
    clip: Tensor | None = None  # cosines of CLIP's own map, untrained, with the word
    trained: Tensor | None = None  # (K,) bool: the word is a class of training

    def scores(self, temperature: float, compare: str) -> Tensor:
        """Scores (N, K, H, W) whose argmax is the segmentation; their softmax are probabilities.

        Args:
            temperature: that of the model.
            compare: `cosine` is the thesis's way, cosines / temperature. `anchored` is
                log(agreement) + 0.3 cosines / temperature: the agreement decides between words of
                different trained classes, and the cosine between words of the same. `clip` takes
                what was trained from training and all else from CLIP: with c the softmax of
                clip / 0.01 over all words, and t that of cosines / temperature over the words that
                are classes of training, p(w|x) = c(w|x) for any other word w, and for these

                    p(w|x) = t(w|x) * (sum of c(v|x) over all words v that are trained).

                FC-CLIP (Yu et al., 2023) mixes the same two by a geometric mean instead.
        """
        logits = self.cosines / temperature
        if compare == "cosine":
            return logits
        if compare == "anchored":
            tiny = torch.finfo(self.agreement.dtype).tiny
            return self.agreement.clamp_min(tiny).log() + DIRECT * logits
        scores = (self.clip.float() / CLIP_TEMPERATURE).log_softmax(dim=1)
        if self.trained.any():
            known = scores[:, self.trained].logsumexp(dim=1, keepdim=True)
            scores[:, self.trained] = known + logits[:, self.trained].float().log_softmax(dim=1)
        return scores

    def split(self, sizes: Sequence[int]) -> list["Match"]:
        """Parts with so many words each."""
        maps = [None if x is None else x.split(sizes, dim=1) for x in self[:3]]
        parts = [*maps, None if self.trained is None else self.trained.split(sizes)]
        return [Match(*(x and x[i] for x in parts)) for i in range(len(sizes))]


class SegmentationModel(nn.Module):
    """Base of all models: an encoder that may be frozen.

    A frozen encoder gets no gradient and stays in evaluation mode, so neither its weights nor its
    normalisation statistics change, and it is not part of `trained_state`. The same holds for
    stages that `freeze_stages` freezes, but `trained_state` has them.
    """

    temperature = 1.0
    input_scale = 1.0  # images are upsampled by this before they are encoded
    frozen_stages = 0  # of an encoder that is trained, see `freeze_stages`
    unseen: Sequence[int] = ()  # ids of classes that are held out of training
    prompts: Mapping[str, Sequence[str]] | None = None  # {class: [prompt, ...]} trained with

    def __init__(self, encoder: nn.Module, train_encoder: bool):
        super().__init__()
        self.encoder = encoder
        self.train_encoder = train_encoder
        encoder.requires_grad_(train_encoder)

    def train(self, mode: bool = True) -> "SegmentationModel":
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        for module in self.encoder.first_stages(self.frozen_stages) if self.frozen_stages else ():
            module.eval()
        return self

    def freeze_stages(self, count: int) -> None:
        """Freeze the stem and the first `count` of the encoder's four stages."""
        self.frozen_stages = count
        for module in self.encoder.first_stages(count):
            module.requires_grad_(False)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The encoder's four maps, without a graph when it is frozen."""
        if self.input_scale != 1:
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            size = [round(side * self.input_scale) for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.encoder(images)

    def segment(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8, the id of the best class of each pixel."""
        return best_class(self(images))

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters outside the encoder."""
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
            RuntimeError: keys or shapes that do not match this model.
        """
        frozen = self.state_dict().keys() - self.trained_state().keys()
        self.load_state_dict({**state, **{key: self.state_dict()[key] for key in frozen}})


class LanguageModel(SegmentationModel):
    """Compares a map of features with text embeddings; subclasses define the features.

    Args:
        text: (K, C) text embeddings, rows of length one.
        temperature: divides the cosines in the loss (0.01 in the thesis).
    """

    def __init__(self, encoder: nn.Module, text: Tensor, train_encoder: bool, temperature: float):
        super().__init__(encoder, train_encoder)
        self.temperature = temperature
        self.register_buffer("text", text, persistent=False)

    # (D, C), from the features to the space of the text embeddings; None: they lie there already.
    projection: Tensor | None = None

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's four maps -> (N, C, h, w), see `projection`."""
        raise NotImplementedError

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """Cosines (N, K, H, W) in [-1, 1] with `text`, or with the model's own text matrix."""
        text = self.text if text is None else text
        features = self.features(self.encode(images))
        return cosine_logits(features, text, images.shape[-2:], self.projection)

    def forward_parts(self, images: Tensor, parts: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """As `forward` for (number of images, text) after each other, encoded as one batch."""
        counts, size = [count for count, _ in parts], images.shape[-2:]
        features = self.features(self.encode(images)).split(counts)
        return [
            cosine_logits(part, text, size, self.projection)
            for part, (_, text) in zip(features, parts, strict=True)
        ]

    def segment(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8, the id of the text with the largest cosine."""
        return best_class(self(images, text))

    def match(self, images: Tensor, text: Tensor, clip: bool = False) -> Match:
        """How well other words fit each pixel, measured by the classes the model was trained with.

        Training fixes a pixel's cosines with the trained classes only. Along all other directions
        of the embedding space its vector is arbitrary, and so is its cosine with another word:
        "tree" can find nothing in a model trained with "vegetation". Therefore pixel x and word w
        are both described by the trained classes k, and these descriptions are compared:

            p(k|x) = softmax_k(cos(x, k) / temperature),  p(k|w) = softmax_k(cos(w, k) / 0.01),
            agreement(x, w) = sum_k p(k|x) p(k|w),

        with CLIP's own temperature for texts. It is the probability that pixel and word are of the
        same trained class. After ConSE (Norouzi et al., 2014), which describes images in this way,
        but not words.

        Args:
            images: (N, 3, H, W).
            text: (K, C), rows of length one.
            clip: compare CLIP's own map as well; only with `has_clip_map`.

        Returns:
            The agreement (all ones where nothing was trained) and the cosines; with `clip`, also
            its cosines, and which words are classes of training.
        """
        maps, size, anchors = self.encode(images), images.shape[-2:], self.anchors
        compared = torch.cat([anchors, text])
        cosines = cosine_logits(self.features(maps), compared, size, self.projection)
        found = self.agreement(cosines, text), cosines[:, len(anchors) :]
        if not clip:
            return Match(*found)
        trained = (text.float() @ anchors.float().T > SAME_TEXT).any(dim=1)
        return Match(*found, cosine_logits(maps[-1], text, size), trained)

    @property
    def has_clip_map(self) -> bool:
        """Whether the encoder is the text's CLIP, frozen, next to parts that were trained."""
        frozen_clip = self.encoder.embeds_in_text_space and not self.train_encoder
        same_width = self.encoder.channels[-1] == self.text.shape[1]
        return frozen_clip and same_width and len(self.anchors) > 0

    def agreement(self, cosines: Tensor, text: Tensor) -> Tensor:
        """That of `match`, from the cosines of pixels with `anchors` and then with `text`."""
        if not len(self.anchors):
            return torch.ones_like(cosines, dtype=torch.float32)
        with torch.autocast(text.device.type, enabled=False):
            of_classes = cosines[:, : len(self.anchors)].float()
            pixels = (of_classes / self.temperature).softmax(dim=1)
            words = (text.float() @ self.anchors.float().T / CLIP_TEMPERATURE).softmax(dim=1)
            return torch.einsum("wk,nkhx->nwhx", words, pixels)

    @property
    def anchors(self) -> Tensor:
        """(k, C) text embeddings of the classes that were trained."""
        seen = [i for i in range(len(self.text)) if i not in self.unseen]
        return self.text[seen]


class Bilinear(LanguageModel):
    """Baseline 1: the dense encoder's stride-32 map as it is (thesis, table 7.1)."""

    @property
    def anchors(self) -> Tensor:
        """None: all directions of the embedding space are CLIP's own."""
        return self.text[:0]

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        return maps[-1]


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

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        return self.adapter(maps[-1])


class CLIPUpsampler(LanguageModel):
    """The thesis's model: encoder, upsampler, cosine with text (section 5.1).

    When the upsampler is not as wide as the text embeddings, a 1x1 unit follows it.
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

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.upsampler(maps)
        return x if self.project is None else self.project.norm(x).relu()

    @property
    def projection(self) -> Tensor | None:
        # The unit's convolution is left to the cosine head, which needs no wide map for it.
        return None if self.project is None else self.project.conv.weight.flatten(1)

    def segment(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """As `LanguageModel.segment`, 1.4 times faster at the thesis's sizes on a CPU.

        The length of a pixel's vector divides all its cosines, so the argmax needs only the inner
        products. These are linear in the features, so the text is folded into the last
        convolution, the most expensive layer. Exact ties may be broken differently.
        """
        text = self.text if text is None else text
        maps = self.encode(images)
        if self.project is None:
            products = self.upsampler(maps, fold=text)
        else:
            products = self.project(self.upsampler(maps), fold=text)
        size = images.shape[-2:]
        products = F.interpolate(products, size=size, mode="bilinear", align_corners=False)
        return best_class(products)


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
