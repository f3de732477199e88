"""The models of the thesis: bilinear and adapter baselines, the CLIP upsampler, and SwiftNet.

Every model maps (N, 3, H, W) images, uint8 or float in [0, 1], to (N, K, H, W) scores whose argmax
is the segmentation; `scores / model.temperature` are the logits of the loss.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.models.cosine import cosine_logits
from camvid_lang.models.text import Vocabulary
from camvid_lang.models.upsampler import BNReLUConv, Upsampler, upsample

CLIP_TEMPERATURE = 0.01  # at which CLIP's training ends (Radford et al., 2021, section 2.5)

COMPARE = ("anchored", "cosine", "clip")  # ways to compare pixels with words, see `Match.scores`
DIRECT = 0.3  # weight of the cosine with a word, next to the agreement
SAME_TEXT = 0.99  # cosine from which a word counts as one of the trained classes


def best_class(scores: Tensor) -> Tensor:
    """(N, K, H, W) -> (N, H, W) uint8, the first of the largest scores."""
    # On a CPU argmax over the channels of a contiguous map takes five times as long as max.
    return scores.max(dim=1).indices.to(torch.uint8)


class Match(NamedTuple):
    """How well K words fit each pixel, measured by `LanguageModel.match`; maps (N, K, H, W)."""

    agreement: Tensor  # with the word, through the classes of training, in [0, 1]
    cosines: Tensor  # with the word
    clip: Tensor | None = None  # cosines of CLIP's map, untrained, with the word
    trained: Tensor | None = None  # (K,) bool: the word is a class of training

    def scores(self, temperature: float, compare: str) -> Tensor:
        """Scores (N, K, H, W), with the model's temperature; their softmax are probabilities.

        * `cosine` is the thesis's way, cosines / temperature.
        * `anchored` is log(agreement) + 0.3 cosines / temperature: the agreement decides between
          words of different trained classes, and the cosine between words of the same.
        * `clip` takes trained classes from training and all else from CLIP: with c the softmax of
          clip / 0.01 over all words, and t the softmax of cosines / temperature over the trained
          ones, p(w|x) = c(w|x), and for a trained w, t(w|x) times the sum of c over all trained.
          FC-CLIP (Yu et al., 2023) mixes the same two by a geometric mean instead.
        """
        logits, tiny = self.cosines / temperature, torch.finfo(self.agreement.dtype).tiny
        if compare == "cosine":
            return logits
        if compare == "anchored":
            return self.agreement.clamp_min(tiny).log() + DIRECT * logits
        scores = (self.clip.float() / CLIP_TEMPERATURE).log_softmax(dim=1)
        if self.trained.any():
            known = scores[:, self.trained].logsumexp(dim=1, keepdim=True)
            scores[:, self.trained] = known + logits[:, self.trained].float().log_softmax(dim=1)
        return scores

    def split(self, sizes: Sequence[int]) -> list["Match"]:
        """Parts with so many words each."""
        parts = [x.split(sizes, dim=min(1, x.ndim - 1)) for x in self if x is not None]
        return [Match(*part) for part in zip(*parts, strict=True)]


class SegmentationModel(nn.Module):
    """Base of all models: an encoder of `models.encoder`, trained or frozen.

    A frozen encoder gets no gradient and stays in evaluation mode, so neither its weights nor its
    normalisation statistics change, and it is not part of `trained_state`. Images are upsampled by
    `input_scale` before they are encoded.
    """

    temperature = 1.0  # divides the scores in the softmax of the loss
    names: tuple[str, ...] = CLASSES  # of the K classes, in the order of the scores
    vocabulary: Vocabulary | None = None
    trained_size: tuple[int, int] | None = None  # (H, W) of the frames, where it is known

    def __init__(self, encoder: nn.Module, *, train_encoder: bool, input_scale: float = 1.0):
        super().__init__()
        self.encoder = encoder
        self.train_encoder, self.input_scale = train_encoder, input_scale
        encoder.requires_grad_(train_encoder)

    def train(self, mode: bool = True) -> "SegmentationModel":
        super().train(mode)
        self.encoder.train(mode and self.train_encoder)
        return self

    def encode(self, images: Tensor) -> list[Tensor]:
        """The encoder's four maps, without a graph when it is frozen."""
        if self.input_scale != 1:
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            images = upsample(images, [round(x * self.input_scale) for x in images.shape[-2:]])
        with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
            return self.encoder(images)

    def segment(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8, the id of the best class, or text, of each pixel."""
        return best_class(self(images) if text is None else self(images, text))

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters outside the encoder."""
        return [p for name, p in self.named_parameters() if not name.startswith("encoder.")]

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without a frozen encoder."""
        state = self.state_dict().items()
        return {k: v for k, v in state if self.train_encoder or not k.startswith("encoder.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of `trained_state`; `RuntimeError`: keys or shapes of another model."""
        frozen = {} if self.train_encoder else self.encoder.state_dict(prefix="encoder.")
        self.load_state_dict({**state, **frozen})


class LanguageModel(SegmentationModel):
    """Compares a map of features with text embeddings; subclasses define the features.

    `vocabulary` holds the classes that it is trained with, or compared with by default. The
    `temperature`, 0.01 in the thesis, divides the cosines in the loss.
    """

    # (D, C), from the features to the space of the text embeddings; None: they lie there already.
    projection: Tensor | None = None

    def __init__(
        self, encoder: nn.Module, vocabulary: Vocabulary, temperature: float, **options: object
    ):
        super().__init__(encoder, **options)
        self.temperature, self._words = temperature, vocabulary
        self.names = vocabulary.names
        self.register_buffer("text", vocabulary.vectors, persistent=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's classes, with the vectors on its device."""
        return replace(self._words, vectors=self.text)

    @property
    def anchors(self) -> Tensor:
        """(k, C) text embeddings of the classes that were trained."""
        return self.text

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """The encoder's four maps -> (N, C, h, w), see `projection`; here the deepest."""
        return maps[-1]

    def forward(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """Cosines (N, K, H, W) in [-1, 1] with `text` (K, C), by default the model's vocabulary."""
        text = self.text if text is None else text
        features = self.features(self.encode(images))
        return cosine_logits(features, text, images.shape[-2:], self.projection)

    def match(self, images: Tensor, text: Tensor, clip: bool = False) -> Match:
        """How well the words `text`, (K, C) unit vectors, fit each pixel of (N, 3, H, W) images.

        Training fixes a pixel's cosines with the trained classes only. Along all other directions
        its vector is arbitrary, and so is its cosine with another word: "tree" can find nothing in
        a model trained with "vegetation". Therefore pixel x and word w are both described by the
        trained classes k, and these descriptions are compared:

            p(k|x) = softmax_k(cos(x, k) / temperature),  p(k|w) = softmax_k(cos(w, k) / 0.01),
            agreement(x, w) = sum_k p(k|x) p(k|w),

        the probability that pixel and word are of the same trained class; all ones where nothing
        was trained. 0.01 is CLIP's temperature for texts. After ConSE (Norouzi et al., 2014), which
        describes images in this way, but not words.

        With `clip`, which needs `has_clip_map`, CLIP's untrained map is compared as well.
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
        same_width = self.encoder.channels[-1] == self.text.shape[1]
        fits = self.encoder.embeds_in_text_space and same_width
        return fits and not self.train_encoder and len(self.anchors) > 0

    def agreement(self, cosines: Tensor, text: Tensor) -> Tensor:
        """See `match`; from the cosines of pixels with `anchors` and then with `text`."""
        if not len(self.anchors):
            return torch.ones_like(cosines, dtype=torch.float32)
        with torch.autocast(text.device.type, enabled=False):
            of_classes = cosines[:, : len(self.anchors)].float()
            pixels = (of_classes / self.temperature).softmax(dim=1)
            words = (text.float() @ self.anchors.float().T / CLIP_TEMPERATURE).softmax(dim=1)
            return torch.einsum("wk,nkhx->nwhx", words, pixels)


class Bilinear(LanguageModel):
    """Baseline 1: the dense encoder's stride-32 map, nothing is trained (thesis, table 7.1)."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        image, text = self.encoder.channels[-1], self.text.shape[1]
        if image != text:
            what = f"bilinear compares {image}-d image embeddings with {text}-d text"
            raise InputError(f"{what}: leave out text_bank, or give one of the same CLIP")

    @property
    def anchors(self) -> Tensor:
        """None: all directions of the embedding space are CLIP's."""
        return self.text[:0]


class Adapter(LanguageModel):
    """Baseline 2: two 1x1 convolutions with ReLUs on the stride-32 map (thesis, table 7.2).

    After CLIP-Adapter (Gao et al., 2021), without its residual.
    """

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        width = self.text.shape[1]
        self.adapter = nn.Sequential(
            nn.Conv2d(self.encoder.channels[-1], width, 1),
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

    def __init__(self, *arguments: object, upsampler: Upsampler, **options: object):
        super().__init__(*arguments, **options)
        self.upsampler, widths = upsampler, (upsampler.width, self.text.shape[1])
        self.project = None if len({*widths}) == 1 else BNReLUConv(*widths)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.upsampler(maps)
        return x if self.project is None else self.project.norm(x).relu()

    @property
    def projection(self) -> Tensor | None:
        # The unit's convolution is left to the cosine head, which needs no wide map for it.
        return None if self.project is None else self.project.conv.weight.flatten(1)

    def segment(self, images: Tensor, text: Tensor | None = None) -> Tensor:
        """As in the base class, 1.4 times faster at the thesis's sizes on a CPU.

        The length of a pixel's vector divides all its cosines, so the argmax needs only the inner
        products. These are linear in the features, so the text is folded into the last
        convolution, the most expensive layer. Exact ties may be broken differently.
        """
        text, maps = self.text if text is None else text, self.encode(images)
        products = self.upsampler(maps, None if self.project else text)
        if self.project:
            products = self.project(products, text)
        return best_class(upsample(products, images.shape[-2:]))


class SwiftNet(SegmentationModel):
    """SwiftNet single-scale over CamVid's classes, without language (thesis, table 7.6)."""

    def __init__(self, encoder: nn.Module, upsampler: Upsampler, **options: object):
        super().__init__(encoder, **options)
        self.upsampler = upsampler
        self.classify = BNReLUConv(upsampler.width, len(self.names), 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K, H, W)."""
        return upsample(self.classify(self.upsampler(self.encode(images))), images.shape[-2:])


MODELS = {
    "bilinear": Bilinear,
    "adapter": Adapter,
    "clip-upsampler": CLIPUpsampler,
    "swiftnet": SwiftNet,
}
