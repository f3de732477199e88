"""What a cosine head, a training step or an inference costs: time, peak memory, FLOPs.

Three things are compared with the thesis's way (upsample all channels, normalise every pixel,
multiply; float32): the head alone, a whole training step, and inference on a frame. Each is
measured in a process of its own, so that neither sees the memory the other has taken.
"""

import functools
import gc
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from camvid_lang.assembly import assemble
from camvid_lang.cosine import cosine_logits, cosine_logits_reference
from camvid_lang.devices import (
    give_back_freed_memory,
    mixed_precision,
    place,
    reuse_freed_memory,
)
from camvid_lang.encoder import RESNET18, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.evaluation import predict
from camvid_lang.experiments import configure
from camvid_lang.faults import is_out_of_memory
from camvid_lang.learner import make_optimizer, segmentation_loss, training_step
from camvid_lang.models import LanguageModel, Segmenter
from camvid_lang.taxonomy import NUM_CLASSES

__all__ = [
    "STYLES",
    "Case",
    "footprint_here",
    "fresh_process",
    "matmul_rate",
    "measure",
    "measure_here",
]

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
    """Seconds a repeat, peak extra memory in bytes and FLOPs, in a fresh process.

    Extra memory is what the measured code took on top of its inputs and the model: the allocator's
    peak on CUDA, the process's peak resident size on a CPU (Linux). `error` is set, and the rest
    None, where memory did not suffice.
    """
    with fresh_process() as pool:
        return pool.submit(measure_here, case).result()


def fresh_process() -> ProcessPoolExecutor:
    """One process that has not taken any memory yet."""
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


def measure_here(case: Case) -> dict:
    """As `measure`, in this process."""
    device = torch.device(case.device)
    ours = case.style == "ours"
    torch.manual_seed(0)
    prepare = {"head": _head, "step": _step, "inference": _inference}[case.what]
    result = {**asdict(case), "seconds": None, "extra_bytes": None, "flops": None, "error": None}
    try:
        action = prepare(case, device, ours)
        if case.what == "step":
            action()  # the optimizer's own memory comes with the first step
        before = _settled(device)
        action()
        result["extra_bytes"] = _peak(device) - before
        with FlopCounterMode(display=False) as counter:
            action()
        result["flops"] = counter.get_total_flops()
        if ours and device.type == "cpu":
            reuse_freed_memory()  # only now: what is kept for reuse could not be told from use
            action()
        result["seconds"] = _seconds(action, device, case.repeats)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        result["error"] = f"out of memory: {' '.join(str(error).split())[:120]}"
    return result


def _seconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The best of the repeats on a CPU; on CUDA their mean, queued without a wait between them."""
    if device.type != "cuda":
        return min(_timed(action, device) for _ in range(repeats))
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


def _timed(action: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _settled(device: torch.device) -> int:
    """Bytes held now, after giving back what was freed; the peak is brought down to it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back_freed_memory()
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
        import resource  # absent on Windows, where no peak can be measured this way

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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


@functools.lru_cache(maxsize=1)
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
    model.zero_grad(set_to_none=True)
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


def footprint_here(case: Case) -> int | None:
    """Peak bytes of two steps with their model, None where they did not fit the machine."""
    device = torch.device(case.device)
    empty = _settled(device) if device.type == "cpu" else 0
    try:
        torch.manual_seed(0)
        action = _step(case, device, case.style == "ours")
        if device.type == "cuda":
            _settled(device)  # the peak is still that of the batch before
        action()
        action()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return _peak(device) - empty
