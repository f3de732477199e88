"""Exceptions that end a command with one line instead of a traceback; a check that raises one."""

import difflib
from pathlib import Path

from camvid_lang import MODELS


class InputError(Exception):
    """The input is wrong; the message says what is wrong, where, and how to fix it.

    Messages speak of arguments of the Python API. The command line prints them in one line, with
    the flags of these arguments, and exits with code 1. Other exceptions keep their traceback
    there, except those of files and memory.
    """


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; it resumes from its last checkpoint.

    Attributes:
        signal: the signal's number; a command exits with 128 plus it.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


def check_folder(path: str | Path, what: str = "folder") -> str | Path:
    """The path if it is a folder or, as a "run", a model of the package; else raise InputError."""
    names = {name: name for name in MODELS if what == "run" and isinstance(path, str)}
    if path in names or Path(path).is_dir():
        return path
    names = {x.name: x for x in Path(path).parent.glob("*") if x.is_dir()} | names
    advice = {"run": f"give the folder of a run, or {' or '.join(MODELS)}"}
    advice["data set"] = f"download CamVid with `camvid-lang data download {path}`"
    close = difflib.get_close_matches(Path(path).name, names, n=1)
    fix = f"did you mean '{names[close[0]]}'?" if close else advice.get(what, "give another")
    raise InputError(f"{path}: no such {what}; {fix}")
