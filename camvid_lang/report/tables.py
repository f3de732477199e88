"""Tables 7.1 to 7.6 with measured scores next to the thesis's, for the page and the notebooks.

Scores are in percent, differences in points (measured minus published); None is a value that does
not exist. `results` maps an experiment to what its results.json holds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from camvid_lang.data.classes import CLASSES
from camvid_lang.report.thesis import TABLES, THESIS_ROWS, TITLES

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
    data, encoders, runs = {}, {}, results.values()  # without repetition, in order
    for result in runs:
        frames, size = result["data"]["test_frames"], result["data"]["size"]
        pixels = " × ".join(map(str, size[::-1]))  # width first
        split = result["settings"].get("test_split", "test")
        data[f"{frames} {split} frames of {_data_name(result)}, {pixels} pixels"] = True
        encoder = result["encoder"]
        # Without the folder of a weights file, which says nothing to a reader.
        weights, text = (Path(str(encoder[key])).name for key in ("weights", "text"))
        encoders[f"{encoder['name']}, weights {weights}, text embeddings {text}"] = True
    trained = sorted({result["data"]["train_frames"] for result in runs} - {0})
    frames = f" ({' or '.join(map(str, trained))} training frames)" if trained else ""
    return f"Measured on {'; '.join(data)}{frames}. Encoder: {'; '.join(encoders)}."


def banner(results: Results) -> str:
    """A warning if a run was not scored on CamVid's complete test split, else an empty text."""
    others = {name: _data_name(r) for name, r in results.items() if not is_camvid(r)}
    if not others:
        return ""
    names = sorted({*others.values()})
    camvid = "other splits, a copy or a part of CamVid"
    where = " and ".join(camvid if name.lower() == "camvid" else name for name in names)
    some = f" ({', '.join(others)})" if len(others) < len(results) else ""
    return (
        f"These are not CamVid results{some}: they were measured on {where} and cannot be compared "
        "with the thesis's."
    )


class Table(NamedTuple):
    """One table of scores; a row is its name, then for each group one value per part."""

    number: str  # "7.1"; empty for a table that the thesis does not have
    title: str
    first: str  # heading of the first column
    groups: tuple[str, ...]
    parts: tuple[str, ...]  # of "measured", "thesis", "difference"
    rows: tuple[tuple, ...]

    @property
    def caption(self) -> str:
        """Number and title in one line."""
        return f"Table {self.number}: {self.title}" if self.number else self.title


def _row(name: str) -> str:
    """The experiment of a run, without its folder (`frozen-names (seed-1)`)."""
    return name.partition(" (")[0]


def tables(results: Results) -> list[Table]:
    """Tables 7.1 to 7.6 with the rows that were measured, then those the thesis does not have.

    A run that was not measured on CamVid has no difference; without any that was, only what was
    measured is shown.
    """
    comparable = any(map(is_camvid, results.values()))
    parts = ("measured", "thesis", "difference") if comparable else ("measured",)

    def cells(name: str, *keys: str) -> list[float | None]:
        measured, difference = results[name], None
        published = THESIS_ROWS[_row(name)]
        for key in keys:
            measured, published = measured[key], published[key]
        if None not in (measured, published) and is_camvid(results[name]):
            # Of the values as shown, so that a reader's subtraction agrees.
            difference = round(round(measured, 2) - round(published, 2), 2)
        return [measured, published, difference][: len(parts)]

    built = []
    for number, title, first, keys, layout in TABLES:
        rows = [(name, _row(name)) for name in results if _row(name) in layout]
        names = {name: layout[row] + name.removeprefix(row) for name, row in rows}
        if not names:
            continue
        if keys == ("iou",):
            groups = tuple(names.values())
            rows = [(c, *(v for n in names for v in cells(n, "iou", c))) for c in CLASSES]
        else:
            groups = tuple(TITLES[key] for key in keys)
            rows = [(t, *(v for k in keys for v in cells(n, k))) for n, t in names.items()]
        built.append(Table(number, title, first, groups, parts, tuple(rows)))
    new = [name for name in results if _row(name) not in THESIS_ROWS]
    others = [(name, *(results[name][key] for key in TITLES)) for name in new]
    if others:
        title, groups = "Measured here, not in the thesis", tuple(TITLES.values())
        built.append(Table("", title, "Run", groups, ("measured",), tuple(others)))
    return built


def best_language(results: Results) -> str | None:
    """The run with language of the highest mIoU; None without one."""
    scored = [n for n, r in results.items() if r["miou"] is not None]
    scored = [name for name in scored if not name.startswith("swiftnet")]
    return max(scored, key=lambda name: results[name]["miou"], default=None)


def finding(results: Results) -> str:
    """The best language model and how it compares with SwiftNet; empty without scores.

    Of a single run its scores.
    """
    if len(results) == 1 and (miou := next(iter(results.values()))["miou"]) is not None:
        return f"mIoU {miou:.1f} %."
    if not (best := best_language(results)):
        return ""
    language = {r["data"].get("digest") for n, r in results.items() if n[:8] != "swiftnet"}
    if len(language) > 1:
        return "The runs were measured on different frames, so none is called the best."
    result, other = results[best], results.get("swiftnet")
    miou = round(result["miou"], 1)  # as shown, so that a reader's subtraction agrees
    sentence = f"The best language model is {best}: mIoU {miou:.1f} %"
    frames = [r and [r["data"].get(k) for k in ("name", "digest")] for r in (result, other)]
    if not other or other["miou"] is None or frames[0] != frames[1]:
        return f"{sentence}."
    points = miou - round(other["miou"], 1)
    epochs = [len(r["history"]) for r in (result, other)]
    unequal = "" if epochs[0] == epochs[1] else " (trained for {} and {} epochs)".format(*epochs)
    side = "above" if points >= 0 else "below"
    return f"{sentence}, {abs(points):.1f} points {side} SwiftNet's {other['miou']:.1f} %{unequal}."


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
