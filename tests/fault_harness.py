"""Lets the n-th file operation of a run fail, for every n, and compares what is left.

    python -m pytest -k any_file_operation --faults 1

Counted are, in the folders of a run and of its mirror: opening, listing, renaming, emptying and
deleting a file, making a folder, writing and fsync. A fault is EIO, ENOSPC (where something is
written), or a kill: then all later operations fail too, so that nothing is tidied up.
"""

import builtins
import errno
import os
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

from kill_harness import equal

from camvid_lang.errors import InputError
from camvid_lang.results import read_results
from camvid_lang.runs import run
from camvid_lang.training import mirror
from camvid_lang.training.checkpoint import Checkpoints, load_checkpoint

EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.listdir", "os.scandir")
WRITES = ("open w", "os.mkdir", "write", "fsync")
KINDS = ("EIO", "ENOSPC", "kill")


class Killed(BaseException):
    """What a killed process does not survive."""


class Faults:
    """Counts the operations in `folders` while it is armed, and lets one fail."""

    def __init__(self, monkeypatch, *folders):
        self.folders, self.armed = tuple(map(str, folders)), False
        sys.addaudithook(self._hear)  # stays for ever, but hears nothing unless armed
        fsync = os.fsync

        def opened(path, mode):
            file = builtins.open(path, mode)  # noqa: SIM115
            return Writer(file, self, str(path)) if "w" in mode else file

        def synced(number):
            self.operation("fsync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(number)

        # Writing has no audit events; threads would make the order of operations random.
        monkeypatch.setattr("camvid_lang.results.open", opened, raising=False)
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(mirror, "threading", SimpleNamespace(Thread=Inline))
        monkeypatch.setattr(mirror, "PAUSES", (0, 0, 0))

    def _hear(self, event, arguments):
        if self.armed and event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            writes = event == "open" and "w" in (arguments[1] or "")
            self.operation("open w" if writes else event, os.fspath(arguments[0]))

    def operation(self, what, path):
        if not (self.armed and path.startswith(self.folders)):
            return
        number, self.count = self.count, self.count + 1
        if self.kind == "kill" and number >= self.at >= 0:
            self.hit = self.hit or (what, path)
            raise Killed(what)
        if number == self.at and (self.kind == "EIO" or what in WRITES):
            self.hit, code = (what, path), getattr(errno, self.kind)
            raise OSError(code, os.strerror(code), path)

    def run(self, at, kind, *arguments, **options):
        """A run whose operation number `at` fails, if any; returns what it raised."""
        self.count, self.at, self.kind, self.hit, self.armed = 0, at, kind, None, True
        try:
            run(*arguments, **options)
        except (InputError, OSError, Killed) as error:
            return error
        finally:
            self.armed = False


class Writer:
    """A file whose writes are counted: those whose number is a power of two, as all are similar."""

    def __init__(self, file, faults, path):
        self.file, self.faults, self.path, self.writes = file, faults, path, 0

    def write(self, data):
        self.writes += 1
        if bin(self.writes).count("1") == 1:
            self.faults.operation("write", self.path)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


class Inline:
    """A thread that runs where it is started."""

    def __init__(self, target, **_):
        self.start = target

    def is_alive(self):
        return False

    def join(self, _timeout):
        pass


def shown(folder):
    """All that `load` and `report` read of a run, without times."""
    files = Checkpoints(folder / "checkpoints").files()
    states = {path.name: load_checkpoint(path) for path in files}
    results = read_results(folder / "results.json")
    del results["seconds"]
    for history in (results["history"], *(state["history"] for state in states.values())):
        for entry in history:
            del entry["seconds"]
    names = sorted(path.name for path in folder.rglob("[!.]*"))
    return {**states, "results": results, "figures": (folder / "figures.npz").read_bytes(),
            "names": names}  # fmt: skip


def walk(faults, step, experiment, data, out, drive):
    """Problems, one text each, after a fault in each `step`-th operation; and counts of faults.

    After a fault the run is started again, where it was or on a new machine, in turn.
    """
    arguments, problems, hits = (experiment, data, out), [], Counter()
    assert faults.run(-1, "EIO", *arguments, mirror=drive) is None
    expected, count = shown(out), faults.count
    assert equal(shown(drive), expected)
    for turn, (kind, at) in enumerate((k, n) for k in KINDS for n in range(0, count, step)):
        for folder in (out, drive):
            shutil.rmtree(folder, ignore_errors=True)
        error = faults.run(at, kind, *arguments, mirror=drive)
        if not faults.hit:
            continue
        hits[kind, faults.hit[0]] += 1
        what = f"{kind} at {' '.join(faults.hit)} ({error!r})"
        if isinstance(error, InputError | OSError) and (
            "delete" in str(error) or "fresh" in str(error) or str(out.parent) not in str(error)
        ):
            problems.append(f"{what}: bad advice")
        new_machine = turn % 2 and (drive / "checkpoints").exists()
        if new_machine:
            shutil.rmtree(out, ignore_errors=True)
        if error := faults.run(-1, "EIO", *arguments, mirror=drive):
            problems.append(f"{what}, then {error!r}")
            continue
        for place, found in (("here", shown(out)), ("on the mirror", shown(drive))):
            keys = found if new_machine and place == "here" else expected  # the newest is enough
            keys = [key for key in keys if key != "names" or keys is expected]
            if wrong := [key for key in keys if not equal(found.get(key), expected.get(key))]:
                problems.append(f"{what}: {', '.join(wrong)} differ {place}: {found['names']}")
    return problems, hits
