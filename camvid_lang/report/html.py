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

from camvid_lang.data.classes import CLASSES, NUM_CLASSES, PALETTE, VOID
from camvid_lang.errors import InputError
from camvid_lang.evaluation import ABSENT_CLASS_RULE
from camvid_lang.report import figures, tables
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import (
    VOCABULARY,
    FigureData,
    atomic_write,
    read_figures,
    read_results,
    read_vocabulary,
    write_results,
)

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
        json_file: also write {experiment: results} of all runs to this file, with
            vocabulary.json, if any, as "vocabulary".

    Returns:
        The page's path.

    Raises:
        InputError: a folder without a finished run, a damaged results.json, or two runs of one
            experiment.
    """
    found: dict[str, Path] = {}
    results: dict[str, dict] = {}
    for run in [run for folder in folders for run in _runs(Path(folder))]:
        result = read_results(run / "results.json")
        name = result["experiment"]
        if name in found:
            raise InputError(f"{found[name]} and {run} are both runs of {name!r}; give one of them")
        found[name], results[name] = run, result
    # The thesis's experiments in its order, then the others.
    order = sorted(found, key=[*THESIS_ROWS, *found].index)
    results = {name: results[name] for name in order}
    frames = {name: read_figures(found[name] / "figures.npz") for name in order}
    words = {name: read_vocabulary(found[name] / VOCABULARY) for name in order}
    for name in order:  # of other frames than the scores
        if words[name] and words[name]["digest"] != results[name]["data"].get("digest"):
            words[name] = None
    frames, words = ({n: data for n, data in some.items() if data} for some in (frames, words))
    text = _page(results, frames, words)
    page = Path(page or Path(folders[0]) / "report.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(page) as file:
        file.write(text.encode(errors="backslashreplace"))
    if json_file:
        asked = {name: {"vocabulary": found} for name, found in words.items()}
        write_results(json_file, {name: r | asked.get(name, {}) for name, r in results.items()})
    return page


def _runs(folder: Path) -> list[Path]:
    """The folder itself if it is a finished run, else the finished runs in it."""
    if (folder / "results.json").exists():
        return [folder]
    if runs := sorted(path.parent for path in folder.glob("*/results.json")):
        return runs
    raise InputError(f"{folder} holds no finished run (no results.json in it or just below)")


def _page(
    results: Mapping[str, Mapping],
    frames: Mapping[str, FigureData],
    words: Mapping[str, Mapping],
) -> str:
    runs = {name: result for name, result in results.items() if name != tables.CHANCE}
    camvid = {name for name, result in runs.items() if tables.is_camvid(result)}
    published = {name: row for name, row in THESIS_ROWS.items() if name in camvid}
    iou = {name: result["iou"] for name, result in runs.items()}
    miou = {name: result["miou"] for name, result in results.items()}
    cosines = next((data.similarities for data in frames.values() if data.similarities), None)
    histories = {name: result["history"] for name, result in runs.items() if result["history"]}
    best = tables.best_language(results) or next(iter(runs), None)
    counts = best and results[best]["confusion"]
    asked = best if best in words else next(iter(words), None)
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
        encoder_note=tables.encoder_note(results) if camvid else "",
        chance=tables.CHANCE in results,
        findings=tables.findings(results),
        tables=tables.tables(results)[: None if len(runs) > 1 else 1],
        words=tables.word_tables(words, results),
        asked=asked,
        comparable=bool(camvid),
        thesis=THESIS_ROWS,
        charts={
            "miou": len(runs) > 1
            and figures.miou_bars(miou, {name: row["miou"] for name, row in published.items()}),
            "iou": runs and figures.class_matrix(iou, "swiftnet" if "swiftnet" in runs else best),
            "confusion": counts
            and figures.confusion(
                np.array(counts)[:NUM_CLASSES, :NUM_CLASSES], f"{best}: confusion"
            ),
            "words": asked and _word_matrix(words[asked]["wordings"]),
            "similarities": cosines and figures.similarity_matrices(cosines),
            "training": histories and figures.curves(histories),
        },
        frames=_frames(frames),
        legend=figures.CAMVID_LEGEND,
        best=best,
        architecture=_architecture(results.get(best)),
        iou_venn=figures.Drawing("iou")._repr_svg_(),
        absent_class_rule=ABSENT_CLASS_RULE,
        runs=runs,
        dash=tables.DASH,
    )


def _word_matrix(wordings: Mapping[str, Mapping]) -> Figure:
    """IoU of each class under each wording that keeps the classes apart."""
    iou = {name: row["anchored"]["iou"] for name, row in wordings.items()}
    return figures.class_matrix(
        {n: row for n, row in iou.items() if row.keys() == {*CLASSES}}, "own"
    )


def _architecture(result: Mapping | None) -> str:
    """The drawing of a run's model with its numbers; the thesis's where there is none."""
    model = result["settings"].get("model", "clip-upsampler") if result else "clip-upsampler"
    known = result and "channels" in result["encoder"]
    return figures.architecture(model, result if known else None)._repr_svg_()


ERRORS = ((255, 255, 255), figures.OKABE_ITO[3], (0, 0, 0))  # right, wrong, void


def _frames(runs: Mapping[str, FigureData]) -> dict[str, tuple[str, list[dict]]]:
    """The first few frames: name -> (image as a data URI, label and predictions).

    Of label and predictions: name, classes and errors (transparent where right) as data URIs, None
    for a run that lacks the frame.
    """
    found: dict[str, tuple[str, list[dict]]] = {}
    for name in list(dict.fromkeys(name for data in runs.values() for name in data.names))[:FRAMES]:
        holder = next(data for data in runs.values() if name in data.names)
        index = holder.names.index(name)
        image, label = holder.images[index], holder.labels[index]
        shown = [{"name": "label", "classes": _image(label), "errors": None}]
        for run, data in runs.items():
            shown.append({"name": run, "classes": None, "errors": None})
            # Another data set may have a frame of this name.
            if name in data.names and np.array_equal(data.labels[data.names.index(name)], label):
                guess = data.predictions[data.names.index(name)]
                errors = np.where(label == VOID, 2, label != guess).astype(np.uint8)
                shown[-1] |= {"classes": _image(guess), "errors": _image(errors, ERRORS)}
        found[name] = (_image(np.moveaxis(image, 0, -1)), shown)
    return found


def _image(pixels: np.ndarray, colours: Sequence[figures.Colour] = PALETTE) -> str:
    """A frame (H, W, 3) as JPEG, ids (H, W) as PNG of these colours."""
    image = Image.fromarray(pixels)
    size = (min(WIDTH, image.width), max(1, round(image.height * min(1, WIDTH / image.width))))
    buffer = io.BytesIO()
    if image.mode == "RGB":
        image.resize(size).save(buffer, "JPEG", quality=82)
        return _data_uri("jpeg", buffer.getvalue())
    image = image.resize(size, Image.Resampling.NEAREST)
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(buffer, "PNG", optimize=True, **({"transparency": 0} if colours is ERRORS else {}))
    return _data_uri("png", buffer.getvalue())


def _chart(figure: Figure) -> str:
    return _data_uri("png", figures.to_png(figure, dpi=130))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    rough = f" ({minutes:.1f} min)" if minutes < 60 else f" ({minutes / 60:.1f} h)"
    return f"{seconds:.1f} s{rough if minutes >= 1 else ''}"
