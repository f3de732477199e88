"""Cost of the thesis's way and of ours: time, peak memory, FLOPs, largest batch.

    python benchmarks/bench.py [--experiment frozen-names] [--device auto] [--batch 2]
                               [--budget 15GB] [--sweep] [--json FILE] [--t4]

The thesis upsamples all channels, normalises every pixel and multiplies by the text, in float32.
Compared are the cosine head alone, a training step, and inference on one frame; `--sweep` measures
training steps of several experiments, sizes and batches instead. Weights are random, as speed does
not depend on them. On a CPU each measurement has its own process, and Linux is needed to read its
peak memory; leave the MALLOC_* variables of the Makefile unset, as they keep freed memory.
`--t4` prints how long the thesis's runs would train on a T4; nobody has measured it.
"""

import argparse
import functools
import gc
import itertools
import json
import multiprocessing
import platform
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from camvid_lang.data.classes import NUM_CLASSES
from camvid_lang.device import autocast, mixed_precision, pick_device, to_device
from camvid_lang.experiments import EXPERIMENTS, Experiment, configure
from camvid_lang.models.cosine import cosine_logits, cosine_logits_reference
from camvid_lang.models.segmentation import LanguageModel, SegmentationModel, best_class
from camvid_lang.results import versions
from camvid_lang.runs import build_model
from camvid_lang.training.loop import Average, make_optimizer, segmentation_loss

HEAD_CHANNELS = 640  # of the features, at a quarter of the output's size
STYLES = ("thesis", "ours")
SWEEP = ("frozen-names", "full-narrow-descriptions", "full-descriptions")
SWEEP_BATCHES = (2, 4, 6, 10, 16, 32)
SWEEP_SIZES = ((224, 224), (360, 480), (720, 960))
T4_FLOPS = 8e12  # per second, assumed: an eighth of a T4's peak in half precision, 65e12


@dataclass(frozen=True)
class Case:
    """One thing to measure: `head`, `step` or `inference`, in the thesis's way or ours."""

    what: str
    style: str
    experiment: str = "frozen-names"
    batch: int = 2
    size: tuple[int, int] = (224, 224)
    device: str = "cpu"


@functools.lru_cache(maxsize=1)
def random_model(name: str, style: str, device: str) -> SegmentationModel:
    model, _ = build_model(replace(configure(name), weights="random"))
    return to_device(model, torch.device(device)) if style == "ours" else model.to(device)


def thesis_scores(model: SegmentationModel, images: Tensor) -> Tensor:
    """The model's scores with every channel upsampled and every pixel normalised."""
    if not isinstance(model, LanguageModel):
        return model(images)
    features = model.features(model.encode(images))
    if model.projection is not None:
        features = F.conv2d(features, model.projection[:, :, None, None])
    return cosine_logits_reference(features, model.text, images.shape[-2:])


class Averaged(nn.Module):
    """A model whose classes are those of the probabilities averaged over resized images.

    With `flip` over their mirror images too. The thesis does not do so; README reports it apart.
    """

    def __init__(self, model: SegmentationModel, scales: Sequence[float], flip: bool):
        super().__init__()
        self.model, self.scales, self.flip = model, scales, flip
        self.names = model.names

    def segment(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        size, sums = images.shape[-2:], 0
        for scale in self.scales:
            resized = F.interpolate(images, [round(side * scale) for side in size], mode="bilinear")
            for mirrored in (False, True) if self.flip else (False,):
                output = self.model(resized.flip(-1) if mirrored else resized)
                shares = (output.float() / self.model.temperature).softmax(dim=1)
                shares = shares.flip(-1) if mirrored else shares
                sums = sums + F.interpolate(shares, size, mode="bilinear")
        return best_class(sums)


def training_step(
    model: SegmentationModel, experiment: Experiment
) -> Callable[[Tensor, Tensor], None]:
    """A step of `training.loop.train` on images and labels, without metrics and learning rates."""
    device, optimizer = next(model.parameters()).device, make_optimizer(model, experiment)
    half = mixed_precision(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    average = Average(model, experiment.ema) if experiment.ema else None
    weight = experiment.boundary_weight

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with autocast(device):
            loss = segmentation_loss(model(images), labels, model.temperature, weight)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if average:
            average.update()

    return step


def prepare(case: Case) -> Callable[[], object]:
    """The function to measure, with its model and inputs on the device."""
    torch.manual_seed(0)
    device, ours, shape = torch.device(case.device), case.style == "ours", (case.batch, *case.size)
    if case.what == "head":
        height, width = (side // 4 for side in case.size)
        features = torch.randn(case.batch, HEAD_CHANNELS, height, width, device=device)
        features.requires_grad_()
        text = F.normalize(torch.randn(NUM_CLASSES, HEAD_CHANNELS, device=device), dim=1)
        gradient = torch.randn(case.batch, NUM_CLASSES, *case.size, device=device)
        head = cosine_logits if ours else cosine_logits_reference

        def run_head() -> None:
            features.grad = None
            head(features, text, case.size).backward(gradient)

        return run_head

    model = random_model(case.experiment, case.style, case.device)
    images = torch.randint(256, (case.batch, 3, *case.size), dtype=torch.uint8, device=device)
    precision = mixed_precision(device) if ours else torch.float32
    if case.what == "inference":
        model.eval()
        infer = model.segment if ours else lambda x: thesis_scores(model, x).argmax(dim=1)
        return torch.inference_mode()(autocast(device, precision)(lambda: infer(images)))

    model.train()
    model.zero_grad(set_to_none=True)
    experiment = configure(case.experiment)
    labels = torch.randint(NUM_CLASSES, shape, dtype=torch.uint8, device=device)
    if ours:
        step = training_step(model, experiment)
        return lambda: step(images, labels)
    optimizer = make_optimizer(model, experiment)

    def thesis_step() -> None:
        loss = segmentation_loss(thesis_scores(model, images), labels, model.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return thesis_step


def reset_peak(device: str) -> None:
    gc.collect()
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Peak since the last `reset_peak`; right after it, what is held now."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    # getrusage's peak cannot be reset and includes that of the parent process.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def measure(case: Case, min_run_time: float = 2) -> dict:
    """Seconds, peak bytes on top of model and inputs, and FLOPs; or `error`: out of memory."""
    try:
        action = prepare(case)
        if case.what == "step":
            action()  # allocates the optimizer's state
        reset_peak(case.device)
        before = peak_bytes(case.device)
        action()
        extra = peak_bytes(case.device) - before
        with FlopCounterMode(display=False) as counter:
            action()
        timer = Timer("action()", globals={"action": action}, num_threads=torch.get_num_threads())
        seconds = timer.blocked_autorange(min_run_time=min_run_time).median
        return {"seconds": seconds, "extra_bytes": extra, "flops": counter.get_total_flops()}
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {error}"}


def peak_of_two_steps(case: Case) -> int | None:
    """Peak bytes of model, optimizer and two steps; None if they do not fit in memory."""
    start = 0
    if case.device == "cpu":
        # If the machine runs out of memory, the kernel kills this process and no other.
        Path("/proc/self/oom_score_adj").write_text("1000")
        start = peak_bytes("cpu")
    try:
        action = prepare(case)
        reset_peak(case.device)
        action()
        action()
    except torch.OutOfMemoryError:
        return None
    return peak_bytes(case.device) - start


def in_own_process(function: Callable, case: Case) -> object:
    """`function(case)`, on a CPU in a new process, which holds no freed memory yet."""
    if case.device != "cpu":
        return function(case)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "camvid_lang.runs"])  # imports take ten seconds
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, case).result()


def largest_batch(case: Case, budget: int, peak: Callable = peak_of_two_steps) -> int:
    """The largest batch (to within an eighth) whose measured peak is within the budget in bytes.

    Batches are doubled until one does not fit, then bisected. 0 if two images do not fit: a batch
    of one gives BatchNorm nothing to average over.
    """
    fits, too_large = 0, None
    while too_large is None or too_large - fits > max(1, fits // 8):
        batch = max(2, 2 * fits) if too_large is None else (fits + too_large) // 2
        try:
            found = in_own_process(peak, replace(case, batch=batch))
        except BrokenProcessPool:
            found = None
        if found is not None and found <= budget:
            fits = batch
        elif batch == 2:
            return 0
        else:
            too_large = batch
    return fits


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, an upper bound for a network."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * n**3 / timer.blocked_autorange(min_run_time=1).median


def compare(experiment: str, batch: int, device: str) -> list[Case]:
    sizes = {"head": (batch, (224, 224)), "step": (batch, (224, 224)), "inference": (1, (360, 480))}
    return [Case(w, style, experiment, *sizes[w], device) for w in sizes for style in STYLES]


def sweep(device: str) -> list[Case]:
    cases = itertools.product(SWEEP, STYLES, SWEEP_SIZES, SWEEP_BATCHES)
    return [Case("step", style, name, n, size, device) for name, style, size, n in cases]


def line(row: dict, matmul: float) -> str:
    """A row of the results for a reader."""
    height, width = row["size"]
    name = f"{row['experiment']:25}{row['what']:10}{row['style']:7}{height}x{width}"
    if "largest_batch" in row:
        return f"{name} largest batch within the budget: {row['largest_batch']}"
    if "error" in row:
        return f"{name} x {row['batch']:<3} {row['error'][:60]}"
    speed, share = row["batch"] / row["seconds"], row["flops"] / row["seconds"] / matmul
    cost = f"{1e3 * row['seconds']:8.1f} ms {row['extra_bytes'] / 2**20:8.0f} MiB"
    return f"{name} x {row['batch']:<3}{cost} {speed:8.1f} images/s {share:6.1%} of matmul"


def t4_time(name: str, profile: str) -> tuple[float, float]:
    """FLOPs of all training steps on CamVid's 468 frames, counted; minutes at `T4_FLOPS`."""
    experiment = configure(name, profile)
    model = random_model(name, "ours", "cpu").train()
    size, batch = (experiment.crop,) * 2, experiment.batch_size
    images, labels = torch.rand(batch, 3, *size), torch.zeros(batch, *size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        segmentation_loss(model(images), labels, model.temperature).backward()
    flops = counter.get_total_flops() * experiment.epochs * 468 / batch
    return flops, flops / T4_FLOPS / 60


def byte_count(text: str) -> int:
    """`15GB`, `800MB` or a number of bytes; units are powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip().upper())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 15GB or 800MB")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    trained = [name for name, entry in EXPERIMENTS.items() if entry.model != "bilinear"]
    parser.add_argument("--experiment", choices=trained, default="frozen-names")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch", type=int, default=2, help="of head and training step")
    parser.add_argument("--budget", type=byte_count, help="find the largest batch within it: 15GB")
    parser.add_argument("--sweep", action="store_true", help="experiments x sizes x batches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--t4", action="store_true", help="time of the thesis's runs on a T4")
    options = parser.parse_args(arguments)
    if options.t4:
        for name, profile in itertools.product(trained, ("thesis", "quick")):
            flops, minutes = t4_time(name, profile)
            print(f"{name:26}{profile:8}{flops / 1e15:6.1f} PFLOP{minutes:7.0f} min")
        return
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    results = {"device": name, "threads": torch.get_num_threads(), "versions": versions()}
    results["matmul_flops_per_second"] = rate = matmul_rate(device, mixed_precision(device))
    print(f"{name}, {results['threads']} threads, large matmul: {rate / 1e9:.0f} GFLOP/s")
    name, batch = options.experiment, options.batch
    cases = sweep(device.type) if options.sweep else compare(name, batch, device.type)
    rows = results["rows"] = []

    def add(case: Case, found: dict) -> None:
        rows.append({**vars(case), **found})
        print(line(rows[-1], rate), flush=True)

    for case in cases:
        if not (rows and "error" in rows[-1] and case.batch > rows[-1]["batch"]):
            add(case, in_own_process(measure, case))
    for case in dict.fromkeys(replace(case, batch=2) for case in cases if case.what == "step"):
        if options.budget:
            add(case, {"largest_batch": largest_batch(case, options.budget)})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
