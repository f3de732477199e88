"""What a cosine head, a training step or an inference costs: time, peak memory, FLOPs.

Three things are compared with the thesis's way (upsample all channels, normalise every pixel,
multiply; float32): the head alone, a whole training step, and inference on a frame. Each is
measured in a process of its own, so that neither sees the memory the other has taken.
"""

import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from camvid_lang.cosine import cosine_logits, cosine_logits_reference
from camvid_lang.encoder import RESNET18, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.experiments import configure
from camvid_lang.models import LanguageModel, Segmenter
from camvid_lang.runs import assemble
from camvid_lang.taxonomy import NUM_CLASSES
from camvid_lang.training import (
    make_optimizer,
    mixed_precision,
    place,
    reuse_freed_memory,
    segmentation_loss,
    training_step,
)

__all__ = ["STYLES", "Case", "largest_batch", "matmul_rate", "measure", "parse_bytes"]

HEAD = (640, 56, 56, 224)  # channels, height, width of the map, side of the result
STYLES = ("thesis", "ours")


@dataclass(frozen=True)
class Case:
    """One thing to measure: `head`, `step` or `inference`, in the style of the thesis or ours."""

    what: str
    style: str
    experiment: str = "frozen-names"
    batch: int = 2
    size: tuple[int, int] = (224, 224)
    device: str = "cpu"
    repeats: int = 3


def measure(case: Case) -> dict:
    """Seconds (best of the repeats), peak extra memory in bytes and FLOPs, in a fresh process.

    Extra memory is what the measured code took on top of its inputs and the model: the allocator's
    peak on CUDA, the process's peak resident size on a CPU (Linux). `error` is set, and the rest
    None, where memory did not suffice.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure, case).result()


def _measure(case: Case) -> dict:
    device = torch.device(case.device)
    ours = case.style == "ours"
    if ours and device.type == "cpu":
        reuse_freed_memory()
    torch.manual_seed(0)
    prepare = {"head": _head, "step": _step, "inference": _inference}[case.what]
    result = {**asdict(case), "seconds": None, "extra_bytes": None, "flops": None, "error": None}
    try:
        action = prepare(case, device, ours)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = _resident(device)
        action()
        result["extra_bytes"] = _peak(device) - before
        with FlopCounterMode(display=False) as counter:
            action()
        result["flops"] = counter.get_total_flops()
        result["seconds"] = min(_timed(action, device) for _ in range(case.repeats))
    except torch.OutOfMemoryError as error:
        result["error"] = f"out of memory: {' '.join(str(error).split())[:120]}"
    return result


def _timed(action: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _resident(device: torch.device) -> int:
    """Bytes held now; on a CPU the peak is brought down to it first, where the kernel can."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        return _status("VmRSS")
    except OSError:
        return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int:
    """A size from /proc/self/status, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024


def _head(case: Case, device: torch.device, ours: bool) -> Callable[[], object]:
    channels, h, w, side = HEAD
    features = torch.randn(case.batch, channels, h, w, device=device, requires_grad=True)
    text = F.normalize(torch.randn(NUM_CLASSES, channels, device=device), dim=1)
    weight = torch.randn(case.batch, NUM_CLASSES, side, side, device=device)
    function = cosine_logits if ours else cosine_logits_reference

    def action() -> None:
        features.grad = None
        function(features, text, (side, side)).backward(weight)

    return action


def random_model(
    experiment_name: str, device: torch.device, ours: bool
) -> tuple[Segmenter, object]:
    """The experiment's model with random weights (speed does not depend on them)."""
    experiment = configure(experiment_name)
    if experiment.encoder == RESNET18:
        encoder, text = load_resnet18("random"), None
    else:
        encoder = DenseCLIPEncoder(load_clip(experiment.encoder, "random"))
        text = F.normalize(torch.randn(NUM_CLASSES, encoder.channels[-1]), dim=1)
    model = assemble(experiment, encoder, text)
    return place(model, device) if ours else model.to(device), experiment


def thesis_scores(model: Segmenter, images: Tensor) -> Tensor:
    """The same scores the thesis's way: every channel upsampled, every pixel normalised."""
    if not isinstance(model, LanguageModel):
        return model(images)
    features = model.features(images)
    if model.projection is not None:
        features = F.conv2d(features, model.projection[:, :, None, None])
    return cosine_logits_reference(features, model.text, images.shape[-2:])


def _step(case: Case, device: torch.device, ours: bool) -> Callable[[], object]:
    model, experiment = random_model(case.experiment, device, ours)
    model.train()
    optimizer = make_optimizer(model, experiment)
    precision = mixed_precision(device) if ours else torch.float32
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    images = torch.randint(0, 256, (case.batch, 3, *case.size), dtype=torch.uint8, device=device)
    shape = (case.batch, *case.size)
    labels = torch.randint(0, NUM_CLASSES, shape, dtype=torch.uint8, device=device)

    def action() -> None:
        if ours:
            training_step(model, images, labels, optimizer, scaler, precision)
            return
        loss = segmentation_loss(thesis_scores(model, images), labels, model.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return action


def _inference(case: Case, device: torch.device, ours: bool) -> Callable[[], object]:
    model, _ = random_model(case.experiment, device, ours)
    model.eval()
    images = torch.randint(0, 256, (case.batch, 3, *case.size), dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def action() -> Tensor:
        return predict(model, images) if ours else thesis_scores(model, images).argmax(dim=1)

    return action


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on the device: the roof."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = min(_timed(lambda: a @ b, device) for _ in range(5))
    return 2 * n**3 / seconds


def parse_bytes(text: str) -> int:
    """`15GB`, `800MB` or a plain number, in bytes (powers of 1024).

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?|B)?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise InputError(f"budget {text!r}: write it as 15GB or 800MB")
    exponent = " KMGT".index((found[2] or " ").upper())
    return int(float(found[1]) * 1024**exponent)


def largest_batch(case: Case, budget: int) -> dict:
    """The largest batch whose measured peak stays within the budget, and that peak in bytes.

    The peaks at two batches give a line; the batch it predicts is measured, and corrected until it
    fits. Model, gradients and optimizer count too: the first step is measured with them.
    """
    points = {n: _footprint(replace(case, batch=n)) for n in (2, 4)}
    if points[2] is None or points[2] > budget:
        return {"batch": 0, "bytes": points[2]}
    if points[4] is None or points[4] > budget:
        return {"batch": 2, "bytes": points[2]}
    slope = max(1, (points[4] - points[2]) // 2)
    batch = 4 + (budget - points[4]) // slope
    while batch > 4:
        points[batch] = _footprint(replace(case, batch=batch))
        if points[batch] is not None and points[batch] <= budget:
            break
        batch = batch * 19 // 20
    return {"batch": batch, "bytes": points[batch]}


def _footprint(case: Case) -> int | None:
    """Peak bytes of a step with its model, None where it did not fit the machine."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_footprint_here, case).result()


def _footprint_here(case: Case) -> int | None:
    device = torch.device(case.device)
    empty = _resident(device)
    ours = case.style == "ours"
    try:
        torch.manual_seed(0)
        action = _step(case, device, ours)
        action()
        action()
    except torch.OutOfMemoryError:
        return None
    return _peak(device) - (empty if device.type == "cpu" else 0)
