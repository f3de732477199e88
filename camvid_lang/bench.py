"""The thesis's way and ours, side by side in one run: head, training step, inference."""

import multiprocessing
import platform
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import torch

from camvid_lang.budget import largest_batch
from camvid_lang.devices import mixed_precision, pick_device, short_name
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.measuring import (
    STYLES,
    Case,
    matmul_rate,
    measure,
    measure_here,
)
from camvid_lang.results import versions

__all__ = ["bench", "parse_bytes", "summary", "sweep", "sweep_here"]

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
