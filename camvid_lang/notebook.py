"""What the notebooks share: where they run, the data, the drive, runs that go on, tables.

Every choice of a notebook's form can be replaced by an environment variable, which is how the
notebooks are tested: CAMVID_LANG_PROFILE, CAMVID_LANG_DATA, CAMVID_LANG_DRIVE, CAMVID_LANG_RESUME,
CAMVID_LANG_SETTINGS (as in "epochs=2, batch_size=4") and CAMVID_LANG_WORK (where data and runs go).
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from camvid_lang.data import Frames, load
from camvid_lang.demo import demo_settings
from camvid_lang.devices import pick_device
from camvid_lang.download import fetch
from camvid_lang.errors import InputError
from camvid_lang.experiments import THESIS_ROWS, Experiment, configure
from camvid_lang.live import LiveCurves
from camvid_lang.mirror import Mirror
from camvid_lang.results import read_results
from camvid_lang.runs import run
from camvid_lang.scenes import write_scenes
from camvid_lang.tables import tables, to_compact_markdown

__all__ = ["Session", "in_colab", "one_line_errors", "start"]

SMOKE_SCENES = {"counts": {"train": 12, "val": 4, "test": 6}, "size": (96, 128)}
DRIVE_FOLDER = "camvid-lang"  # within My Drive
# Which notebook runs what, by how the experiments' names begin.
NOTEBOOKS = {"02": ("bilinear", "adapter"), "03": ("frozen",), "04": ("full", "swiftnet")}


def in_colab() -> bool:
    """Whether this is Google Colab."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def one_line_errors() -> None:
    """Have a notebook tell an `InputError` in one line; the cell still counts as failed."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return

    def tell(_shell, _kind, error, _traceback, tb_offset=None):
        print(f"error: {error}", file=sys.stderr)
        return [f"error: {error}"]

    shell.set_custom_exc((InputError,), tell)


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
        results = run(
            self.configure(name, **settings),
            self.data,
            self.runs / name,
            fresh=not self.resume,
            command=f"notebook, profile {self.profile}",
            mirror=self.drive / name if self.drive else None,
            on_epoch=live.update if live else None,
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

    def published_iou(self) -> dict[str, dict[str, float]]:
        """The thesis's IoU of each class, by experiment; none beside drawn scenes."""
        rows = {} if self.drawn else THESIS_ROWS
        return {name: row["iou"] for name, row in rows.items() if "iou" in row}

    def folder(self, name: str) -> Path | None:
        """A finished run's folder on the local disk, brought there from Drive if need be."""
        folder = self.runs / name
        if not (folder / "results.json").is_file() and self.drive is not None:
            there = self.drive / name
            if (there / "results.json").is_file():
                Mirror(folder, there).restore()
        return folder if (folder / "results.json").is_file() else None

    def any_language_run(self) -> str:
        """The name of a finished run that knows language; the best by mIoU.

        Raises:
            InputError: there is none.
        """
        results = {
            name: result["miou"] or 0
            for name, result in self.finished().items()
            if name != "swiftnet"
        }
        if not results:
            where = f"{self.runs} or {self.drive}" if self.drive else str(self.runs)
            raise InputError(f"no finished run in {where}: run notebook 02 or 03 first")
        return max(results, key=results.get)

    def tables(self, *numbers: str) -> object:
        """The thesis's tables of these numbers ("7.1"), measured beside published, as Markdown."""
        from IPython.display import Markdown

        results = {"chance": None, "experiments": self.finished()}
        wanted = [
            to_compact_markdown(table, differences=not self.drawn)
            for table in tables(results, THESIS_ROWS)
            if not numbers or table.number in numbers
        ]
        return Markdown("\n\n".join([self.protocol(), *wanted]))

    def protocol(self) -> str:
        """What stands in the tables' cells, and what was measured on."""
        on = "drawn scenes, not CamVid" if self.drawn else "the test split of the data set"
        difference = "" if self.drawn else " (difference)"
        return (
            f"Cells: **measured / thesis{difference}**, in %. Measured on {on}, profile "
            f"`{self.profile}`; the thesis on CamVid's 233 test frames at 480x360. Void counts "
            "nowhere; one confusion matrix over the whole split."
        )

    def frames(self, split: str = "test", limit: int | None = None) -> Frames:
        """A split of the data set in memory; under `smoke` at most 8 frames."""
        return load(self.data, split, limit or (8 if self.profile == "smoke" else None))


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
    configure("frozen-names", profile)  # an unknown profile is told before a download
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
