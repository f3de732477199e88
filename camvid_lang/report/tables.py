"""In plain words: on what data, with which encoder and which settings a result was measured.

Tables 7.1 to 7.6 as data: measured scores beside the thesis's, and their difference.

The page, the notebooks and markdown all show these same tables. Scores are percent, differences
points (measured minus published); None is a value that does not exist and is shown as a dash."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from camvid_lang.data.classes import CLASSES
from camvid_lang.errors import InputError
from camvid_lang.models.encoder import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS

__all__ = [
    "DASH",
    "THESIS_NAMES",
    "Table",
    "banner",
    "check_results",
    "encoder_note",
    "is_camvid",
    "is_thesis_encoder",
    "measured_on",
    "published",
    "shown",
    "tables",
    "to_compact_markdown",
    "to_markdown",
]

TEST_FRAMES = 233


def is_camvid(result):
    """Whether a result was measured on all 233 test frames of CamVid."""
    data = result.get("data") or {}
    limited = bool((result.get("settings") or {}).get("limit"))
    named = str(data.get("name", "")).lower() == "camvid"
    return named and data.get("complete") is True and not limited


def is_thesis_encoder(name, result):
    """Whether the experiment `name` used the thesis's encoder with the thesis's weights.

    The thesis's SwiftNet stands on a ResNet-18 and has no language in it.
    """
    encoder = result.get("encoder") or {}
    weights = str(encoder.get("weights") or "")
    if name == "swiftnet":
        return encoder.get("name") == RESNET18 and not weights.startswith("random")
    return encoder.get("name") == THESIS_ENCODER and THESIS_WEIGHTS in weights


def _data_name(data):
    """The data set's name for a reader: `scenes.write_scenes` calls its own "scenes"."""
    return "drawn road scenes" if data.get("name") == "scenes" else str(data.get("name", ""))


def _data_text(result):
    data = result.get("data") or {}
    if not data:
        return "data that the result does not name"
    text = f"{data.get('test_frames', 'an unknown number of')} test frames of {_data_name(data)}"
    size = data.get("size") or ()
    if len(size) == 2:
        text += f", {size[1]} × {size[0]} pixels"
    return text


def _encoder_text(result):
    encoder = result.get("encoder") or {}
    if not encoder.get("name"):
        return "an encoder that the result does not name"
    text = str(encoder["name"])
    # The folder of a weights file says nothing to a reader and is somebody's home.
    for key, phrase in (("weights", "weights"), ("text", "text vectors")):
        if encoder.get(key):
            text += f", {phrase} {os.path.basename(str(encoder[key]))}"
    return text


def _grouped(experiments, describe):
    groups = {}
    for name, result in experiments.items():
        groups.setdefault(describe(result), []).append(name)
    # The largest group goes first and unnamed: the sentence stays short when one run differs.
    first, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    return first[0] + "".join(f" (but for {', '.join(names)}: {text})" for text, names in others)


def _which(names, experiments):
    """Some of the experiments in words, by those left out if that is shorter."""
    rest = [name for name in experiments if name not in names]
    return ", ".join(names) if len(names) <= len(rest) else f"all but {', '.join(rest)}"


def measured_on(experiments):
    """One plain sentence on data and encoder of {name: result}, grouped where they differ."""
    if not experiments:
        return "Nothing was measured: this page shows the thesis's numbers alone."
    # Baselines that learn nothing were given no frames to learn from, on the same data.
    learned = max((one.get("data") or {}).get("train_frames") or 0 for one in experiments.values())
    frames = f" ({learned} frames to learn from)" if learned else ""
    return (
        f"Measured on {_grouped(experiments, _data_text)}{frames}, "
        f"with the encoder {_grouped(experiments, _encoder_text)}."
    )


def banner(experiments):
    """A warning if some result is not from the complete CamVid test split, else an empty text."""
    others = {name: result for name, result in experiments.items() if not is_camvid(result)}
    if not others:
        return ""
    names = {_data_name(result.get("data") or {}) for result in others.values()}
    if {name.lower() for name in names} == {"camvid"}:
        why = "They were measured on a part of CamVid"
    else:
        why = f"They were measured on {', '.join(sorted(names - {''})) or 'data without a name'}"
    which = "" if len(others) == len(experiments) else f" ({_which(others, experiments)})"
    return (
        f"These are not CamVid figures{which}. {why}, not on CamVid's {TEST_FRAMES} test frames, "
        "so a difference from the thesis says nothing about the method."
    )


def encoder_note(experiments):
    """A sentence naming the experiments whose encoder is not the thesis's, else an empty text."""
    others = [name for name, result in experiments.items() if not is_thesis_encoder(name, result)]
    if not others:
        return ""
    which = (
        "" if len(others) == len(experiments) else f" This concerns {_which(others, experiments)}."
    )
    return (
        f"The thesis's numbers are for another encoder: {THESIS_ENCODER} with the weights "
        f"{THESIS_WEIGHTS} (and ResNet-18 for SwiftNet).{which}"
    )


DASH = "–"

THESIS_NAMES = (
    "bilinear-names",
    "bilinear-descriptions",
    "adapter-names",
    "adapter-descriptions",
    "frozen-names",
    "frozen-descriptions",
    "full-descriptions",
    "full-narrow-descriptions",
    "swiftnet",
)

TITLES = {
    "accuracy": "Accuracy",
    "mean_accuracy": "Mean accuracy",
    "miou_train": "mIoU (train)",
    "miou": "mIoU",
}
SHORT = ("accuracy", "mean_accuracy", "miou")
LONG = ("accuracy", "mean_accuracy", "miou_train", "miou")
TEXTS = "Text"
# Number, title, heading of the first column, scores, rows (experiment, name of the row).
LAYOUT = (
    (
        "7.1",
        "Bilinear baseline: the encoder's stride-32 map, enlarged ×32; nothing is learned",
        TEXTS,
        SHORT,
        {"bilinear-names": "Class names", "bilinear-descriptions": "Class descriptions"},
    ),
    (
        "7.2",
        "Adapter baseline: two learned 1×1 convolutions before the enlargement",
        TEXTS,
        SHORT,
        {"adapter-names": "Class names", "adapter-descriptions": "Class descriptions"},
    ),
    (
        "7.3",
        "Frozen encoder: only the upsampler learns (640 channels per pyramid level)",
        TEXTS,
        LONG,
        {"frozen-names": "Class names", "frozen-descriptions": "Class descriptions"},
    ),
    (
        "7.5",
        "Whole network learned, on class descriptions",
        "Spatial pyramid",
        LONG,
        {
            "full-descriptions": "640 channels per level",
            "full-narrow-descriptions": "160 channels per level",
        },
    ),
    (
        "7.6",
        "All approaches side by side",
        "Approach",
        SHORT,
        {
            "bilinear-descriptions": "Bilinear, descriptions",
            "adapter-descriptions": "Adapter, descriptions",
            "frozen-names": "Frozen encoder, names",
            "full-narrow-descriptions": "Narrow pyramid, descriptions",
            "swiftnet": "SwiftNet, single scale",
        },
    ),
)
BY_CLASS = {
    "frozen-names": "Frozen encoder, names",
    "full-narrow-descriptions": "Whole network, narrow, descriptions",
}


@dataclass(frozen=True)
class Table:
    """One table of scores.

    `number` is the thesis's ("7.1"; empty for a table of our own); `groups` are the scores' names,
    each of which has the columns `parts`; a row is its name, then one value (float or None) per
    column.
    """

    number: str
    title: str
    first: str
    groups: tuple[str, ...]
    rows: tuple[tuple, ...]
    parts: tuple[str, ...] = ("measured", "thesis", "difference")

    @property
    def columns(self):
        """The headings of all columns, flat, with units."""
        return (
            self.first,
            *(
                f"{group}, {part} ({'points' if part == 'difference' else '%'})"
                for group in self.groups
                for part in self.parts
            ),
        )

    @property
    def caption(self):
        """Number and title in one line."""
        return f"Table {self.number}: {self.title}" if self.number else self.title


def _score(value, where):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where} is {value!r}; a score is a number in percent, or null")
    return float(value) if math.isfinite(value) else None


def check_results(results):
    """`results` as (chance or None, {experiment: result}), or InputError naming what is wrong."""
    wrong = "results: expected {'chance': ..., 'experiments': {name: result}}"
    if not isinstance(results, Mapping) or not isinstance(results.get("experiments"), Mapping):
        raise InputError(f"{wrong}; there is no 'experiments' mapping")
    entries = dict(results["experiments"])
    if results.get("chance") is not None:
        entries = {"chance": results["chance"], **entries}
    for name, result in entries.items():
        if not isinstance(result, Mapping):
            raise InputError(f"{wrong}; {name!r} is not a mapping of scores")
        for key in LONG:
            _score(result.get(key), f"results: {key!r} of {name!r}")
        for kind in ("iou", "thesis", "settings", "data", "encoder", "versions"):
            if not isinstance(result.get(kind) or {}, Mapping):
                raise InputError(f"{wrong}; {kind!r} of {name!r} is not a mapping")
        for label, value in (result.get("iou") or {}).items():
            _score(value, f"results: the IoU of {label!r} of {name!r}")
    return results.get("chance"), dict(results["experiments"])


def _triple(measured, published):
    measured, published = _score(measured, "measured"), _score(published, "published")
    if measured is None or published is None:
        return measured, published, None
    # The difference of what is shown, so that a reader's own subtraction agrees.
    return measured, published, round(round(measured, 2) - round(published, 2), 2)


def published(name, experiments, thesis_rows=None):
    """The thesis's scores for an experiment: its result's, over those in `thesis_rows`, over {}."""
    own = (experiments.get(name) or {}).get("thesis") or {}
    return {**((thesis_rows or {}).get(name) or {}), **own}


def tables(results, thesis_rows=None):
    """Tables 7.1 to 7.6 in order, then the measured rows that the thesis does not have, if any.

    `results` is {"chance": scores or None, "experiments": {name: result}} as a run or the demo
    writes it; `thesis_rows` maps an experiment's name to its published scores, for rows that were
    not run. Raises InputError for results of another form.
    """
    chance, experiments = check_results(results)
    built = []
    for number, title, first, keys, names in LAYOUT:
        rows = []
        for name, text in names.items():
            ours, theirs = experiments.get(name, {}), published(name, experiments, thesis_rows)
            cells = [_triple(ours.get(key), theirs.get(key)) for key in keys]
            rows.append((text, *(value for cell in cells for value in cell)))
        built.append(Table(number, title, first, tuple(TITLES[key] for key in keys), tuple(rows)))
    rows = []
    for label in CLASSES:
        cells = []
        for name in BY_CLASS:
            ours, theirs = experiments.get(name, {}), published(name, experiments, thesis_rows)
            cells += _triple(
                (ours.get("iou") or {}).get(label), (theirs.get("iou") or {}).get(label)
            )
        rows.append((label, *cells))
    groups = tuple(BY_CLASS.values())
    by_class = Table("7.4", "IoU of each class", "Class", groups, tuple(rows))
    built.insert(3, by_class)

    others = {"Chance": chance} if chance else {}
    others.update((name, one) for name, one in experiments.items() if name not in THESIS_NAMES)
    if others:
        groups = tuple(TITLES[key] for key in LONG)
        rows = tuple(
            (name, *(_score(result.get(key), key) for key in LONG))
            for name, result in others.items()
        )
        title = "Measured here, not in the thesis"
        built.append(Table("", title, "Run", groups, rows, parts=("measured",)))
    return built


def shown(value, part="measured"):
    """A table's value as text: two decimals, a difference with its sign, None as a dash."""
    if value is None:
        return DASH
    if isinstance(value, str):
        return value
    if part != "difference":
        return f"{value:.2f}"
    return "0.00" if round(value, 2) == 0 else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def to_markdown(table):
    """The table in GitHub's markdown, with its caption above it."""
    parts = ("", *(part for _ in table.groups for part in table.parts))
    rows = [
        [shown(value, part) for value, part in zip(row, parts, strict=True)] for row in table.rows
    ]
    return _markdown(table.caption, table.columns, rows)


def to_compact_markdown(table, differences=True):
    """As `to_markdown`, a score's values in one cell: `measured / thesis (difference)`.

    `differences` False leaves them out: on other data than the thesis's they mean nothing.
    """
    rows, each = [], len(table.parts)
    for first, *values in table.rows:
        cells = []
        for start in range(0, len(values), each):
            texts = [
                shown(value, part)
                for value, part in zip(values[start : start + each], table.parts, strict=True)
            ]
            known = differences and each == 3 and texts[2] != DASH
            cells.append(" / ".join(texts[:2]) + (f" ({texts[2]})" if known else ""))
        rows.append([first, *cells])
    return _markdown(table.caption, (table.columns[0], *table.groups), rows)


def _markdown(caption, columns, rows):
    def clean(text):
        return str(text).replace("|", r"\|").replace("\n", " ")

    lines = [
        f"**{clean(caption)}**",
        "",
        "| " + " | ".join(clean(column) for column in columns) + " |",
        "|---" + "|---:" * (len(columns) - 1) + "|",
        *("| " + " | ".join(clean(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
