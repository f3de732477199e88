"""Tables 7.1 to 7.6 as data, measured scores next to the thesis's, and what was measured on.

The page and the notebooks show the same tables. Scores are in percent, differences in points
(measured minus published); None is a value that does not exist and is shown as a dash. `results` is
everywhere {name: what the run's results.json holds}, with the random baseline under "chance".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from camvid_lang.data.classes import CLASSES
from camvid_lang.evaluation import held_out_scores
from camvid_lang.models import RESNET18, THESIS_ENCODER, THESIS_WEIGHTS
from camvid_lang.report.thesis import TABLES, THESIS_ROWS, TITLES

CHANCE, DASH, MINUS = "chance", "–", "\N{MINUS SIGN}"
Results = Mapping[str, Mapping]


def is_camvid(result: Mapping) -> bool:
    """Whether a result is of all 233 test frames of CamVid, trained on no other frames than its."""
    data, settings = result["data"], result["settings"]
    tested_on, trained_on = settings.get("test_split", "test"), settings.get("train_split")
    whole = data["name"].lower() == "camvid" and data["complete"] is True
    return whole and tested_on == "test" and trained_on != "test" and not data.get("also")


def _is_thesis_encoder(result: Mapping) -> bool:
    """Whether a result's encoder and its weights are the thesis's (a ResNet-18 for SwiftNet)."""
    name, weights = result["encoder"]["name"], str(result["encoder"]["weights"])
    if result["experiment"] == "swiftnet":
        return name == RESNET18 and not weights.startswith("random")
    return name == THESIS_ENCODER and THESIS_WEIGHTS in weights


def _data_text(result: Mapping) -> str:
    frames, size = result["data"]["test_frames"], result["data"]["size"]
    pixels = " × ".join(map(str, size[::-1]))  # width first
    return f"{frames} test frames of {_data_name(result)}, {pixels} pixels"


def _data_name(result: Mapping) -> str:
    name = result["data"]["name"]
    return "drawn road scenes" if name == "scenes" else name


def _encoder_text(result: Mapping) -> str:
    encoder = result["encoder"]
    # Only the name of a weights file: its folder says nothing to a reader.
    weights, text = (Path(str(encoder[key])).name for key in ("weights", "text"))
    return f"{encoder['name']}, weights {weights}, text embeddings {text}"


def _runs(results: Results) -> Results:
    return {name: result for name, result in results.items() if name != CHANCE}


def measured_on(results: Results) -> str:
    """One sentence on data and encoders of the runs."""
    runs = _runs(results).values()
    if not runs:
        return "No run is finished: the tables show the thesis's numbers only."
    data, encoders = (
        "; ".join(dict.fromkeys(map(describe, runs))) for describe in (_data_text, _encoder_text)
    )
    trained = max(result["data"]["train_frames"] for result in runs)
    frames = f" ({trained} training frames)" if trained else ""
    return f"Measured on {data}{frames}. Encoder: {encoders}."


def banner(results: Results) -> str:
    """A warning if a run was not scored on CamVid's complete test split, else an empty text."""
    others = {name: r for name, r in _runs(results).items() if not is_camvid(r)}
    if not others:
        return ""
    names = sorted({_data_name(result) for result in others.values()})
    where = " and ".join("a copy or part of CamVid" if n.lower() == "camvid" else n for n in names)
    return (
        f"These are not CamVid results{_some_of(others, results)}: they were measured on {where} "
        "and cannot be compared with the thesis's."
    )


def encoder_note(results: Results) -> str:
    """A sentence naming the runs whose encoder is not the thesis's, else an empty text."""
    others = [name for name, r in _runs(results).items() if not _is_thesis_encoder(r)]
    if not others:
        return ""
    return (
        f"The thesis's encoder is another{_some_of(others, results)}: {THESIS_ENCODER} with the "
        f"weights {THESIS_WEIGHTS}, and ResNet-18 for SwiftNet."
    )


def _some_of(names: Collection[str], results: Results) -> str:
    """The names in brackets; nothing for all runs."""
    return f" ({', '.join(names)})" if len(names) < len(_runs(results)) else ""


@dataclass(frozen=True)
class Table:
    """One table of scores; a row is its name, then for each group one value per part."""

    number: str  # the thesis's, "7.1"; empty for a table of our own
    title: str
    first: str  # heading of the first column
    groups: tuple[str, ...]
    parts: tuple[str, ...]  # of "measured", "thesis", "difference"
    rows: tuple[tuple, ...]

    @property
    def caption(self) -> str:
        """Number and title in one line."""
        return f"Table {self.number}: {self.title}" if self.number else self.title


def tables(results: Results) -> list[Table]:
    """Tables 7.1 to 7.6 with the rows that were measured, then those the thesis does not have.

    Without results they hold the thesis's numbers. Where no run was measured on CamVid there is
    nothing to compare, and only what was measured is shown; a run that was not has no difference.
    """
    comparable = not _runs(results) or any(map(is_camvid, _runs(results).values()))
    parts = ("measured", "thesis", "difference") if comparable else ("measured",)

    def cells(name: str, *keys: str) -> list[float | None]:
        measured, published = results.get(name), THESIS_ROWS[name]
        for key in keys:
            published = published[key]
            if measured is not None:
                measured = measured[key]
        difference = None
        if None not in (measured, published) and is_camvid(results[name]):
            # Of the values as shown, so that a reader's own subtraction agrees.
            difference = round(round(measured, 2) - round(published, 2), 2)
        return [measured, published, difference][: len(parts)]

    built = []
    for number, title, first, keys, layout in TABLES:
        names = {n: t for n, t in layout.items() if n in results or not _runs(results)}
        if not names:
            continue
        if keys == ("iou",):
            groups = tuple(names.values())
            rows = [(c, *(v for n in names for v in cells(n, "iou", c))) for c in CLASSES]
        else:
            groups = tuple(TITLES[key] for key in keys)
            rows = [(t, *(v for k in keys for v in cells(n, k))) for n, t in names.items()]
        built.append(Table(number, title, first, groups, parts, tuple(rows)))
    others = {name: result for name, result in results.items() if name not in THESIS_ROWS}
    if others:
        rows = [(name, *(result[key] for key in TITLES)) for name, result in others.items()]
        title, groups = "Measured here, not in the thesis", tuple(TITLES.values())
        built.append(Table("", title, "Run", groups, ("measured",), tuple(rows)))
    return built


def best_language(results: Results) -> str | None:
    """The run with language of the highest mIoU; None where there is none."""
    names = [n for n in _runs(results) if not n.startswith("swiftnet") and results[n]["miou"]]
    return max(names, key=lambda name: results[name]["miou"], default=None)


def findings(results: Results) -> list[str]:
    """What the results say, a few sentences; empty without scores."""
    found, best = [], best_language(results)
    if best is None:
        return found
    # Scores on other frames are not compared.
    frames = [results[best]["data"].get(key) for key in ("name", "digest", "test_frames")]
    same = [
        n
        for n, r in results.items()
        if [r["data"].get(k) for k in ("name", "digest", "test_frames")] == frames
    ]
    miou = {name: results[name]["miou"] for name in same if results[name]["miou"] is not None}
    if "swiftnet" in miou:
        points = miou[best] - miou["swiftnet"]
        epochs = [len(results[name]["history"]) for name in (best, "swiftnet")]
        unequal = "" if len({*epochs}) == 1 else " (trained for {} and {} epochs)".format(*epochs)
        than = f"{abs(points):.1f} points {'above' if points > 0 else 'below'} SwiftNet's"
        found.append(
            f"The best model with language is {best}: mIoU {miou[best]:.1f} %, {than} "
            f"{miou['swiftnet']:.1f} %, which is limited to its 11 classes{unequal}."
        )
    kinds = ("bilinear", "adapter", "frozen", "full")
    tops = {k: max((v for n, v in miou.items() if n.startswith(k)), default=None) for k in kinds}
    if None not in tops.values():
        found.append(
            f"CLIP's own map, upsampled, has {tops['bilinear']:.1f} %; with a trained adapter "
            f"{tops['adapter']:.1f} %, with a trained upsampler {tops['frozen']:.1f} %, and with "
            f"the encoder trained too {tops['full']:.1f} %."
        )
    pairs = [(k, miou[f"{k}-names"] - miou[f"{k}-descriptions"]) for k in kinds
             if {f"{k}-names", f"{k}-descriptions"} <= miou.keys()]  # fmt: skip
    if pairs:
        rounded = [(kind, round(points, 1) or 0.0) for kind, points in pairs]  # never -0.0
        texts = [f"{points:+.1f} points ({kind})".replace("-", MINUS) for kind, points in rounded]
        found.append(
            f"Names instead of descriptions of the classes change mIoU by {', '.join(texts)}."
        )
    iou = {name: value for name, value in results[best]["iou"].items() if value is not None}
    order = sorted(iou, key=iou.get)
    text = f"{best} finds {order[-1]} best (IoU {iou[order[-1]]:.1f} %) and {order[0]} worst "
    found.append(f"{text}({iou[order[0]]:.1f} %){_confused(results[best])}.")
    for name, result in results.items():
        for other, scored in result.get("also", {}).items():
            found.append(
                f"{name} was also trained on {other}, and has mIoU {shown(scored['miou'])} % there "
                f"over {len(scored['iou'])} classes."
            )
    return found


def _confused(result: Mapping) -> str:
    """The largest share of a class's pixels that another class takes, as a clause."""
    if not result["confusion"]:
        return ""
    counts = np.array(result["confusion"], dtype=float)[: len(CLASSES), : len(CLASSES)]
    share = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    np.fill_diagonal(share, 0)
    true, taken = np.unravel_index(share.argmax(), share.shape)
    what = f"of the pixels of {CLASSES[true]} are taken for {CLASSES[taken]}"
    return f"; most often confused: {share[true, taken]:.0f} % {what}"


def word_tables(measured: Mapping[str, Mapping], results: Results) -> list[Table]:
    """Scores with other words than a run was trained with.

    Args:
        measured: {run: what its vocabulary.json holds}.
        results: of the runs, for untrained ones (bilinear) as the bar of held-out classes.
    """
    wordings = {
        n: row["reason"] for found in measured.values() for n, row in found["wordings"].items()
    }
    ways = {"anchored": "through its classes", "cosine": "by cosine", "clip": "with CLIP's map"}
    columns = [
        (run, way) for run in measured for way in ways if way in measured[run]["wordings"]["own"]
    ]
    groups = tuple(f"{run}, {ways[way]}" for run, way in columns)
    rows = []
    for name, reason in wordings.items():
        found = [(measured[run]["wordings"].get(name), way) for run, way in columns]
        rows.append((f"{name}: {reason}", *(row and row[way]["miou"] for row, way in found)))
    built = []
    if rows:
        title = "mIoU where the classes are asked for in other words"
        built.append(Table("", title, "Words", groups, ("measured",), tuple(rows)))
    for held_out in dict.fromkeys(tuple(found["held_out"]) for found in measured.values()):
        if not held_out:
            continue
        runs = {n: f for n, f in measured.items() if tuple(f["held_out"]) == held_out}
        rows = [
            (f"{run}, {ways[way]}", *means.values())
            for run, found in runs.items()
            for way, means in found["held_out_scores"].items()
        ]
        bar, digest = results.get("bilinear-names"), next(iter(runs.values()))["digest"]
        if bar and bar["data"].get("digest") == digest:
            means = held_out_scores(bar["iou"], held_out)
            rows.append(("bilinear-names, untrained", *means.values()))
        title = f"Classes held out of training ({', '.join(held_out)}): mean IoU, and harmonic mean"
        groups = ("Trained classes", "Held-out classes", "Harmonic mean")
        built.append(Table("", title, "Run", groups, ("measured",), tuple(rows)))
    return built


def shown(value: float | None, part: str = "measured") -> str:
    """A table's value as text: two decimals, a difference with its sign, None as a dash.

    >>> shown(63.157), shown(-0.2, "difference")
    ('63.16', '−0.20')
    """
    if value is None:
        return DASH
    if part != "difference":
        return f"{value:.2f}"
    return "0.00" if round(value, 2) == 0 else f"{value:+.2f}".replace("-", MINUS)


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
