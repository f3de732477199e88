"""The setup cell of the notebooks: where it finds the package, and what it asks pip for."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# What the cell runs in: no camvid_lang installed, and pip only told of.
BEFORE = """
import importlib.util, subprocess, sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path[:] = [p for p in sys.path if "__editable__" not in p and p != {repo!r}]
find, started = importlib.util.find_spec, subprocess.run
absent = {absent!r}
importlib.util.find_spec = lambda name, *more: None if name in absent else find(name, *more)

def run(command, **options):
    if "pip" not in command:
        return started(command, **options)
    print("PIP", *command[4:])
    print("KEPT", open(command[command.index("-c") + 1]).read().split())

subprocess.run = run
"""
AFTER = """
print("FROM", importlib.util.find_spec("camvid_lang").origin)
"""


@pytest.fixture(scope="module")
def cell():
    spec = importlib.util.spec_from_file_location("generate", REPO / "notebooks" / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    return generator.setup_cell()


@pytest.fixture
def setup(cell, tmp_path):
    """Runs the cell in an empty folder; returns exit code, and all that was written."""
    content = tmp_path / "content"
    content.mkdir()

    def run(repository="file:///nowhere/at/all", absent=()):
        code = BEFORE.format(repo=str(REPO), absent=absent) + cell + AFTER
        environment = {**os.environ, "CAMVID_LANG_REPOSITORY": repository}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=content,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    run.content = content
    return run


def package(folder):
    """A stand-in for the repository: only the file that marks it."""
    (folder / "camvid_lang").mkdir(parents=True)
    (folder / "camvid_lang" / "__init__.py").touch()
    return folder


def test_an_address_that_is_not_there_is_told_with_the_way_out(setup):
    code, told = setup()
    assert code == 1
    assert "file:///nowhere/at/all cannot be cloned: copy the repository to My Drive/" in told
    assert "Traceback" not in told


def test_the_copy_on_drive_is_used_where_nothing_can_be_cloned(setup):
    package(setup.content / "drive" / "MyDrive" / "camvid-lang-code")
    code, told = setup()
    assert code == 0
    assert "FROM" in told
    assert "camvid-lang-code" in told.split("FROM")[1]


def test_a_notebook_within_the_repository_uses_it_and_clones_nothing(setup):
    package(setup.content.parent)
    code, told = setup()
    assert code == 0
    assert told.split("FROM")[1].strip() == str(
        setup.content.parent / "camvid_lang" / "__init__.py"
    )
    assert not (setup.content / "camvid-lang").exists()


@pytest.mark.skipif(not shutil.which("git"), reason="git is absent")
def test_it_clones_once(setup, tmp_path):
    origin = package(tmp_path / "origin")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    assert setup(origin.as_uri())[0] == 0
    shutil.rmtree(origin)
    code, told = setup(origin.as_uri())
    assert code == 0
    assert str(setup.content / "camvid-lang") in told.split("FROM")[1]


def test_only_what_is_missing_is_installed_and_torch_and_numpy_are_kept(setup):
    package(setup.content)
    assert "PIP" not in setup()[1]
    code, told = setup(absent=("open_clip", "gdown"))
    assert code == 0
    asked = re.search(r"^PIP (.*)$", told, re.MULTILINE)[1]
    assert "open-clip-torch>=3.0,<4" in asked
    assert "gdown" in asked
    assert "torchmetrics" not in asked
    kept = re.search(r"^KEPT (.*)$", told, re.MULTILINE)[1]
    for name in ("torch", "numpy"):
        assert f"{name}=={version(name)}" in kept
        assert f" {name}>=" not in f" {asked}"
    assert [path.name for path in setup.content.iterdir()] == ["camvid_lang"]  # nothing left over


def test_a_kernel_without_torch_gets_it(setup):
    package(setup.content)
    code, told = setup(absent=("torch", "open_clip"))
    assert code == 0
    assert "torch>=" in re.search(r"^PIP (.*)$", told, re.MULTILINE)[1]
    kept = re.search(r"^KEPT (.*)$", told, re.MULTILINE)[1]
    assert "torch==" not in kept
    assert f"numpy=={version('numpy')}" in kept
