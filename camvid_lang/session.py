"""What a notebook's form chose, and what the notebooks do with it: run, read back, compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from camvid_lang.data import Frames, load
from camvid_lang.demo import demo_settings
from camvid_lang.errors import InputError
from camvid_lang.experiments import PROFILES, THESIS_ROWS, Experiment, configure
from camvid_lang.live import LiveCurves
from camvid_lang.mirror import Mirror
from camvid_lang.provenance import banner, encoder_note, measured_on
from camvid_lang.results import read_results
from camvid_lang.runs import run
from camvid_lang.tables import tables, to_compact_markdown

__all__ = ["Session", "describe"]

# Which notebook runs what, by how the experiments' names begin.
NOTEBOOKS = {"02": ("bilinear", "adapter"), "03": ("frozen",), "04": ("full", "swiftnet")}


@dataclass(frozen=True)
class Session:
    """What the form chose: profile, data on the local disk, folders of runs here and on Drive."""

    profile: str
    data: Path
    runs: Path
    drive: Path | None
    resume: bool
    settings: Mapping[str, str]
    drawn: bool  # whether the data are drawn scenes

    def configure(self, name: str, **settings: object) -> Experiment:
        """The experiment under this session's profile; `settings` replace single ones."""
        # Drawn scenes are small, and what suits CamVid would take longer and learn less on them.
        suited = demo_settings(name) if self.drawn and self.profile == "cpu" else {}
        chosen = {} if name.startswith("bilinear") else self.settings  # which learns nothing
        return configure(name, self.profile, {**suited, **settings, **chosen})

    def run(self, name: str, show: bool = True, **settings: object) -> dict:
        """Run an experiment, go on with it, or read it back where it is finished.

        Args:
            show: draw loss and mIoU while it learns.

        Returns:
            What its `results.json` holds.
        """
        live = LiveCurves(name) if show else None
        experiment = self.configure(name, **settings)
        print(describe(experiment))
        results = run(
            experiment,
            self.data,
            self.runs / name,
            fresh=not self.resume,
            command=f"notebook, profile {self.profile}",
            mirror=self.drive / name if self.drive else None,
            on_epoch=live.update if live else None,
            keep_finished=True,
        )
        if live and live.drawn:
            live.update(results["history"], now=True)
        return results

    def finished(self) -> dict[str, dict]:
        """Results of all finished runs, by experiment, here or on Drive; nothing is run."""
        found = {}
        for name in (*THESIS_ROWS, "full-names"):
            # Where they lie: the weights beside them on Drive are fetched when they are asked for.
            for root in filter(None, (self.runs, self.drive)):
                if name not in found and (root / name / "results.json").is_file():
                    found[name] = read_results(root / name / "results.json")
        return found

    def missing(self) -> str:
        """Which of the thesis's runs are not finished, and the notebooks that run them."""
        absent = THESIS_ROWS.keys() - self.finished()
        lines = [
            f"not finished: {', '.join(names)} (notebook {number})"
            for number, kinds in NOTEBOOKS.items()
            if (names := [n for n in THESIS_ROWS if n in absent and n.startswith(kinds)])
        ]
        return "\n".join(lines) or "all of the thesis's runs are there"

    def comparable(self) -> bool:
        """Whether all finished runs were measured on CamVid's whole test split."""
        return not banner(self.finished())

    def published_iou(self) -> dict[str, dict[str, float]]:
        """The thesis's IoU of each class, by experiment; none beside what is not CamVid."""
        rows = THESIS_ROWS if self.comparable() else {}
        return {name: row["iou"] for name, row in rows.items() if "iou" in row}

    def elsewhere(self) -> str:
        """Which other profiles have finished runs on these data; empty if none has."""
        counts: dict[str, int] = {}
        for root in filter(None, (self.runs, self.drive)):
            for profile in PROFILES:
                label = f"{root.name.removesuffix(self.profile)}{profile}"
                found = len(list((root.parent / label).glob("*/results.json")))
                if profile != self.profile and found:
                    counts[profile] = max(found, counts.get(profile, 0))
        return "; ".join(
            f"{found} finished run(s) under profile {profile}: choose PROFILE = '{profile}'"
            for profile, found in counts.items()
        )

    def folder(self, name: str) -> Path:
        """A finished run's folder on the local disk, brought there from Drive if need be.

        Raises:
            InputError: the run is not finished.
        """
        folder = self.runs / name
        if not (folder / "results.json").is_file() and self.drive is not None:
            there = self.drive / name
            if (there / "results.json").is_file():
                Mirror(folder, there).restore()
        if not (folder / "results.json").is_file():
            raise InputError(f"{name} is not finished: run its cell, or its notebook, to the end")
        return folder

    def language_run(self, name: str = "auto") -> str:
        """The name of a finished run that knows language.

        Args:
            name: an experiment; `auto` is frozen-names if it is finished, as it learned words on a
                CLIP that kept its own, else the best by mIoU.

        Raises:
            InputError: there is none, or not that one.
        """
        results = {
            found: result["miou"] or 0
            for found, result in self.finished().items()
            if found != "swiftnet"
        }
        if not results:
            where = f"{self.runs} or {self.drive}" if self.drive else str(self.runs)
            raise InputError(f"no finished run in {where}: run notebook 02 or 03 first")
        if name == "auto":
            return "frozen-names" if "frozen-names" in results else max(results, key=results.get)
        if name not in results:
            raise InputError(f"RUN '{name}' is no finished run: choose {', '.join(results)}")
        return name

    def tables(self, *numbers: str) -> object:
        """The thesis's tables of these numbers ("7.1"), measured beside published, as Markdown."""
        from IPython.display import Markdown

        results = {"chance": None, "experiments": self.finished()}
        wanted = [
            to_compact_markdown(table, differences=self.comparable())
            for table in tables(results, THESIS_ROWS)
            if not numbers or table.number in numbers
        ]
        return Markdown("\n\n".join([self.protocol(), *wanted]))

    def protocol(self) -> str:
        """What stands in the tables' cells, and what was measured on."""
        finished = self.finished()
        difference = " (difference)" if self.comparable() else ""
        told = (
            f"Cells: **measured / thesis{difference}**, in %. {measured_on(finished)} Profile "
            f"`{self.profile}`. The thesis: CamVid's 233 test frames at 480x360. Void counts "
            "nowhere; one confusion matrix over the whole split."
        )
        return "\n\n".join(filter(None, (told, banner(finished), encoder_note(finished))))

    def frames(self, split: str = "test", limit: int | None = None) -> Frames:
        """A split of the data set in memory; under `smoke` at most 8 frames."""
        return load(self.data, split, limit or (8 if self.profile == "smoke" else None))


def describe(experiment: Experiment) -> str:
    """One line on what is about to be run: encoder, and how it learns."""
    told = f"{experiment.name}: encoder {experiment.encoder}"
    if not experiment.epochs:
        return f"{told}; nothing is learned"
    crop = f"crops of {experiment.crop}x{experiment.crop}" if experiment.crop else "whole frames"
    return (
        f"{told}, {'learning too' if experiment.train_encoder else 'frozen'}; "
        f"{experiment.epochs} epochs, batches of {experiment.batch_size} {crop}, "
        f"lr {experiment.lr:g}"
    )
