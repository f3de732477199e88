"""One stage of the measurements on a GPU, see gpu.sh.

check   the GPU; of each recipe, one epoch and the time of a step, alone and next to the others
cost    head, training step and inference of three experiments, the thesis's way and ours
memory  their largest training batches within --budget
train   whole trainings and their scores

The pieces of a stage run at the same time, each in its own process, and take turns where something
is timed. What a piece has measured is added to OUT/gpu.json at once, so that nothing is lost when
the time of the stage is up.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import bench
import torch
from filelock import FileLock
from torch.utils.benchmark import Timer

from camvid_lang.data.camvid import Frames, load_camvid
from camvid_lang.data.classes import CLASSES
from camvid_lang.device import mixed_precision, to_device
from camvid_lang.evaluation import Wording, evaluate, wordings
from camvid_lang.experiments import Experiment, configure
from camvid_lang.models.segmentation import COMPARE
from camvid_lang.models.text import TextBank
from camvid_lang.results import versions
from camvid_lang.runs import build_model
from camvid_lang.segmenter import Segmenter
from camvid_lang.training.loop import epoch_batches, train

RESNET, BANK = "resnet18_imagenet1k_v1.safetensors", "clip_vit_b16_text.npz"
RECIPES = ("swiftnet", "full-names", "swiftnet-best", "best")
NARROW = {"width": 128, "spp_bottleneck": 128, "spp_width": 128}
CHANGES = {"full-names": {"encoder": "resnet18", "batch_size": 12, **NARROW}}
RUNS = ["swiftnet,seed=0", "swiftnet,seed=1", "full-names", "swiftnet-best", "best"]
AVERAGED = {"scales": (0.75, 1.0, 1.25), "flip": True}
EVALUATE_BATCH, GIB = 4, 1024**3
# Asked of the trained models, with lists of `evaluation.wordings`.
_CITYSCAPES = (
    "sky, building, pole, road, sidewalk, vegetation, traffic sign, fence, car, person, rider"
)
CITYSCAPES = Wording(
    "Cityscapes' names",
    dict(zip(CLASSES, ([word] for word in _CITYSCAPES.split(", ")), strict=True)),
)


class Piece:
    """What a process measures: its name, the stage's options, and where results go."""

    def __init__(self, options: argparse.Namespace, name: str, barriers: dict):
        self.options, self.name, self.barriers = options, name, barriers
        self.device, self.tiny = torch.device(options.device), options.tiny

    def report(self, **found: object) -> None:
        """Add results to OUT/gpu.json."""
        file = self.options.out / "gpu.json"
        with FileLock(self.options.out / ".gpu.lock"):
            whole = json.loads(file.read_text()) if file.exists() else {}
            whole.setdefault(self.options.stage, {}).setdefault(self.name, {}).update(found)
            part = file.with_suffix(".part")
            part.write_text(json.dumps(whole, indent=1))
            part.replace(file)

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.options.began:6.1f}] {self.name}: {text}", flush=True)

    def wait_for_others(self, mark: str) -> None:
        """Until all pieces have come so far, 30 s at most, so that none disturbs a timing."""
        with suppress(threading.BrokenBarrierError):
            self.barriers[mark].wait(timeout=30)

    def alone(self) -> FileLock:
        """A context in which no other piece uses the GPU."""
        return FileLock(self.options.out / ".alone.lock")

    def experiment(self, name: str, **settings: str) -> Experiment:
        weights = self.options.weights
        given = {**CHANGES.get(name, {}), "weights": str(weights / RESNET)}
        if "swiftnet" not in name:
            given["text_bank"] = str(weights / BANK)
        if self.tiny:
            given |= {"epochs": 2, "limit": 4, "crop": 64, "batch_size": 2}
        return configure(name, **{**given, **settings})

    def load(self, split: str, limit: int) -> Frames:
        limit = min(limit, 4) if self.tiny else limit
        return load_camvid(self.options.data, split, limit or None).to(self.device)


class InMemory:
    """In place of `Checkpoints`, as writing takes longer than an epoch: the newest weights."""

    def __init__(self):
        self.weights: dict[str, dict] = {}

    def newest(self) -> None:
        return None

    def save(self, state: dict) -> None:
        self.weights = {"last": {key: value.clone() for key, value in state["model"].items()}}
        if average := state["average"]:
            found = {key: value.clone() for key, value in average["weights"].items()}
            self.weights["ema"] = {**self.weights["last"], **found}


def check_machine(piece: Piece) -> None:
    device = piece.device
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        piece.report(card=card.name, memory=card.total_memory, cuda=torch.version.cuda)
    piece.report(versions=versions(), cpus=os.cpu_count())
    piece.wait_for_others("loaded")
    with piece.alone():
        rate = bench.matmul_rate(device, mixed_precision(device))
        count = 2**20 if piece.tiny else 2**31
        a, b = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
        seconds = Timer("b.copy_(a)", globals={"a": a, "b": b}).blocked_autorange().median
        piece.report(matmul_flops_per_second=rate, copy_bytes_per_second=2 * count / seconds)
    piece.wait_for_others("timed")


def check_recipe(piece: Piece) -> None:
    experiment, device = piece.experiment(piece.name), piece.device
    piece.report(settings=experiment.settings())
    model = to_device(build_model(experiment)[0], device)
    frames, few = piece.load("trainval", 24), piece.load("test", 4)
    epoch, kept = replace(experiment, epochs=1, warmup_epochs=0), InMemory()
    piece.report(history=train(model, frames, epoch, kept), weights=list(kept.weights))
    train_on = bench.training_step(model, experiment)

    def steps() -> Iterator[None]:
        for number in itertools.count():
            for images, labels in epoch_batches(frames, experiment, number):
                train_on(images, labels)
                yield

    step, enough = steps(), 0.1 if piece.tiny else 3

    def speed(every: int = 1 if piece.tiny else 10) -> dict:
        """The time of a step, waiting for the GPU every so many steps."""
        bench.reset_peak(device.type)
        for _ in range(1 if piece.tiny else 5):
            next(step)
        timer = Timer("for _ in range(n): next(step)", globals={"n": every, "step": step})
        seconds = timer.blocked_autorange(min_run_time=enough).median / every
        found = {"ms": 1e3 * seconds, "images_per_second": experiment.batch_size / seconds}
        return {**found, "peak_gib": bench.peak_bytes(device.type) / GIB}

    piece.wait_for_others("loaded")
    model.train()
    with piece.alone():
        piece.report(alone=speed())
        torch.backends.cudnn.benchmark = True
        piece.report(tuned=speed())
        torch.backends.cudnn.benchmark = False
        for key, more in (("plain", {}), ("averaged", AVERAGED)):
            for _ in range(2):  # the first is slower
                started = time.perf_counter()
                asked = bench.Averaged(model, **more) if more else model
                miou = evaluate(asked, few, EVALUATE_BATCH)["miou"]
                milliseconds = 1e3 * (time.perf_counter() - started) / len(few)
            piece.report(**{f"evaluate_{key}": {"ms_per_frame": milliseconds, "miou": miou}})
    model.train()
    piece.wait_for_others("timed")
    piece.report(shared=speed(every=1))


def cost(piece: Piece) -> None:
    """One experiment in one style, at two sizes; for the stage `memory` the largest batch only."""
    name, _, style = piece.name.partition(".")
    tiny, budget = piece.tiny, piece.options.budget * GIB
    case = bench.Case("step", style, name, device=piece.device.type)
    model = bench.random_model(name, style, case.device)

    def measured(case: bench.Case) -> dict:
        found = bench.measure(case, min_run_time=0.1 if tiny else 0.6)
        if seconds := found.pop("seconds", None):
            found |= {"ms": 1e3 * seconds, "images_per_second": case.batch / seconds}
        return {"batch": case.batch, **found}

    def largest(case: bench.Case) -> dict:
        """Estimated from the line through the peaks of two batches, measured, and lowered."""
        few, more = (4, 12) if case.size[0] < 300 and not tiny else (2, 3)
        peaks = {n: bench.peak_of_two_steps(replace(case, batch=n)) for n in (few, more)}
        if None in peaks.values():
            return {"peaks": peaks, "batch": None}
        slope = max((peaks[more] - peaks[few]) / (more - few), 1)
        batch = min(int(more + (budget - peaks[more]) / slope), 8 if tiny else 4096)
        while batch >= 2:
            peaks[batch] = bench.peak_of_two_steps(replace(case, batch=batch))
            if peaks[batch] is not None and peaks[batch] <= budget:
                break
            batch = min(batch - 1, int(batch * 0.96))
        return {"peaks": peaks, "bytes_per_image": slope, "batch": max(batch, 0)}

    piece.wait_for_others("loaded")
    for size in ((64, 64), (96, 96)) if tiny else ((224, 224), (720, 960)):
        batch = 2 if tiny or size[0] > 300 else configure(name).batch_size
        for what, count in (("step", batch), ("inference", 1), ("head", batch), ("largest", 0)):
            if piece.options.stage == "memory" and what != "largest":
                continue
            sized = replace(case, what="step" if what == "largest" else what, size=size)
            with piece.alone():
                found = measured(replace(sized, batch=count)) if count else largest(sized)
                model.zero_grad(set_to_none=True)
                bench.reset_peak(case.device)  # the next piece needs the memory
            piece.report(**{f"{what}_{size[0]}x{size[1]}": found})


def train_and_score(piece: Piece) -> None:
    name, *pairs = piece.name.split(",")
    experiment = piece.experiment(name, **dict(pair.split("=", 1) for pair in pairs))
    epochs, device = experiment.epochs, piece.device
    piece.report(settings=experiment.settings(), epochs=epochs)
    model = to_device(build_model(experiment)[0], device)
    frames = piece.load(experiment.train_split, experiment.limit)
    test = piece.load(experiment.test_split, experiment.limit)
    kept, meanwhile, started = InMemory(), {}, time.perf_counter()
    due = {max(1, round(epochs * share)) for share in (0.25, 0.5, 0.75)} - {epochs}

    def score(kind: str, **averaged: object) -> dict:
        torch.backends.cudnn.benchmark = False  # the last batch of an evaluation is smaller
        model.load_trained_state(kept.weights[kind])
        asked = bench.Averaged(model, **averaged) if averaged else model
        scored = evaluate(asked, test, EVALUATE_BATCH)
        torch.backends.cudnn.benchmark = piece.options.tuned
        return scored

    def after_epoch(history: list[dict]) -> None:
        done = len(history)
        if done in due:
            meanwhile[done] = {kind: score(kind)["miou"] for kind in kept.weights}
            model.load_trained_state(kept.weights["last"])
        late = done < epochs and time.time() > piece.options.end - piece.options.reserve
        if done in due or done % max(1, epochs // 20) == 0 or late or done == epochs:
            seconds = time.perf_counter() - started
            piece.report(history=history, meanwhile=meanwhile, seconds=seconds, stopped_early=late)
            piece.say(f"epoch {done}/{epochs}, loss {history[-1]['loss']:.3f}, {meanwhile}")
        if late:
            raise TimeoutError

    torch.backends.cudnn.benchmark = piece.options.tuned
    with suppress(TimeoutError):
        train(model, frames, experiment, kept, on_epoch=after_epoch)
    piece.report(peak_gib=bench.peak_bytes(device.type) / GIB)
    del frames
    *_, best = kept.weights  # ema, where there is one
    plans = {kind: (kind, {}) for kind in reversed(kept.weights)}
    plans |= {
        f"{best}+flip": (best, {"scales": (1.0,), "flip": True}),
        f"{best}+flip+scales": (best, AVERAGED),
    }
    scores = {}
    for key, (kind, averaged) in plans.items():
        scores[key] = score(kind, **averaged)
        piece.report(scores=scores)
        piece.say(f"{key}: mIoU {scores[key]['miou']:.2f}")
    if experiment.text_bank:
        model.load_trained_state(kept.weights[best])
        segmenter = Segmenter(model.eval(), experiment, lambda: TextBank(experiment.text_bank))
        lists = {key: wordings()[key] for key in ("near", "far", "unrelated")}
        asked = {"cityscapes": CITYSCAPES, **lists}
        other_words = segmenter.vocabulary_shift(test, asked)["wordings"]
        piece.report(other_words=other_words)
        for key, row in other_words.items():
            found = ", ".join(f"{way} {row[way]['miou']:.2f}" for way in COMPARE if way in row)
            piece.say(f"words {key}: mIoU {found}")


def run_piece(piece: Piece, action: Callable[[Piece], None]) -> None:
    # Ends this process where the one that started it was killed.
    watchdog = threading.Timer(piece.options.end + 10 - time.time(), os._exit, (3,))
    watchdog.daemon = True
    watchdog.start()
    torch.set_num_threads(2)
    try:
        action(piece)
    except BaseException as error:
        for barrier in piece.barriers.values():
            barrier.abort()
        piece.report(error=f"{type(error).__name__}: {error}"[:500])
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("check", "cost", "memory", "train"))
    for name in ("data", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True, help="seconds of the stage")
    parser.add_argument("--began", type=float, default=time.time(), help="in seconds since 1970")
    parser.add_argument("--reserve", type=float, default=60, help="seconds kept for evaluation")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearsal on a CPU: tiny numbers")
    parser.add_argument("--tuned", action="store_true", help="train with cudnn.benchmark")
    parser.add_argument("--budget", type=float, default=15, help="GiB of the largest batch")
    parser.add_argument("--runs", nargs="*", default=RUNS, metavar="NAME,KEY=VALUE,...")
    options = parser.parse_args()
    options.end = options.began + options.limit
    os.environ["TQDM_DISABLE"] = "1"  # inherited by the pieces
    recipes, costly = (["best"], ["swiftnet"]) if options.tiny else (RECIPES, bench.SWEEP)
    costs = {f"{name}.{style}": cost for name in costly for style in bench.STYLES}
    actions = {
        "check": {"machine": check_machine, **dict.fromkeys(recipes, check_recipe)},
        "cost": costs,
        "memory": costs,
        "train": dict.fromkeys(options.runs, train_and_score),
    }[options.stage]
    context = multiprocessing.get_context("spawn")
    barriers = {mark: context.Barrier(len(actions)) for mark in ("loaded", "timed")}
    running = []
    for name, action in actions.items():
        piece = Piece(options, name, barriers)
        process = context.Process(target=run_piece, args=(piece, action), daemon=True)
        process.start()
        running.append((piece, process))
    for piece, process in running:
        process.join(max(0, options.end - time.time()))
        if process.is_alive():
            process.kill()
            process.join()
            piece.report(stopped=True)
        piece.say(f"ended ({process.exitcode})")


if __name__ == "__main__":
    main()
