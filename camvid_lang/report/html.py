"""The report's sample frames as small pictures inside the page: frame, label, predictions.

One self-contained HTML page on a run or on all of them: tables, figures, frames, settings.

The page needs nothing but itself: styles are inline, pictures are data URIs, there is no script.
Everything that comes from outside (names, settings, notes) is escaped.

From folders of finished runs to one HTML page."""

import base64
import functools
import io
import json
import os
import tempfile
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from camvid_lang.data.classes import CLASSES, PALETTE
from camvid_lang.errors import InputError
from camvid_lang.evaluation import ABSENT_CLASS_RULE
from camvid_lang.report import figures
from camvid_lang.report import tables as provenance
from camvid_lang.report.figures import colour_labels, hexadecimal
from camvid_lang.report.tables import DASH, THESIS_NAMES, check_results, published, shown, tables
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_figures, read_results, what_is_wrong

__all__ = [
    "Samples",
    "data_uri",
    "report_runs",
    "sample_section",
    "write_report",
]

MAX_FRAMES = 4
# Bytes of sample pictures before they are made smaller; base64 adds a third.
PICTURE_BUDGET = 1_300_000


class Samples(NamedTuple):
    """A few frames with what one run predicted: uint8 arrays and the frames' names."""

    images: np.ndarray  # (n, 3, H, W), RGB 0..255
    labels: np.ndarray  # (n, H, W), ids 0..11
    predictions: np.ndarray  # (n, H, W), ids 0..10
    names: tuple[str, ...]  # n names, like "test/0001TP_008550"


def data_uri(data, kind):
    """Bytes of a picture as the address of an <img>; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _frame_picture(image, width):
    picture = Image.fromarray(np.moveaxis(np.asarray(image, dtype=np.uint8), 0, -1))
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue(), "jpeg"


def _label_picture(ids, width):
    ids = np.asarray(ids, dtype=np.uint8)
    colour_labels(ids)  # refuses an id that has no colour
    picture = Image.fromarray(ids)
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    picture.putpalette([channel for colour in PALETTE for channel in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), "png"


def _sample_rows(samples, width):
    """For each of the first few frames: its name and [(caption, picture or None), ...]."""
    first = {}
    for run in samples.values():
        for index, name in enumerate(run.names):
            first.setdefault(name, (run.images[index], run.labels[index]))
    rows = []
    for name, (image, label) in list(first.items())[:MAX_FRAMES]:
        pictures = [
            ("frame", _frame_picture(image, width)),
            ("label", _label_picture(label, width)),
        ]
        for title, run in samples.items():
            held = name in run.names
            guess = run.predictions[list(run.names).index(name)] if held else None
            pictures.append((title, _label_picture(guess, width) if held else None))
        rows.append((name, pictures))
    return rows


def sample_section(samples):
    """HTML for {experiment: Samples}: a legend, then the first few frames."""
    for width in (480, 360, 240, 160):
        rows = _sample_rows(samples, width)
        size = sum(len(picture[0]) for _, row in rows for _, picture in row if picture)
        if size <= PICTURE_BUDGET:
            break
    colours = zip((*CLASSES, "void"), PALETTE, strict=True)
    legend = "".join(
        f'<li><i style="background:{hexadecimal(colour)}"></i>{name}</li>'
        for name, colour in colours
    )
    parts = [f'<ul class="legend">{legend}</ul>']
    for name, pictures in rows:
        cells = []
        for caption, picture in pictures:
            alt = escape(f"{caption} of {name}")
            shape = '<div class="absent">–</div>'
            if picture:
                shape = f'<img src="{data_uri(*picture)}" alt="{alt}">'
            cells.append(f"<figure>{shape}<figcaption>{escape(caption)}</figcaption></figure>")
        parts.append(f'<h3>{escape(str(name))}</h3><div class="samples">{"".join(cells)}</div>')
    return "".join(parts)


ASKS = (
    "Semantic segmentation gives every pixel of a picture a class, such as road or pedestrian. "
    "The thesis (Naomi Kombol, bachelor thesis 1162, FER, University of Zagreb, 2023) asks whether "
    "language can do it: a network turns every pixel into a vector in the space where CLIP puts "
    "words, and the class whose words point most nearly the same way, by cosine similarity, wins. "
    "Such a network is not bound to the words it learned with, since “vehicle” lies close to "
    "“car”, and the question is what that costs on CamVid's road scenes against SwiftNet, an "
    "ordinary network for the same task."
)
# What is compared, by the beginning of the experiments' names.
APPROACHES = {
    "bilinear-*": "CLIP's coarse map of vectors, one for 32×32 pixels, enlarged to the picture's "
    "size. Nothing is learned.",
    "adapter-*": "Two small learned layers on that map, then enlarged; CLIP stays as it is.",
    "frozen-*": "The thesis's model: a learned upsampler climbs from the coarse map over three "
    "finer ones of the encoder to sharp outlines; CLIP stays as it is.",
    "full-*": "The same model, and CLIP's own layers learn too; “narrow” has a slimmer pyramid.",
    "swiftnet": "The yardstick: an ordinary segmenter with one output for each class and no words.",
}
TEXTS = (
    "A class is given to CLIP by its name (*-names, such as “car”) or by a description of a "
    "sentence or two (*-descriptions)."
)
SCORES = (
    "Accuracy is the share of right pixels; mean accuracy is the mean over the classes of the "
    "share of each class's pixels found; IoU is explained below, and mIoU is its mean over the 11 "
    "classes. All are percent; differences are points, measured minus published. A dash is a value "
    "that does not exist: a run that was not made, or a number the thesis does not give."
)
PROTOCOL = (
    "Void pixels, which nobody labelled, count nowhere: neither in the loss nor in any score. One "
    "confusion matrix is accumulated over the whole split and every score is computed from it; "
    "IoU is never averaged over frames. The means run over the 11 classes. " + ABSENT_CLASS_RULE
)
IOU = (
    "For one class, TP are the pixels that are of it and were predicted so, FP those predicted so "
    "that are not, FN those missed. Their counts give IoU = TP / (TP + FP + FN): what prediction "
    "and truth share, divided by all that either covers. It is 1 only if the two shapes are the "
    "same, and it does not reward painting everything with one large class."
)
ARCHITECTURE = (
    "The thesis's model, with its numbers of channels. The encoder is CLIP's, without its global "
    "pooling; pyramid and ladder bring its coarse map back to the picture's size; then each pixel "
    "is compared with each class's text. Other encoders have other numbers of channels."
)


def _figure(figure, alt, wide=True):
    data = data_uri(figures.to_png(figure, dpi=130), "png")
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    picture = f'<img src="{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return f'<div class="picture{" wide" if wide else ""}">{picture}</div>'


def _table(table):
    parts = table.parts
    span = len(parts)
    single = span == 1
    head = f'<tr><th scope="col" rowspan="{1 if single else 2}">{escape(table.first)}</th>'
    head += "".join(
        f'<th scope="col"{"" if single else f" colspan={chr(34)}{span}{chr(34)}"}>'
        f"{escape(group)} (%)</th>"
        for group in table.groups
    )
    head += "</tr>"
    if not single:
        cells = "".join(f'<th scope="col" class="{part}">{part}</th>' for part in parts)
        head += f"<tr>{cells * len(table.groups)}</tr>"
    labels = [(group, part) for group in table.groups for part in parts]
    body = ""
    for name, *values in table.rows:
        cells = "".join(
            f'<td class="{part}" data-group="{escape(group)}" data-label="{part}">'
            f"{shown(value, part)}</td>"
            for value, (group, part) in zip(values, labels, strict=True)
        )
        body += f'<tr><th scope="row">{escape(str(name))}</th>{cells}</tr>'
    key = f' id="table-{table.number}"' if table.number else ""
    even = " even" if len(labels) < 10 else ""
    return (
        f'<table class="scores{even}"{key}><caption>{escape(table.caption)}</caption>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table>"
    )


def _seconds(value):
    if not isinstance(value, (int, float)):
        return DASH
    minutes, hours = value / 60, value / 3600
    rough = f" ({hours:.1f} h)" if hours >= 1 else f" ({minutes:.1f} min)" if minutes >= 1 else ""
    return f"{value:.1f} s{rough}"


def _settings(name, result):
    rows = {"seconds": _seconds(result.get("seconds"))}
    if result.get("command"):
        rows["command"] = result["command"]
    for group in ("data", "encoder", "versions", "settings"):
        for key, value in (result.get(group) or {}).items():
            rows[key if group == "settings" else f"{group}: {key}"] = value
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th>'
        f"<td><code>{escape(DASH if value is None or value == '' else str(value))}</code></td></tr>"
        for key, value in rows.items()
    )
    return (
        f"<details><summary>{escape(str(name))}: settings, versions, time</summary>"
        f"<table><tbody>{body}</tbody></table></details>"
    )


@functools.cache
def _explanations():
    """The sections that are the same in every report."""
    model = _figure(figures.architecture("ladder"), "The encoder, the pyramid and the ladder")
    iou = _figure(figures.iou_venn(), "A predicted and a true shape with TP, FP and FN", False)
    return {
        "Model": f"<p>Figure 5.1. {ARCHITECTURE}</p>{model}",
        "What IoU is": f"<p>Figure 6.1. {IOU}</p>{iou}",
    }


def _page(results, samples, similarities, thesis_rows, title, note):
    _, experiments = check_results(results)
    ordered = [name for name in THESIS_NAMES if name in experiments]
    ordered += [name for name in experiments if name not in THESIS_NAMES]
    experiments = {name: experiments[name] for name in ordered}
    warning = provenance.banner(experiments)
    remark = provenance.encoder_note(experiments)
    sections = {}

    made = tables(results, thesis_rows)
    chance = " Chance guesses each pixel's class at random." if results.get("chance") else ""
    items = "".join(f"<li><code>{key}</code> {text}</li>" for key, text in APPROACHES.items())
    sections["Approaches"] = f"<ul>{items}</ul><p>{TEXTS}</p>"
    sections["Tables"] = f'<p class="quiet">{SCORES}{chance}</p>' + "".join(map(_table, made))

    scores = {name: one["iou"] for name, one in experiments.items() if one.get("iou")}
    if scores:
        theirs = {name: published(name, experiments, thesis_rows).get("iou") for name in scores}
        sections["Classes"] = _figure(figures.class_bars(scores, theirs), "IoU of each class")
    if samples:
        order = [name for name in ordered if name in samples]
        order += [name for name in samples if name not in order]
        sections["Frames"] = sample_section({name: samples[name] for name in order})
    if similarities:
        text = (
            "<p>Figure 7.1: how alike the classes' texts are to the text encoder. The less alike, "
            "the easier a pixel's vector is told to belong to one class and not to another.</p>"
        )
        names = CLASSES if len(next(iter(similarities.values()))) == len(CLASSES) else None
        names = names or [str(index) for index in range(len(next(iter(similarities.values()))))]
        drawing = figures.similarity_matrices(similarities, names)
        sections["Texts"] = text + _figure(drawing, "Cosine similarities of the classes' texts")
    histories = {name: one.get("history") for name, one in experiments.items()}
    if any(histories.values()):
        sections["Learning"] = _figure(figures.curves(histories), "Loss and mIoU by epoch")
    sections.update(_explanations())
    details = "".join(_settings(name, result) for name, result in experiments.items())
    sections["Protocol and settings"] = f"<p>{PROTOCOL}</p>{details}"

    css = resources.files("camvid_lang.report").joinpath("report.css").read_text(encoding="utf-8")
    keys = {name: name.lower().replace(" ", "-") for name in sections}
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{css}</style></head><body>",
            f"<header><h1>{escape(title)}</h1>",
            f'<p class="lead">{ASKS}</p>',
            f'<p class="source">{escape(provenance.measured_on(experiments))}</p>',
            f'<p class="banner"><strong>{escape(warning)}</strong></p>' if warning else "",
            f"<p>{escape(remark)}</p>" if remark else "",
            f"<p>{escape(note)}</p>" if note else "",
            "</header><nav>",
            " ".join(f'<a href="#{key}">{name}</a>' for name, key in keys.items()),
            "</nav><main>",
            "".join(
                f'<section id="{keys[name]}"><h2>{name}</h2>{body}</section>\n'
                for name, body in sections.items()
            ),
            "</main></body></html>\n",
        )
    )


def write_report(
    path,
    results,
    samples=None,
    similarities=None,
    thesis_rows=None,
    title="Semantic segmentation with language embeddings",
    note=None,
):
    """Write the page to `path` and return it as a Path; the file is complete or not there.

    `results` is {"chance": scores or None, "experiments": {name: result}}, scores in percent;
    `samples` maps an experiment's name to its `Samples`, of which the first few frames are shown;
    `similarities` maps a title ("Names", "Descriptions") to a matrix of cosine similarities;
    `thesis_rows` maps an experiment's name to its published scores, shown where a row was not run;
    `note` is a paragraph for the top. Raises InputError for results of another form, and for a
    path that cannot be written.
    """
    path = Path(path)
    page = _page(results, samples, similarities, thesis_rows, title, note)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(page)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def report_runs(folders: Sequence[str | Path], page: str | Path | None = None, json_file=None) -> Path:
    """Write the page of some runs; nothing is computed again.

    Args:
        folders: run folders, folders of runs, or a demo's folder.
        page: where to write; `report.html` in the first folder if not given.

    Raises:
        InputError: a folder without a finished run, or two runs of one experiment.
    """
    if not folders:
        raise InputError("no folder of a run is given")
    chance, found = None, {}
    for folder in map(Path, folders):
        chance = chance or _chance(folder)
        for run in _runs_below(folder):
            results = read_results(run / "results.json")
            name = results["experiment"]
            if name in found:
                raise InputError(f"{found[name][0]} and {run} are both runs of '{name}': give one")
            found[name] = (run, results)
    if json_file:
        import json

        runs = {name: results for name, (_, results) in found.items()}
        Path(json_file).write_text(json.dumps(runs))
    samples, similarities = {}, {}
    for name, (run, _) in found.items():
        data = read_figures(run / "figures.npz")
        if data is None:
            continue
        samples[name] = Samples(data.images, data.labels, data.predictions, data.names)
        similarities = similarities or data.similarities
    return write_report(
        page or Path(folders[0]) / "report.html",
        {"chance": chance, "experiments": {name: results for name, (_, results) in found.items()}},
        samples,
        similarities,
        THESIS_ROWS,
    )


def _runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it."""
    if (folder / "figures.npz").exists() or (folder / "checkpoints").exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("*/results.json"))
    if not runs and (folder / "results.json").exists():
        return [folder]
    if not runs:
        raise InputError(f"{folder} holds no finished run (no results.json in it or just below)")
    return runs


def _chance(folder: Path) -> dict | None:
    """The chance row that a demo keeps beside its runs."""
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        chance = found.get("chance")
        usable = isinstance(chance, dict) and not what_is_wrong(
            {**chance, "experiment": "chance", "settings": {}}
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return chance if usable else None
