"""The package's structure and public names: imports go one way, and start-up is quick."""

import ast
import doctest
import importlib
import pkgutil
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import camvid_lang

PACKAGE = Path(camvid_lang.__file__).parent
# Each part may import from those before it and from itself.
ORDER = (
    ("errors", "assets"),
    ("device",),
    ("data",),
    ("models",),
    ("scenes",),
    ("experiments", "evaluation", "results"),
    ("report",),
    ("training",),
    ("run",),
    ("segmenter",),
    ("demo",),
    ("cli", "notebook"),
    ("__init__", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
NAMES = [module.name for module in pkgutil.walk_packages(camvid_lang.__path__, "camvid_lang.")]


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("camvid_lang."):
            other = node.module.split(".")[1]
            assert other == own or LEVEL[other] < LEVEL[own], (
                f"{path}: line {node.lineno} imports {node.module}, which belongs above {own}"
            )


@pytest.fixture
def not_imported(monkeypatch):
    """The package as before its first import in this process; the libraries stay imported."""
    names = ["camvid_lang", *(name for name in NAMES if not name.endswith("__main__"))]
    for name in names:  # with the libraries, which are to stay as they are
        importlib.import_module(name)
    for name in names:
        monkeypatch.delitem(sys.modules, name)


def test_every_module_imports_without_unix_modules(not_imported, monkeypatch):
    for name in ("fcntl", "resource", "termios"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(NAMES) > 20
    for name in NAMES:
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__name__ == name


def test_every_name_of_the_api_exists():
    assert all(hasattr(camvid_lang, name) for name in camvid_lang.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = camvid_lang.nothing
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("first", ["camvid_lang.run", "camvid_lang"])
def test_run_is_the_function_whatever_is_imported_first(first, not_imported):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImportWarning)
        importlib.import_module(first)
        assert callable(importlib.import_module("camvid_lang").run)


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [(("-c", "import camvid_lang"), 0.3), (("-m", "camvid_lang", "--help"), 1.0)],
)
def test_start_up_is_quick(arguments, seconds):
    def duration(*arguments):
        started = time.perf_counter()
        assert python(*arguments).returncode == 0
        return time.perf_counter() - started

    # In addition to that of Python itself; the best of five, as others may use the machine.
    took = min(duration(*arguments) - duration("-c", "") for _ in range(5))
    assert took < seconds


def test_the_example_of_the_package_runs(finished, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copytree(finished / "data", tmp_path / "data" / "camvid")
    shutil.copytree(finished / "frozen-names", tmp_path / "runs" / "frozen-names")
    frame = next((finished / "data" / "test").iterdir())
    shutil.copy(frame, tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(camvid_lang, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 9
    assert found.failed == 0


def test_examples_of_the_segmenter_run():
    assert doctest.testmod(importlib.import_module("camvid_lang.segmenter")).failed == 0
