"""From folders of finished runs to one self-contained HTML page, without scripts.

Jinja escapes everything from outside. The text of the page is in `report.html.j2`.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from camvid_lang.data.classes import CLASSES, NUM_CLASSES
from camvid_lang.errors import InputError
from camvid_lang.evaluation import ABSENT_CLASS_RULE
from camvid_lang.report import figures, tables
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import (
    SAMPLES,
    FigureData,
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
) -> Path:
    """Write one page on finished runs, and return its path; nothing is computed again.

    Args:
        folders: folders of runs, or folders that hold such folders, like a demo's.
        page: where to write; `report.html` in the first folder by default.
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
    with atomic_write(page) as file:
        file.write(_page(results, frames, words).encode(errors="backslashreplace"))
    if json_file:
        added = {name: {"vocabulary": found} for name, found in words.items()}
        write_json(json_file, {name: r | added.get(name, {}) for name, r in results.items()})
    return page


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


def _page(
    results: tables.Results, frames: Mapping[str, FigureData], words: Mapping[str, Mapping]
) -> str:
    best = tables.best_language(results) or next(iter(results))
    asked = best if best in words else next(iter(words), None)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camvid_lang.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda figure: _data_uri("png", figure.png(dpi=130))
    model = results[best]["settings"].get("model", "clip-upsampler")
    return environment.get_template("report.html.j2").render(
        tables=tables,
        figures=figures,
        thesis=THESIS_ROWS,
        comparable=any(map(tables.is_camvid, results.values())),
        absent_class_rule=ABSENT_CLASS_RULE,
        runs=results,
        words=words,
        best=best,
        asked=asked,
        charts=_charts(results, best, frames, words.get(asked)),
        frames=_frames(frames),
        architecture=figures.architecture(model, results[best]),
    )


def _charts(
    results: tables.Results, best: str, frames: Mapping[str, FigureData], vocabulary: Mapping | None
) -> dict[str, figures.Canvas | None]:
    """Charts of scores, training, the classes' texts and other words; None without data."""
    charts = dict.fromkeys(("miou", "confusion", "training", "similarities", "words"))
    miou, iou = ({name: r[key] for name, r in results.items()} for key in ("miou", "iou"))
    if len(results) > 1:
        camvid = [name for name, r in results.items() if tables.is_camvid(r)]
        thesis = {name: THESIS_ROWS[name]["miou"] for name in camvid if name in THESIS_ROWS}
        charts["miou"] = figures.miou_bars(miou, thesis)
    charts["iou"] = figures.class_matrix(iou, "swiftnet" if "swiftnet" in iou else best)
    if counts := results[best]["confusion"]:
        counts = np.array(counts)[:NUM_CLASSES, :NUM_CLASSES]
        charts["confusion"] = figures.confusion(counts, f"{best}: confusion")
    if histories := {name: r["history"] for name, r in results.items() if r["history"]}:
        charts["training"] = figures.curves(histories)
    if cosines := next((data.similarities for data in frames.values() if data.similarities), None):
        charts["similarities"] = figures.similarity_matrices(cosines)
    if vocabulary:
        iou = {name: row["anchored"]["iou"] for name, row in vocabulary["wordings"].items()}
        apart = {n: row for n, row in iou.items() if row.keys() == {*CLASSES}}  # not merged
        charts["words"] = figures.class_matrix(apart, "own")
    return charts


def _frames(runs: Mapping[str, FigureData]) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """The first few frames: {name: [(caption, {title: image as a data URI})]}.

    First frame and label, then each run's prediction and errors; {} for a run without the frame.
    """
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for data in runs.values():
        for name, image, label in zip(data.names, data.images, data.labels, strict=True):
            shown.setdefault(name, (np.moveaxis(image, 0, -1), label))
    found = {}
    for name, (image, label) in list(shown.items())[:SAMPLES]:
        images = {"frame": _image(image, "jpeg"), "label": _image(figures.colour_labels(label))}
        found[name] = [("frame and label", images)]
        for run, data in runs.items():
            caption, images = run, {}
            if (predicted := figures.prediction(data, name, label)) is not None:
                share, errors = figures.errors(label, predicted)
                drawn = {"prediction": figures.colour_labels(predicted), "errors": errors}
                images = {title: _image(pixels) for title, pixels in drawn.items()}
                caption = f"{run}: {share}"
            found[name].append((caption, images))
    return found


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
