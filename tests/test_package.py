"""The shape of the package: imports point one way, modules are short, and the README names each."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FILES = {path.stem: path for path in (REPO / "camvid_lang").glob("[a-z]*.py")}
# From the bottom up; what a layer's modules need in turn is theirs to choose.
LAYERS = (
    ("taxonomy", "data", "scenes", "download"),
    ("text", "encoder", "upsampler", "cosine"),
    ("models",),
    ("experiments", "training"),
    ("evaluation", "report", "run_reports"),
    ("notebook", "panel", "cli"),
)


def imported(path: Path) -> set[str]:
    """Modules of the package that a module imports, wherever in it that stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "camvid_lang":
            found |= {alias.name for alias in node.names if alias.name in FILES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("camvid_lang."):
            found.add(node.module.split(".")[1])
    return found


GRAPH = {name: imported(path) for name, path in FILES.items()}


def reached(name: str) -> set[str]:
    """All that a module needs, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        for other in GRAPH[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def test_no_module_needs_itself():
    assert len(list(graphlib.TopologicalSorter(GRAPH).static_order())) == len(FILES)


@pytest.mark.parametrize("level", range(len(LAYERS) - 1))
def test_a_layer_needs_nothing_above_it(level):
    above = {name for layer in LAYERS[level + 1 :] for name in layer}
    for name in LAYERS[level]:
        assert not reached(name) & above, name


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_is_short_and_the_readme_names_it(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 310
    layout = (REPO / "README.md").read_text(encoding="utf-8").split("## Layout")[1]
    assert re.search(rf"`{name}`", layout)


def test_the_package_imports_where_unix_modules_are_absent():
    """On Windows there is neither fcntl nor resource, and ctypes finds no C library by no name."""
    code = (
        "import ctypes, importlib, sys, tempfile, open_clip, torchmetrics, matplotlib.figure\n"
        "sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        f"for name in {sorted(FILES)!r}: importlib.import_module(f'camvid_lang.{{name}}')\n"
        "from camvid_lang import devices, files\n"
        "def absent(name, *more): raise TypeError('no name')\n"
        "ctypes.CDLL = absent\n"
        "devices.reuse_freed_memory(); devices.give_back_freed_memory()\n"
        "with tempfile.TemporaryDirectory() as folder, files.folder_lock(folder): print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "done", done.stderr[-500:]
