"""The setup cell of the notebooks: where it finds the package, and what it asks pip for."""

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

from camvid_lang import __version__

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "01_data.ipynb"


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Runs the cell in the folder `content`; returns sys.path[0] and what pip is asked for."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    cell = next(cell.source for cell in cells if cell.source.startswith("# @title Setup"))
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    find, start = importlib.util.find_spec, subprocess.run

    def run(repository, absent=("camvid_lang",), pip=0, **known):
        asked = []

        def no_pip(command, **more):
            if "pip" not in command:
                return start(command, **more)
            asked.extend(command[4:])
            return subprocess.CompletedProcess(command, pip)

        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", ["", *sys.path])
            patch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else find(n))
            patch.setattr(subprocess, "run", no_pip)
            exec(re.sub(r'REPOSITORY = ".*?"', f"REPOSITORY = {repository!r}", cell), known)
            return sys.path[0], asked

    return run


def test_what_fails_is_one_line_with_the_address(setup, tmp_path, monkeypatch):
    message = f"^cannot clone REPOSITORY file:///nowhere, REF v{__version__}: check both"
    with pytest.raises(SystemExit, match=message):
        setup("file:///nowhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"check .* that git is installed"):
        setup((tmp_path / "origin").as_uri())
    (tmp_path / "camvid_lang").mkdir()
    with pytest.raises(SystemExit, match="pip cannot install what is needed"):
        setup("", pip=1)


def test_it_clones_once_and_prefers_a_local_copy_or_the_one_next_to_the_notebook(setup, tmp_path):
    package = tmp_path / "origin" / "camvid_lang" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    tag = ["tag", f"v{__version__}"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], tag):
        subprocess.run([*git, *arguments], check=True, cwd=tmp_path / "origin")
    notebook = str(tmp_path / "origin" / "notebooks" / "01_data.ipynb")  # as VS Code gives it
    assert setup("file:///nowhere", __vsc_ipynb_file__=notebook)[0] == str(tmp_path / "origin")
    clone = str(tmp_path / "content" / "camvid-lang")
    assert setup((tmp_path / "origin").as_uri())[0] == clone
    assert setup("file:///nowhere")[0] == clone
    (tmp_path / "camvid_lang").mkdir()  # the notebook is in the repository's folder `notebooks`
    assert setup("file:///nowhere")[0] == str(tmp_path)


def test_torch_and_numpy_keep_their_versions(setup, tmp_path):
    (tmp_path / "camvid_lang").mkdir()
    asked = setup("")[1]
    assert {f"torch=={version('torch')}", f"numpy=={version('numpy')}"} < set(asked)
    assert "open-clip-torch>=3.0,<4" in asked
    asked = setup("", ("camvid_lang", "torch"))[1]  # a kernel without torch gets one
    assert "torch>=2.6" in asked
    assert setup("", ()) == ("", [])  # an installed package has its dependencies
