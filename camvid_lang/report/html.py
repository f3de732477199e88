"""From folders of finished runs to one self-contained HTML page, without scripts.

Jinja escapes everything from outside. What the page shows, and its text: `report.html.j2`.
"""

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from camvid_lang import evaluation
from camvid_lang.errors import InputError
from camvid_lang.report import figures, tables
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import (
    SAMPLES,
    RunFolder,
    atomic_write,
    read_figures,
    read_results,
    read_vocabulary,
    write_json,
)

WIDTH = 480  # pixels of a frame; a wider one is scaled down


def report_runs(
    folders: Sequence[str | Path],
    page: str | Path | None = None,
    json_file: str | Path | None = None,
    coming: Sequence[str] = (),
) -> Path:
    """Write one page on finished runs, and return its path; nothing is computed again.

    Args:
        folders: folders of runs, or folders that hold such folders, like a demo's.
        page: where to write; `report.html` in the first folder by default.
        coming: runs under way, which the page names; a browser then reads it again and again.
        json_file: also write {experiment: results} to this file; vocabulary.json as "vocabulary".

    Raises:
        InputError: a folder without a finished run, a damaged results.json or vocabulary.json.
    """
    runs = _labelled([run for folder in folders for run in _finished(Path(folder))])
    results = {name: read_results(run.results) for name, run in runs.items()}
    frames = {name: data for name, run in runs.items() if (data := read_figures(run.figures))}
    words = {}
    for name, run in runs.items():
        found = read_vocabulary(run.vocabulary)
        # Not what was measured on other frames than the scores.
        if found and found["digest"] == results[name]["data"].get("digest"):
            words[name] = found
    page = Path(page or Path(folders[0]) / "report.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    if json_file:
        added = {name: {"vocabulary": found} for name, found in words.items()}
        write_json(json_file, {name: r | added.get(name, {}) for name, r in results.items()})
    groups = _seeds(results)

    def merged(found: Mapping) -> dict:
        kept = {name: [found[n] for n in runs if n in found] for name, runs in groups.items()}
        return {name: tables.mean(values) for name, values in kept.items() if values}

    text = _page(*map(merged, (results, frames, words)), coming)
    with atomic_write(page) as file:
        file.write(text.encode(errors="backslashreplace"))
    return page


def _seeds(results: tables.Results) -> dict[str, list[str]]:
    """{name: runs}; together, as `experiment (3 seeds)`, are runs that differ only in the seed."""
    same_runs: dict[str, list[str]] = {}
    for name, r in results.items():
        same = [r["experiment"], {**r["settings"], "seed": 0}, len(r["history"]), r["data"]["name"]]
        same += [r["data"].get(key) for key in ("digest", "train_digest")]
        same_runs.setdefault(json.dumps(same, sort_keys=True), []).append(name)
    groups: dict[str, list[str]] = {}
    for names in same_runs.values():
        if len({results[n]["settings"].get("seed") for n in names}) < max(2, len(names)):
            groups |= {name: [name] for name in names}
            continue
        seeds = f"{len(names)} seeds)"
        label = f"{results[names[0]]['experiment']} ({seeds}"
        groups[f"{names[0][:-1]}, {seeds}" if label in groups else label] = names
    return groups


def _labelled(runs: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """{experiment: run} in the thesis's order; `experiment (folder)` where it has several runs."""
    runs = list({run.path.resolve(): run for run in runs}.values())
    names = [read_results(run.results)["experiment"] for run in runs]
    common = os.path.commonpath([run.path.resolve().parent for run in runs])
    order, labelled = [*THESIS_ROWS, *names], {}
    for name, run in sorted(zip(names, runs, strict=True), key=lambda pair: order.index(pair[0])):
        folder = run.path.resolve().relative_to(common).as_posix()
        labelled[f"{name} ({folder})" if names.count(name) > 1 else name] = run
    return labelled


def _finished(folder: Path) -> list[RunFolder]:
    """The folder itself if it is a finished run, else the finished runs in it."""
    inner = map(RunFolder, sorted(folder.iterdir()) if folder.is_dir() else [])
    runs = [run for run in (RunFolder(folder), *inner) if run.is_finished]
    if not runs:
        raise InputError(f"{folder} holds no finished run (no results.json in it or just below)")
    return runs[:1] if runs[0].path == folder else runs


def _page(results: tables.Results, frames: Mapping, words: Mapping, coming: Sequence[str]) -> str:
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.PackageLoader("camvid_lang.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters |= {"png": lambda chart: _data_uri("png", chart.png(130)), "image": _image}
    samples: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the first few frames with labels
    for data in frames.values():
        for name, image, label in zip(data.names, data.images, data.labels, strict=True):
            samples.setdefault(name, (np.moveaxis(image, 0, -1), label))
    samples = dict([*samples.items()][:SAMPLES])
    values = {"runs": results, "frames": frames, "samples": samples, "words": words}
    values |= {"figures": figures, "tables": tables, "evaluation": evaluation}
    return environment.get_template("report.html.j2").render(values, coming=coming)


def _image(pixels: np.ndarray, kind: str = "png") -> str:
    """An image (H, W, 3) as a data URI; a PNG has few colours."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if kind == "jpeg":
        image.thumbnail((WIDTH, image.height))
        image.save(buffer, kind, quality=82)
    else:
        image.thumbnail((WIDTH, image.height), Image.Resampling.NEAREST)
        image.quantize(16).save(buffer, kind, optimize=True)
    return _data_uri(kind, buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
