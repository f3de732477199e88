"""How a notebook starts: where it runs, the data, the drive, errors in its own words.

Every choice of a notebook's form can be replaced by an environment variable, which is how the
notebooks are tested: CAMVID_LANG_PROFILE, CAMVID_LANG_DATA, CAMVID_LANG_DRIVE, CAMVID_LANG_RESUME,
CAMVID_LANG_SETTINGS (as in "epochs=2, batch_size=4") and CAMVID_LANG_WORK (where data and runs go).
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import torch

from camvid_lang.devices import pick_device
from camvid_lang.download import fetch
from camvid_lang.errors import InputError
from camvid_lang.experiments import configure
from camvid_lang.faults import Interrupted
from camvid_lang.scenes import write_scenes
from camvid_lang.session import Session

__all__ = ["in_colab", "one_line_errors", "start"]

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
