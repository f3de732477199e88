"""The package's structure: imports go one way between its parts, and each module imports alone."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import camvid_lang

PACKAGE = Path(camvid_lang.__file__).parent
# Each part may import from those before it and from itself; `errors` and `device` from anywhere.
ORDER = (
    ("errors", "device", "assets"),
    ("data",),
    ("models",),
    ("scenes",),
    ("experiments", "evaluation", "results"),
    ("report",),
    ("training",),
    ("run",),
    ("segmenter", "demo"),
    ("cli", "notebook"),
    ("__init__", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(dotted: str) -> str:
    """`camvid_lang.models.text` -> `models`."""
    return dotted.split(".")[1] if "." in dotted else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("camvid_lang"):
            other = part_of(node.module)
            if other == "__init__":
                continue  # `from camvid_lang import __version__`
            assert other == own or LEVEL[other] < LEVEL[own], (
                f"{path}: line {node.lineno} imports {node.module}, which belongs above {own}"
            )


def test_at_most_a_dozen_files_lie_directly_in_the_package():
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 12


@pytest.mark.slow
def test_every_module_imports_where_unix_modules_are_absent():
    names = [m.name for m in pkgutil.walk_packages(camvid_lang.__path__, "camvid_lang.")]
    names = [name for name in names if not name.endswith("__main__")]
    assert len(names) > 20
    code = (
        "import importlib, sys\n"
        "for name in ('fcntl', 'resource', 'termios'): sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "done", done.stderr[-500:]


def test_every_name_of_all_exists():
    for path in MODULES:
        if path.stem == "__main__":
            continue
        dotted = ".".join(("camvid_lang", *path.relative_to(PACKAGE).with_suffix("").parts))
        module = importlib.import_module(dotted.removesuffix(".__init__"))
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{dotted}.{name}"
