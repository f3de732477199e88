"""Tables 7.1 to 7.6 with measured scores next to the thesis's, for the page and the notebooks.

Scores are in percent, differences in points (measured minus published); None is a value that does
not exist. `results` maps an experiment to what its results.json holds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from camvid_lang.data.classes import CLASSES
from camvid_lang.report.thesis import TABLES, THESIS_ROWS, TITLES, TableLayout, family

DASH = "–"
Results = Mapping[str, Mapping]


def is_camvid(result: Mapping) -> bool:
    """Whether a result is of CamVid's 233 test frames, trained on trainval as the thesis's."""
    data, settings = result["data"], result["settings"]
    splits = [settings.get("test_split", "test"), settings.get("train_split", "trainval")]
    whole = data["name"].lower() == "camvid" and data["complete"] is True
    return whole and splits == ["test", "trainval"]


def _data_name(result: Mapping) -> str:
    name = result["data"]["name"]
    return "drawn road scenes" if name == "scenes" else name


def measured_on(results: Results) -> str:
    """One sentence on data and encoders of the runs."""
    data, encoders = {}, {}  # without repetition, in order
    for result in results.values():
        pixels = " × ".join(map(str, result["data"]["size"][::-1]))  # width first
        split = f"{result['data']['test_frames']} {result['settings'].get('test_split', 'test')}"
        data[f"{split} frames of {_data_name(result)}, {pixels} pixels"] = True
        # Without the folder of a weights file, which says nothing to a reader.
        weights, text = (Path(str(result["encoder"][key])).name for key in ("weights", "text"))
        encoders[f"{result['encoder']['name']}, weights {weights}, text embeddings {text}"] = True
    trained = sorted({result["data"]["train_frames"] for result in results.values()} - {0})
    frames = f" ({' or '.join(map(str, trained))} training frames)" if trained else ""
    return f"Measured on {'; '.join(data)}{frames}. Encoder: {'; '.join(encoders)}."


def banner(results: Results) -> str:
    """A warning if a run was not scored on CamVid's complete test split, else an empty text."""
    others = {name: _data_name(r) for name, r in results.items() if not is_camvid(r)}
    if not others:
        return ""
    camvid, no = "other splits, a copy or a part of CamVid", "cannot be compared with the thesis's"
    names = [camvid if name.lower() == "camvid" else name for name in sorted({*others.values()})]
    some = f" ({', '.join(others)})" if len(others) < len(results) else ""
    where = " and ".join(names)
    return f"These are not CamVid results{some}: they were measured on {where} and {no}."


class Table(NamedTuple):
    """One table of scores; a row is its name, then for each group one value per part."""

    number: str  # "7.1"; empty for a table that the thesis does not have
    title: str
    first: str  # heading of the first column
    groups: tuple[str, ...]
    parts: tuple[str, ...]  # of "measured", "thesis", "difference"
    rows: tuple[tuple, ...]
    short: tuple[str, ...] = ()  # names of `short_runs`, whose scores are not the best

    @property
    def caption(self) -> str:
        """Number and title in one line."""
        return f"Table {self.number}: {self.title}" if self.number else self.title


def experiment(name: str) -> str:
    """The experiment of a run, without its folder or seeds (`frozen-names (seed-1)`)."""
    return name.partition(" (")[0]


class Mean(float):
    """A mean over seeds; `each` has the values."""


def mean(values: Sequence) -> object:
    """The mean of different numbers, also in lists and mappings; else the first value."""
    first = values[0]
    if isinstance(first, Mapping):
        return {k: mean([v[k] for v in values]) for k in first if all(k in v for v in values)}
    if isinstance(first, list):
        return [*map(mean, zip(*values, strict=False))]
    if not all(isinstance(value, int | float) for value in values) or len({*values}) == 1:
        return None if any(value is None for value in values) else first
    found = Mean(sum(values) / len(values))
    found.each = values
    return found


def short_runs(results: Results) -> dict[str, str]:
    """{run: "3 epochs, others up to 30"}, where a run of the same part and data had more epochs."""
    runs, whole = [], "encoder and upsampler"
    for name, result in results.items():
        part = whole if result["settings"].get("train_encoder") else family(name)
        runs.append((f"{part}, {result['data']['name']}", len(result["history"]), name))
    most = {part: epochs for part, epochs, _ in sorted(runs)}
    return {n: f"{e} epochs, others up to {most[part]}" for part, e, n in runs if e < most[part]}


def fair_runs(results: Results, name: str) -> list[str]:
    """The other runs of the same frames and number of epochs, the best first."""
    data, epochs = ({n: r[key] for n, r in results.items()} for key in ("data", "history"))
    keys = "name", "digest", "train_digest"
    same = {n: (*map(data[n].get, keys), len(epochs[n])) for n in results}
    fair = [n for n in results if same[n] == same[name] and results[n]["miou"] is not None]
    return sorted((n for n in fair if n != name), key=lambda n: -results[n]["miou"])


def tables(results: Results) -> list[Table]:
    """Tables 7.1 to 7.6 with the rows that were measured, then those the thesis does not have.

    A run that was not measured on CamVid has no difference; without any that was, only what was
    measured is shown.
    """
    comparable = any(map(is_camvid, results.values()))
    short, built, runs = short_runs(results), [], {name: experiment(name) for name in results}

    def cells(name: str, *keys: str) -> list[float | None]:
        measured, difference = results[name], None
        published = THESIS_ROWS.get(runs[name], dict.fromkeys(keys))
        for key in keys:
            measured, published = measured[key], published[key]
        if None not in (measured, published) and is_camvid(results[name]):
            # Of the values as shown, so that a reader's subtraction agrees.
            difference = round(round(measured, 2) - round(published, 2), 2)
        return [measured, published, difference][: len(parts)]

    new = {row: row for row in runs.values() if row not in THESIS_ROWS}
    others = TableLayout("", "Measured here, not in the thesis", "Run", tuple(TITLES), new)
    for number, title, first, keys, layout in (*TABLES, others):
        parts = ("measured", "thesis", "difference")[: 3 if comparable and number else 1]
        names = {n: layout[row] + n.removeprefix(row) for n, row in runs.items() if row in layout}
        names |= {n: f"{names[n]} ({epochs})" for n, epochs in short.items() if n in names}
        if not names:
            continue
        if keys == ("iou",):
            groups = tuple(names.values())
            rows = [(c, *(v for n in names for v in cells(n, "iou", c))) for c in CLASSES]
        else:
            groups = tuple(TITLES[key] for key in keys)
            rows = [(t, *(v for k in keys for v in cells(n, k))) for n, t in names.items()]
        marked = tuple(names[n] for n in short if n in names)
        built.append(Table(number, title, first, groups, parts, tuple(rows), marked))
    return built


def best_language(results: Results) -> str | None:
    """The run with language of the highest mIoU, none of `short_runs`; None without one."""
    scored = [n for n, r in results.items() if r["miou"] is not None and family(n) != "swiftnet"]
    scored = [name for name in scored if name not in short_runs(results)]
    return max(scored, key=lambda name: results[name]["miou"], default=None)


def finding(results: Results) -> str:
    """Of one run its mIoU; of several the best with language, and SwiftNet if in `fair_runs`."""
    if len(results) == 1 and (miou := next(iter(results.values()))["miou"]) is not None:
        return f"mIoU {miou:.1f} %."
    if not (best := best_language(results)):
        return ""
    if len({r["data"].get("digest") for n, r in results.items() if family(n) != "swiftnet"}) > 1:
        return "The runs were measured on different frames, so none is called the best."
    miou = round(results[best]["miou"], 1)  # as shown, so that a reader's subtraction agrees
    sentence = f"The best language model is {best}: mIoU {miou:.1f} %"
    others = [n for n, r in results.items() if family(n) == "swiftnet" and r["miou"] is not None]
    if not (fair := [name for name in fair_runs(results, best) if name in others]):
        why = [short_runs(results).get(name, "other frames or epochs") for name in others]
        return f"{sentence}." + (f" SwiftNet is not compared ({why[0]})." if others else "")
    other = results[fair[0]]["miou"]
    points = miou - round(other, 1)
    side = "above" if points >= 0 else "below"
    return f"{sentence}, {abs(points):.1f} points {side} SwiftNet's {other:.1f} %."


def word_table(measured: Mapping[str, Mapping]) -> Table:
    """mIoU with other words than in training; `measured` maps a run to its vocabulary.json."""
    ways = {"anchored": "through its classes", "cosine": "by cosine", "clip": "with CLIP's map"}
    found = {run: content["wordings"] for run, content in measured.items()}
    columns = [(run, way) for run in found for way in ways if way in found[run]["own"]]
    reasons = {n: row["reason"] for wordings in found.values() for n, row in wordings.items()}
    rows = []
    for name, reason in reasons.items():
        cells = [(found[run].get(name), way) for run, way in columns]  # None: not measured
        rows.append((f"{name}: {reason}", *(row and row[way]["miou"] for row, way in cells)))
    title = "mIoU where the classes are asked for in other words"
    groups = tuple(f"{run}, {ways[way]}" for run, way in columns)
    return Table("", title, "Words", groups, ("measured",), tuple(rows))


def shown(value: float | None, part: str = "measured") -> str:
    """A table's value as text: two decimals, a difference with its sign, None as a dash.

    >>> shown(63.157), shown(-0.2, "difference")
    ('63.16', '−0.20')
    """
    if value is None:
        return DASH
    if part != "difference" or round(value, 2) == 0:
        return f"{abs(value):.2f}"
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown; a score's cell reads `measured / thesis (difference)`."""
    lines = [f"**{table.caption}**", "", "| " + " | ".join((table.first, *table.groups)) + " |"]
    lines.append("|---" + "|---:" * len(table.groups) + "|")
    for name, *values in table.rows:
        row = [name.replace("|", r"\|")]
        for start in range(0, len(values), len(table.parts)):
            group = zip(values[start : start + len(table.parts)], table.parts, strict=True)
            texts = [shown(v, p) for v, p in group if v is not None or p != "difference"]
            row.append(" / ".join(texts[:2]) + "".join(f" ({text})" for text in texts[2:]))
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
