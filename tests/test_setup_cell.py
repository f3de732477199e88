"""The setup cell of the notebooks: where it finds the package, and what it asks pip for."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

REPO = Path(__file__).resolve().parent.parent
# As in a kernel without the package; pip is only printed.
BEFORE = """
import importlib.util, subprocess
find, start = importlib.util.find_spec, subprocess.run
importlib.util.find_spec = lambda name: None if name in {absent!r} else find(name)

def run(command, **options):
    if "pip" not in command:
        return start(command, **options)
    print("PIP", *command[4:])

subprocess.run = run
"""


@pytest.fixture
def setup(tmp_path):
    """Runs the cell in the folder `content`; returns exit code and output."""
    notebook = nbformat.read(REPO / "notebooks" / "01_data.ipynb", as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.source.startswith("# @title Setup"))
    (tmp_path / "content").mkdir()

    def run(repository, absent=("camvid_lang",)):
        source = re.sub(r'REPOSITORY = ".*?"', f"REPOSITORY = {repository!r}", cell)
        code = BEFORE.format(absent=absent) + source + "\nprint('FROM', sys.path[0])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path / "content",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def package(folder):
    """Only the file that marks the repository."""
    (folder / "camvid_lang").mkdir(parents=True)
    (folder / "camvid_lang" / "__init__.py").touch()
    return folder


def test_a_clone_that_fails_is_one_line_with_the_address(setup):
    code, output = setup("file:///nowhere/at/all")
    assert code == 1
    assert output.splitlines()[-1] == (
        "cannot clone file:///nowhere/at/all: check the address and the network"
    )
    assert "Traceback" not in output


def test_it_clones_once_and_uses_a_copy_that_is_there(setup, tmp_path):
    origin = package(tmp_path / "origin")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    assert setup(origin.as_uri())[0] == 0
    code, output = setup("file:///nowhere/at/all")
    assert code == 0
    assert f"FROM {tmp_path / 'content' / 'camvid-lang'}" in output
    package(tmp_path)  # the notebook lies in the repository's folder `notebooks`
    assert f"FROM {tmp_path}\n" in setup("file:///nowhere/at/all")[1]


def test_torch_and_numpy_keep_their_versions(setup, tmp_path):
    package(tmp_path)
    asked = re.search("^PIP (.*)$", setup("")[1], re.MULTILINE)[1].split()
    assert {f"torch=={version('torch')}", f"numpy=={version('numpy')}"} < set(asked)
    assert "open-clip-torch>=3.0,<4" in asked
    asked = re.search("^PIP (.*)$", setup("", ("camvid_lang", "torch"))[1], re.MULTILINE)[1]
    assert "torch==" not in asked  # a kernel that has none gets one
    assert "PIP" not in setup("", ())[1]  # an installed package has its dependencies
