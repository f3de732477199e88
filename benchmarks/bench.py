"""What a cosine head, a training step or an inference costs: time, peak memory, FLOPs.

Three things are compared with the thesis's way (upsample all channels, normalise every pixel,
multiply; float32): the head alone, a whole training step, and inference on a frame. Each is
measured in a process of its own, so that neither sees the memory the other has taken.

The largest batch that trains within so much memory.

The thesis's way and ours, side by side in one run: head, training step, inference."""

import contextlib
import functools
import gc
import multiprocessing
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from camvid_lang.data.classes import NUM_CLASSES
from camvid_lang.device import (
    give_back_freed_memory,
    mixed_precision,
    pick_device,
    reuse_freed_memory,
    short_name,
    to_device,
)
from camvid_lang.errors import InputError
from camvid_lang.evaluation import predict
from camvid_lang.experiments import configure
from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference
from camvid_lang.models.encoder import RESNET18, DenseCLIPEncoder, load_clip, load_resnet18
from camvid_lang.models.segmentation import LanguageModel, SegmentationModel
from camvid_lang.results import versions
from camvid_lang.run import assemble
from camvid_lang.training.loop import (
    is_out_of_memory,
    make_optimizer,
    segmentation_loss,
    training_step,
)

__all__ = [
    "STYLES",
    "Case",
    "bench",
    "footprint_here",
    "fresh_process",
    "largest_batch",
    "matmul_rate",
    "measure",
    "measure_here",
    "parse_bytes",
    "summary",
    "sweep",
    "sweep_here",
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
) -> tuple[SegmentationModel, object]:
    """The experiment's model with random weights (speed does not depend on them)."""
    experiment = configure(experiment_name)
    if experiment.encoder == RESNET18:
        encoder, text = load_resnet18("random"), None
    else:
        encoder = DenseCLIPEncoder(load_clip(experiment.encoder, "random"))
        text = F.normalize(torch.randn(NUM_CLASSES, encoder.channels[-1]), dim=1)
    model = assemble(experiment, encoder, text)
    return to_device(model, device) if ours else model.to(device), experiment


def thesis_scores(model: SegmentationModel, images: Tensor) -> Tensor:
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


def largest_batch(case: Case, budget: int, limit: int = 4096) -> dict:
    """The largest batch whose measured peak stays within the budget, and that peak in bytes.

    Batches are doubled until one no longer fits, then the gap is halved until it is below an
    eighth of the batch; the answer is measured, and only batches far beyond the budget are ruled
    out by the line through earlier peaks. Model, gradients and optimizer count too. The search
    ends at `limit`. Each batch has a process of its own on a CPU.
    """
    peaks: dict[int, int] = {}
    fits, too_many, batch = 0, None, 2
    while too_many is None or too_many - fits > max(1, fits // 8):
        if _expected(peaks, batch) > 1.3 * budget:
            measured = None
        else:
            measured = _footprint(replace(case, batch=batch))
        if measured is not None and measured <= budget:
            fits, peaks[batch] = batch, measured
            if fits >= limit:
                break
        else:
            too_many = batch
            if not fits:  # a single crop gives BatchNorm nothing to average over
                return {"batch": 0, "bytes": measured}
        batch = fits * 2 if too_many is None else (fits + too_many) // 2
    return {"batch": fits, "bytes": peaks[fits]}


def _expected(peaks: Mapping[int, int], batch: int) -> float:
    """The peak that the last two measured ones lead to; 0 where there are not two."""
    if len(peaks) < 2:
        return 0
    (one, small), (two, large) = sorted(peaks.items())[-2:]
    return large + (batch - two) * (large - small) / (two - one)


def _footprint(case: Case) -> int | None:
    if case.device == "cuda":
        return footprint_here(case)
    try:
        with fresh_process() as pool:
            pool.submit(_volunteer).result()
            return pool.submit(footprint_here, case).result()
    except BrokenProcessPool:  # the kernel ended it for want of memory
        return None


def _volunteer() -> None:
    """Should memory run out, let it be this process that the kernel ends."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


FRAME = (360, 480)
SWEEP = ("frozen-names", "full-narrow-descriptions", "full-descriptions")
SWEEP_BATCHES = (2, 4, 6, 10, 16, 32)
SWEEP_SIZES = ((224, 224), (360, 480), (720, 960))


def bench(experiment: str, batch: int, device_name: str, budget: int | None) -> dict:
    """All comparisons of one experiment on one device, as a dictionary that JSON can hold.

    Raises:
        InputError: an unknown experiment or device.
    """
    configure(experiment)  # before minutes are spent
    device = pick_device(device_name)
    base = Case("head", "ours", experiment, batch, device=device.type)
    results: dict = {**describe(device), "experiment": experiment, "batch": batch}
    for what, size in (("head", (224, 224)), ("step", (224, 224)), ("inference", FRAME)):
        count = 1 if what == "inference" else batch
        case = replace(base, what=what, size=size, batch=count)
        results[what] = {style: measure(replace(case, style=style)) for style in STYLES}
    precision = mixed_precision(device)
    roof = matmul_rate(device, precision)
    step = results["step"]["ours"]
    rate = step["flops"] / step["seconds"] if step["seconds"] else None
    results["roofline"] = {
        "matmul_flops_per_second": roof,
        "step_flops": step["flops"],
        "step_flops_per_second": rate,
        "share_of_matmul": rate / roof if rate else None,
        "dtype": short_name(precision),
    }
    if budget:
        case = replace(base, what="step")
        found = {style: largest_batch(replace(case, style=style), budget) for style in STYLES}
        results["largest_batch"] = {"budget_bytes": budget, **found}
    return results


def sweep(device_name: str, budget: int) -> dict:
    """Memory and images/s over experiments, sizes and batches: the table to measure on a GPU.

    One process for each experiment and style, so that its model is built once.
    """
    device = pick_device(device_name)
    roof = matmul_rate(device, mixed_precision(device))
    rows = []
    context = multiprocessing.get_context("spawn")
    for experiment in SWEEP:
        for style in STYLES:
            with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
                case = Case("step", style, experiment, device=device.type)
                found = pool.submit(sweep_here, case, budget, SWEEP_SIZES, SWEEP_BATCHES).result()
            for row in found:
                print(format_row(row, roof), flush=True)
            rows += found
    return {
        **describe(device),
        "budget_bytes": budget,
        "matmul_flops_per_second": roof,
        "dtype": short_name(mixed_precision(device)),
        "rows": rows,
    }


def sweep_here(
    case: Case, budget: int, sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> list[dict]:
    """One experiment in one style: all sizes and batches, and the largest batch of each size."""
    rows = []
    for size in sizes:
        sized = replace(case, size=size)
        for batch in batches:
            rows.append(measure_here(replace(sized, batch=batch)))
            if rows[-1]["error"]:
                break
        rows.append({**asdict(sized), "largest_batch": largest_batch(sized, budget)})
    return rows


def format_row(row: dict, roof: float) -> str:
    """One line of a sweep for a reader."""
    name = f"{row['experiment']:25}{row['size'][0]:>4}x{row['size'][1]:<4} {row['style']:7}"
    if found := row.get("largest_batch"):
        return f"{name} largest batch within the budget: {found['batch']}"
    if row["error"]:
        return f"{name} batch {row['batch']:>3}  out of memory"
    speed = row["batch"] / row["seconds"]
    share = row["flops"] / row["seconds"] / roof
    memory = row["extra_bytes"] / 1024**3
    return f"{name} batch {row['batch']:>3} {memory:7.2f} GiB {speed:8.1f} images/s {share:6.1%}"


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


def describe(device: torch.device) -> dict:
    """Device, threads and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": name or device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def summary(results: dict) -> str:
    """The comparisons as lines for a reader."""
    lines = [f"{results['device']}, {results['threads']} threads, {results['experiment']}"]
    for what in ("head", "step", "inference"):
        thesis, ours = (results[what][style] for style in STYLES)
        if thesis["error"] or ours["error"]:
            lines.append(f"{what:10} {thesis['error'] or ours['error']}")
            continue
        faster = thesis["seconds"] / ours["seconds"]
        leaner = thesis["extra_bytes"] / max(1, ours["extra_bytes"])
        frames = f", {1 / ours['seconds']:.1f} frames/s" if what == "inference" else ""
        sides = [
            f"{style} {side['seconds'] * 1e3:8.1f} ms {side['extra_bytes'] >> 20:6} MiB"
            for style, side in zip(STYLES, (thesis, ours), strict=True)
        ]
        ratio = f"{faster:.1f}x faster, {leaner:.1f}x less memory{frames}"
        lines.append(f"{what:10} {sides[0]}   {sides[1]}   {ratio}")
    roof = results["roofline"]
    if roof["share_of_matmul"]:
        work, rate = roof["step_flops"] / 1e9, roof["step_flops_per_second"] / 1e9
        lines.append(
            f"step: {work:.0f} GFLOP at {rate:.0f} GFLOP/s, {roof['share_of_matmul']:.0%} of a "
            f"large matmul's {roof['matmul_flops_per_second'] / 1e9:.0f} ({roof['dtype']})"
        )
    for style, found in results.get("largest_batch", {}).items():
        if style in STYLES:
            lines.append(f"largest batch within the budget, {style}: {found['batch']}")
    return "\n".join(lines)
