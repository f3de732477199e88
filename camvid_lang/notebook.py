"""Curves of a run, drawn in a notebook while it learns.

What a notebook's form chose, and what the notebooks do with it: run, read back, compare.

How a notebook starts: where it runs, the data, the drive, errors in its own words.

Every choice of a notebook's form can be replaced by an environment variable, which is how the
notebooks are tested: CAMVID_LANG_PROFILE, CAMVID_LANG_DATA, CAMVID_LANG_DRIVE, CAMVID_LANG_RESUME,
CAMVID_LANG_SETTINGS (as in "epochs=2, batch_size=4") and CAMVID_LANG_WORK (where data and runs go).

The panel of notebook 06: a picture, any phrases, and where each phrase fits.

It uses what ipywidgets 7 and 8 share. Without widgets, `ask` shows the same for one call."""

import html
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from camvid_lang.data.camvid import Frames, load_camvid, read_image
from camvid_lang.data.download import fetch
from camvid_lang.demo import demo_settings
from camvid_lang.device import pick_device
from camvid_lang.errors import InputError
from camvid_lang.experiments import PROFILES, Experiment, configure
from camvid_lang.report.figures import curves, heat_maps, overlay, to_png
from camvid_lang.report.tables import banner, encoder_note, measured_on, tables, to_compact_markdown
from camvid_lang.report.thesis import THESIS_ROWS
from camvid_lang.results import read_results
from camvid_lang.run import run
from camvid_lang.scenes.dataset import write_scenes
from camvid_lang.segmenter import Segmenter
from camvid_lang.training.loop import Interrupted
from camvid_lang.training.mirror import Mirror

__all__ = [
    "LiveCurves",
    "Session",
    "ask",
    "describe",
    "in_colab",
    "one_line_errors",
    "panel",
    "similar",
    "start",
    "uploaded",
]


class LiveCurves:
    """Loss and mIoU of a run, drawn in place while it learns; at most every few seconds.

    Attributes:
        drawn: whether anything has been.
    """

    def __init__(self, name: str, seconds: float = 10.0):
        from IPython.display import HTML, display

        self.name, self.seconds, self.drawn = name, seconds, False
        self._last = -np.inf
        self._handle = display(HTML(""), display_id=True)  # its place is above the progress bar

    def update(self, history: list[dict], now: bool = False) -> None:
        """Draw the history so far; given to `runs.run` as `on_epoch`."""
        if not now and time.monotonic() - self._last < self.seconds:
            return
        if self._handle is not None:  # None outside a notebook
            self._handle.update(curves({self.name: history}, f"{self.name} while learning"))
        self.drawn, self._last = True, time.monotonic()


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
        return load_camvid(self.data, split, limit or (8 if self.profile == "smoke" else None))


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


SMOKE_SCENES = {"counts": {"train": 12, "val": 4, "test": 6}, "size": (96, 128)}
DRIVE_FOLDER = "camvid-lang"  # within My Drive


def in_colab() -> bool:
    """Whether this is Google Colab."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


# What a message to the command line's users is called in a notebook.
NOTEBOOK_WORDS = {
    "choose another --out, or start afresh with --fresh": "change SETTINGS back, or untick RESUME "
    "to delete the runs of this notebook and start over",
    "start afresh with --fresh": "untick RESUME to start over",
    "start over with --fresh": "untick RESUME to start over",
    "--weights FILE": "weights=FILE in SETTINGS",
    "--data": "DATA",
    "--set ": "SETTINGS ",
    "choose another --out": "change SETTINGS back",
}


def in_notebook_words(text: object) -> str:
    """A message with the form's choices in place of the command line's options."""
    told = str(text)
    for option, choice in NOTEBOOK_WORDS.items():
        told = told.replace(option, choice)
    return told


def one_line_errors() -> None:
    """Have a notebook tell an `InputError` in one line; the cell still counts as failed."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return

    def tell(_shell, _kind, error, _traceback, tb_offset=None):
        stopped = isinstance(error, Interrupted)  # no error: it was asked for
        told = f"{'stopped' if stopped else 'error'}: {in_notebook_words(error)}"
        print(told, file=sys.stderr)
        return [told]

    shell.set_custom_exc((InputError, Interrupted), tell)


def start(
    profile: str = "auto",
    data: str = "camvid",
    drive: bool | str = False,
    resume: bool = True,
    settings: str = "",
) -> Session:
    """Prepare a notebook: data on the local disk, Drive mounted if asked.

    Args:
        profile: `thesis`, `cpu`, `smoke`, or `auto`: thesis with a GPU, else cpu.
        data: `camvid` (downloaded once), `scenes` (drawn here, no download), or a folder.
        drive: True mounts Google Drive in Colab; a text is any folder that serves as a drive.
        resume: False starts every run over.
        settings: single settings as in "epochs=10, batch_size=4".

    Raises:
        InputError: data that cannot be had, or settings that are no settings.
    """
    one_line_errors()
    given = os.environ.get
    profile = given("CAMVID_LANG_PROFILE", profile)
    data = given("CAMVID_LANG_DATA", data)
    drive = _truth(given("CAMVID_LANG_DRIVE", drive))
    resume = _truth(given("CAMVID_LANG_RESUME", resume)) is not False
    chosen = _settings(given("CAMVID_LANG_SETTINGS", settings))
    work = Path(given("CAMVID_LANG_WORK", "") or _work_folder())
    if profile == "auto":
        profile = "thesis" if pick_device().type == "cuda" else "cpu"
    configure("frozen-names", profile, chosen)  # what is wrong is told before a download
    root = _drive_folder(drive)
    local = _data_folder(data, profile, work)
    label = f"{data if data in ('camvid', 'scenes') else local.name}-{profile}"
    session = Session(
        profile=profile,
        data=local,
        runs=work / "runs" / label,
        drive=root / label if root else None,
        resume=resume,
        settings=chosen,
        drawn=data == "scenes",
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"profile {profile} on {device}; data {local}; runs {session.runs}")
    print(f"mirrored to {session.drive}" if session.drive else "not mirrored to a drive")
    if others := session.elsewhere():
        print(f"note: {others}")
    return session


def _truth(value: object) -> bool | str:
    words = {"true": True, "1": True, "false": False, "0": False, "": False}
    return words.get(str(value).strip().lower(), str(value).strip())


def _settings(text: str) -> dict[str, str]:
    chosen = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"setting '{entry}': write it as key=value, as in epochs=10")
        chosen[key.strip()] = value.strip()
    return chosen


def _work_folder() -> Path:
    here = Path.cwd()
    return here.parent if here.name == "notebooks" else here


def _drive_folder(drive: bool | str) -> Path | None:
    """The folder for runs on Drive, mounted if need be; None where no drive is wanted."""
    if drive is False:
        return None
    if isinstance(drive, str):
        root = Path(drive).expanduser()
    elif in_colab():
        from google.colab import drive as google_drive

        mount = Path.cwd() / "drive"
        google_drive.mount(str(mount))
        root = mount / "MyDrive" / DRIVE_FOLDER
    else:
        print("note: DRIVE asks for Google Colab; give a folder instead to mirror to it")
        return None
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"drive {root} cannot be written to ({error.strerror})") from error
    return root


def _data_folder(data: str, profile: str, work: Path) -> Path:
    """The data set on the local disk."""
    if data == "scenes":
        small = SMOKE_SCENES if profile == "smoke" else {}
        name = "scenes-smoke" if small else "scenes"
        return write_scenes(work / "data" / name, **small)
    if data == "camvid":
        fetch(work / "data" / "camvid")
        return work / "data" / "camvid"
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise InputError(f"DATA '{data}' is no folder, and neither camvid nor scenes")
    if "drive" in folder.resolve().parts and in_colab():
        # Thousands of small reads from Drive stall; one copy does not.
        local = work / "data" / folder.name
        if not local.is_dir():
            part = local.with_name(f"{local.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder, part)
            part.rename(local)
        return local
    return folder


EXAMPLE = "road, vehicle, tree, building, sky, person"


def ask(words: Segmenter, image: np.ndarray, text: str) -> tuple:
    """Segment a picture by phrases.

    Args:
        image: (H, W, 3) uint8.
        text: phrases, see `models.text.parse_classes`.

    Returns:
        Two figures: the segmentation with its legend, and one heat map per phrase, of its
        probability among the phrases (of its cosine, if it is alone).

    Raises:
        InputError: phrases that cannot be read or embedded.
    """
    result, cosines = words.segment(image, text), words.cosines(image, text)
    return overlay(result.image, result.ids, result.classes, result.colours), heat_maps(
        result.image, cosines, result.classes, words.temperature
    )


def uploaded(value: object) -> tuple[str, bytes] | None:
    """Name and content of the newest file of a FileUpload, in ipywidgets 7 or 8; None if empty."""
    if not value:
        return None
    if isinstance(value, Mapping):  # 7: {name: {"metadata": ..., "content": bytes}}
        name, entry = list(value.items())[-1]
    else:  # 8: ({"name": ..., "content": memoryview}, ...)
        entry = value[-1]
        name = entry["name"]
    return name, bytes(entry["content"])


def read_upload(name: str, content: bytes) -> np.ndarray:
    """The picture (H, W, 3) uint8 in an uploaded file.

    Raises:
        InputError: no picture.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{Path(name).suffix}"
        path.write_bytes(content)
        try:
            return read_image(path, upright=True)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None


def panel(words: Segmenter, pictures: Mapping[str, np.ndarray], text: str = EXAMPLE) -> object:
    """A widget to choose or upload a picture and to type phrases.

    Args:
        pictures: {name: (H, W, 3) uint8} to choose from, at least one.
        text: the phrases to begin with.

    Returns:
        The widget, to be shown as a cell's last line; None (and the result of the first picture
        shown) where ipywidgets is absent.
    """
    first = next(iter(pictures))
    try:
        import ipywidgets
    except ImportError:
        from IPython.display import display

        print("note: ipywidgets is absent: call ask(words, picture, phrases) for other words")
        for figure in ask(words, pictures[first], text):
            display(figure)
        return None

    wide = ipywidgets.Layout(width="640px")
    choice = ipywidgets.Dropdown(options=list(pictures), value=first, description="picture")
    upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="or upload")
    phrases = ipywidgets.Textarea(value=text, description="phrases", layout=wide)
    button = ipywidgets.Button(description="segment", button_style="primary")
    told = ipywidgets.HTML()
    result, maps = (ipywidgets.Image(format="png", layout={"max_width": "960px"}) for _ in "12")

    shown = {"image": pictures[first]}  # whichever was chosen or uploaded last

    def show(_: object = None) -> None:
        told.value = "…"
        try:
            figures = ask(words, shown["image"], phrases.value)
        except InputError as error:
            told.value = f"<b>{html.escape(str(error))}</b>"
            return
        for widget, figure in zip((result, maps), figures, strict=True):
            widget.value = to_png(figure)
        told.value = ""

    def choose(_: object) -> None:
        shown["image"] = pictures[choice.value]
        show()

    def receive(_: object) -> None:
        sent = uploaded(upload.value)
        if sent is None:
            return
        try:
            shown["image"] = read_upload(*sent)
        except InputError as error:
            told.value = f"<b>{html.escape(str(error))}</b>"
            return
        show()

    button.on_click(show)
    choice.observe(choose, names="value")
    upload.observe(receive, names="value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([choice, upload]), phrases, button, told, result, maps])


def similar(words: Segmenter, new: Sequence[str]) -> str:
    """A Markdown table: for each new phrase the three classes whose embeddings lie nearest."""
    lines = ["| phrase | nearest of the run's classes (cosine) |", "|---|---|"]
    for phrase, cosines in zip(new, words.similarity(new), strict=True):
        near = sorted(zip(cosines, words.classes, strict=True), reverse=True)
        lines.append(f"| {phrase} | " + ", ".join(f"{n} ({c:.2f})" for c, n in near[:3]) + " |")
    return "\n".join(lines)
