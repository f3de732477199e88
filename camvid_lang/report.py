"""One self-contained HTML page on a run or on all of them: tables, figures, frames, settings.

The page needs nothing but itself: styles are inline, pictures are data URIs, there is no script.
Everything that comes from outside (names, settings, notes) is escaped.
"""

import functools
import os
import tempfile
from html import escape
from importlib import resources
from pathlib import Path

from camvid_lang import figures, provenance
from camvid_lang.errors import InputError
from camvid_lang.metrics import ABSENT_CLASS_RULE
from camvid_lang.report_samples import Samples, data_uri, sample_section
from camvid_lang.tables import DASH, THESIS_NAMES, check_results, published, shown, tables
from camvid_lang.taxonomy import CLASSES

__all__ = ["Samples", "write_report"]

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

    css = resources.files("camvid_lang").joinpath("assets/report.css").read_text(encoding="utf-8")
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
