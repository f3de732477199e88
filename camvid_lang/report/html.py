"""From folders of finished runs to one HTML page that needs nothing but itself.

Styles are inline, images are data URIs, scripts are not used, and everything from outside (names,
settings) is escaped by Jinja. The text of the page is in `report.html.j2`.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from camvid_lang.data.classes import PALETTE
from camvid_lang.errors import InputError
from camvid_lang.evaluation import ABSENT_CLASS_RULE
from camvid_lang.report import figures, tables
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import FigureData, atomic_write, read_figures, read_results, write_results

__all__ = ["report_runs"]

FRAMES = 4  # test frames shown
WIDTH = 480  # pixels of a frame; a wider one is scaled down


def report_runs(
    folders: Sequence[str | Path],
    page: str | Path | None = None,
    json_file: str | Path | None = None,
) -> Path:
    """Write one page on finished runs; nothing is computed again.

    Args:
        folders: folders of runs, or folders that hold such folders, like a demo's.
        page: where to write; `report.html` in the first folder by default.
        json_file: also write {experiment: results} of all runs to this file.

    Returns:
        The page's path.

    Raises:
        InputError: a folder without a finished run, a damaged results.json, or two runs of one
            experiment.
    """
    found: dict[str, Path] = {}
    for run in [run for folder in folders for run in _runs(Path(folder))]:
        name = read_results(run / "results.json")["experiment"]
        if name in found:
            raise InputError(f"{found[name]} and {run} are both runs of {name!r}; give one of them")
        found[name] = run
    # The thesis's experiments in its order, then the others.
    order = sorted(found, key=[*THESIS_ROWS, *found].index)
    results = {name: read_results(found[name] / "results.json") for name in order}
    frames = {name: read_figures(found[name] / "figures.npz") for name in order}
    text = _page(results, {name: data for name, data in frames.items() if data})
    page = Path(page or Path(folders[0]) / "report.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(page) as file:
        file.write(text.encode(errors="backslashreplace"))
    if json_file:
        write_results(json_file, results)
    return page


def _runs(folder: Path) -> list[Path]:
    """The folder itself if it is a finished run, else the finished runs in it."""
    if (folder / "results.json").exists():
        return [folder]
    if runs := sorted(path.parent for path in folder.glob("*/results.json")):
        return runs
    raise InputError(f"{folder} holds no finished run (no results.json in it or just below)")


def _page(results: Mapping[str, Mapping], frames: Mapping[str, FigureData]) -> str:
    runs = {name: result for name, result in results.items() if name != tables.CHANCE}
    iou = {name: result["iou"] for name, result in runs.items()}
    camvid = {name for name, result in runs.items() if tables.is_camvid(result)}
    published = {n: row["iou"] for n, row in THESIS_ROWS.items() if n in camvid and "iou" in row}
    cosines = next((data.similarities for data in frames.values() if data.similarities), None)
    histories = {name: result["history"] for name, result in runs.items() if result["history"]}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("camvid_lang.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": tables.shown, "duration": _duration, "data_uri": _chart}
    return environment.get_template("report.html.j2").render(
        measured_on=tables.measured_on(results),
        banner=tables.banner(results),
        encoder_note=tables.encoder_note(results),
        chance=tables.CHANCE in results,
        tables=tables.tables(results),
        charts={
            "iou": runs and figures.class_bars(iou, published),
            "similarities": cosines and figures.similarity_matrices(cosines),
            "training": histories and figures.curves(histories),
        },
        frames=_frames(frames),
        legend=figures.CAMVID_LEGEND,
        architecture=figures.architecture()._repr_svg_(),
        iou_venn=figures.iou_venn()._repr_svg_(),
        absent_class_rule=ABSENT_CLASS_RULE,
        runs=runs,
        dash=tables.DASH,
    )


def _frames(runs: Mapping[str, FigureData]) -> dict[str, dict[str, str | None]]:
    """The first few frames: name -> {caption: image as a data URI, or None for a missing one}."""
    names = list(dict.fromkeys(name for data in runs.values() for name in data.names))[:FRAMES]
    rows: dict[str, dict[str, str | None]] = {name: {} for name in names}
    for name, row in rows.items():
        for run, data in runs.items():
            index = data.names.index(name) if name in data.names else None
            if index is not None and not row:
                row["frame"] = _image(np.moveaxis(data.images[index], 0, -1))
                row["label"] = _image(data.labels[index])
            row[run] = None if index is None else _image(data.predictions[index])
    return rows


def _image(pixels: np.ndarray) -> str:
    """A frame (H, W, 3) as JPEG, class ids (H, W) as PNG with CamVid's palette."""
    image = Image.fromarray(pixels)
    size = (min(WIDTH, image.width), max(1, round(image.height * min(1, WIDTH / image.width))))
    buffer = io.BytesIO()
    if image.mode == "RGB":
        image.resize(size).save(buffer, "JPEG", quality=82)
        return _data_uri("jpeg", buffer.getvalue())
    image = image.resize(size, Image.Resampling.NEAREST)
    image.putpalette([channel for colour in PALETTE for channel in colour])
    image.save(buffer, "PNG", optimize=True)
    return _data_uri("png", buffer.getvalue())


def _chart(figure: Figure) -> str:
    return _data_uri("png", figures.to_png(figure, dpi=130))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    rough = f" ({minutes:.1f} min)" if minutes < 60 else f" ({minutes / 60:.1f} h)"
    return f"{seconds:.1f} s{rough if minutes >= 1 else ''}"
