"""The notebooks: as their sources say, and executed top to bottom as a user would."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from camvid_lang import notebook
from camvid_lang.errors import InputError
from camvid_lang.notebook import start
from camvid_lang.training.checkpoint import Checkpoints, step_of

REPO = Path(__file__).resolve().parent.parent
FOLDER = REPO / "notebooks"
NAMES = (
    "01_data",
    "02_baselines",
    "03_frozen_training",
    "04_full_training",
    "05_analysis",
    "06_open_vocabulary",
)


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


# As they lie in the repository


def test_there_are_six(generator):
    assert [path.stem for path in generator.sources()] == list(NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_source_gives(name, generator):
    made = generator.generate(FOLDER / f"{name}.py")
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == made
    assert generator.generate(FOLDER / f"{name}.py") == made  # nothing random in it


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_clean_and_meant_for_colab(name):
    found = read(name)
    nbformat.validate(found)
    assert found.metadata["accelerator"] == "GPU"
    assert found.metadata["colab"]["gpuType"] == "T4"
    assert "widgets" not in found.metadata
    assert len({cell.id for cell in found.cells}) == len(found.cells)
    for cell in found.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    forms = [cell for cell in found.cells if cell.source.startswith("# @title")]
    assert [cell.metadata["cellView"] for cell in forms] == ["form", "form"]
    for choice in ("PROFILE", "DATA", "DRIVE", "RESUME"):
        assert re.search(rf"^{choice} = .*# @param", forms[1].source, re.MULTILINE)
    text = "\n".join(cell.source for cell in found.cells)
    assert not re.search(r"""["'(\s](/[a-z]+/|[A-Z]:\\)""", text)  # no absolute path
    assert not re.search(r"^\s*(def|class) ", text.replace(forms[0].source, ""), re.MULTILINE)


def test_the_address_stands_in_one_place(generator):
    address = generator.repository()
    assert address in (REPO / "pyproject.toml").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert address not in path.read_text(encoding="utf-8")
    for name in NAMES:
        cells = read(name).cells
        short = address.removeprefix("https://github.com/")
        badge = f"colab.research.google.com/github/{short}/blob/main/notebooks/{name}.ipynb"
        assert badge in cells[0].source
        assert f'"{address}"' in cells[1].source


def test_a_stale_notebook_is_told(generator, tmp_path, monkeypatch, capsys):
    for path in (*FOLDER.glob("*.py"), *FOLDER.glob("*.ipynb")):
        shutil.copy(path, tmp_path)
    shutil.copy(REPO / "pyproject.toml", tmp_path.parent)
    monkeypatch.setattr(generator, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generator.main() == 0
    source = tmp_path / "02_baselines.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\n1 + 1\n", encoding="utf-8")
    assert generator.main() == 1
    assert "02_baselines.ipynb" in capsys.readouterr().out


# The session that all share


def test_the_environment_replaces_the_form(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAMVID_LANG_WORK", str(tmp_path))
    monkeypatch.setenv("CAMVID_LANG_PROFILE", "smoke")
    monkeypatch.setenv("CAMVID_LANG_SETTINGS", "epochs=3, lr=1e-3")
    session = start("thesis", "scenes", str(tmp_path / "drive"), False, "epochs=9")
    assert (session.profile, session.resume, session.drawn) == ("smoke", False, True)
    assert session.runs == tmp_path / "runs" / "scenes-smoke"
    assert session.drive == tmp_path / "drive" / "scenes-smoke"
    entry = session.configure("frozen-names")
    assert (entry.epochs, entry.lr) == (3, 1e-3)
    assert session.configure("bilinear-names").epochs == 0
    assert "mirrored to" in capsys.readouterr().out
    assert session.finished() == {}
    with pytest.raises(InputError, match="run notebook 02 or 03 first"):
        session.language_run()


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({"profile": "fast"}, "unknown profile 'fast'"),
        ({"data": "nowhere/at/all"}, "DATA 'nowhere/at/all' is no folder"),
        ({"settings": "epochs"}, "write it as key=value"),
        ({"settings": "epoch=2"}, "did you mean 'epochs'"),
        ({"settings": "epochs=ten"}, "a whole number is expected"),
    ],
)
def test_wrong_choices_are_told(choices, told, tmp_path, monkeypatch):
    monkeypatch.setenv("CAMVID_LANG_WORK", str(tmp_path))
    with pytest.raises(InputError, match=told):
        start(**{"profile": "smoke", "data": "scenes", **choices})


def test_data_on_drive_are_brought_to_the_local_disk_in_colab(tiny_dataset, tmp_path, monkeypatch):
    drive = tmp_path / "drive" / "MyDrive" / "own"
    shutil.copytree(tiny_dataset, drive)
    monkeypatch.setenv("CAMVID_LANG_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(notebook, "in_colab", lambda: True)
    (tmp_path / "work" / "data").mkdir(parents=True)
    session = start("smoke", str(drive))
    assert session.data == tmp_path / "work" / "data" / "own"
    assert len(session.frames("trainval")) == 8


# Executed


def execute(name, folder, environment, timeout=300):
    """Run a notebook in a fresh kernel, in `folder`; returns it with its outputs."""
    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        found, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, **environment})
    return found


def printed(found):
    """All that the cells wrote, as one text."""
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") for output in outputs)


def everything(found):
    """What `printed` gives, and all texts that cells show."""
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    shown = [output["data"].get("text/plain", "") for output in outputs if "data" in output]
    return "\n".join([printed(found), *shown])


def figures(found):
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def smoke(work, **more):
    return {
        "CAMVID_LANG_PROFILE": "smoke",
        "CAMVID_LANG_DATA": "scenes",
        "CAMVID_LANG_WORK": str(work),
        "OMP_NUM_THREADS": "1",
        **more,
    }


@pytest.mark.slow
def test_all_six_run_in_order(tmp_path):
    expected = dict(zip(NAMES, (4, 3, 4, 2, 4, 2), strict=True))  # figures, at least
    for name in NAMES:
        found = execute(name, FOLDER, smoke(tmp_path))
        assert figures(found) >= expected[name], name
        told = printed(found)
        assert "Traceback" not in told, name
        assert "Warning" not in told, name
        if name.startswith("05"):
            tables = [
                output["data"]["text/markdown"]
                for cell in found.cells
                for output in cell.get("outputs", [])
                if "text/markdown" in output.get("data", {})
            ]
        bars = sum("it/s" in line or "s/it" in line for line in everything(found).splitlines())
        assert bars <= 12, name  # a bar is one line, however long it ran
    runs = tmp_path / "runs" / "scenes-smoke"
    assert len(list(runs.glob("*/results.json"))) == 9
    assert "63.16" in tables[0]  # the thesis's
    assert "drawn road scenes" in tables[0]


@pytest.mark.slow
def test_alone_05_reads_and_says_what_to_run(tmp_path):
    told = printed(execute("05_analysis", FOLDER, smoke(tmp_path)))
    assert "0 finished run(s)\nnone; run notebook 02 or 03 first" in told
    assert not (tmp_path / "runs").exists() or not list(tmp_path.glob("runs/*/*/checkpoints"))


COLAB = """
class drive:
    @staticmethod
    def mount(path, force_remount=False):
        import pathlib
        (pathlib.Path(path) / "MyDrive").mkdir(parents=True, exist_ok=True)
        print(f"Mounted at {path}")
"""
# The package is installed in this environment; in Colab it is not.
NOT_INSTALLED = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")
                    and "__editable__" not in getattr(f, "__name__", "")]
sys.path[:] = [p for p in sys.path if "__editable__" not in p and p != {repo!r}]
"""


@pytest.fixture
def colab(tmp_path):
    """A folder like /content, and the environment of a kernel that believes it is in Colab."""
    site = tmp_path / "site"
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").write_text(COLAB)
    (site / "sitecustomize.py").write_text(NOT_INSTALLED.format(repo=str(REPO)))
    origin = tmp_path / "origin"
    kept = shutil.ignore_patterns(".venv", ".git", "runs", "data", ".*cache", "*.egg-info")
    shutil.copytree(REPO, origin, ignore=kept)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    content = tmp_path / "content"
    content.mkdir()
    environment = smoke(
        "",
        CAMVID_LANG_REPOSITORY=origin.as_uri(),
        CAMVID_LANG_DRIVE="true",
        PYTHONPATH=str(site),
    )
    return content, environment


@pytest.mark.slow
def test_all_six_run_in_a_simulated_colab(colab):
    content, environment = colab
    for name in NAMES:
        found = execute(name, content, environment)
        assert "Traceback" not in printed(found), name
    assert (content / "camvid-lang" / "camvid_lang" / "__init__.py").is_file()  # cloned
    drive = content / "drive" / "MyDrive" / "camvid-lang" / "scenes-smoke"
    assert len(list(drive.glob("*/results.json"))) == 9
    assert Checkpoints(drive / "frozen-names" / "checkpoints").files()
    # A new machine: the local disk is empty, and Drive has everything.
    for folder in ("runs", "data"):
        shutil.rmtree(content / folder)
    told = printed(execute("05_analysis", content, environment))
    assert "9 finished run(s)" in told
    told = printed(execute("03_frozen_training", content, environment))
    assert told.count("finished before") == 2


@pytest.mark.slow
def test_killed_in_the_middle_of_03_it_goes_on(tmp_path):
    environment = smoke(tmp_path, CAMVID_LANG_SETTINGS="epochs=30")
    checkpoints = Checkpoints(tmp_path / "runs" / "scenes-smoke" / "frozen-names" / "checkpoints")
    code = (
        "import sys, nbformat; from nbclient import NotebookClient\n"
        "NotebookClient(nbformat.read(sys.argv[1], 4), timeout=300).execute(cwd=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(FOLDER / "03_frozen_training.ipynb"), str(FOLDER)]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True
    ) as process:
        for _ in range(2400):
            if len(checkpoints.files()) == 2 or process.poll() is not None:
                break
            time.sleep(0.05)
        kernel = int((checkpoints.folder.parent / ".lock").read_text())
        assert kernel != process.pid
        os.kill(kernel, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)  # the window is closed too
    reached = step_of(checkpoints.files()[-1])
    assert reached > 0
    assert not (tmp_path / "runs" / "scenes-smoke" / "frozen-names" / "results.json").exists()
    told = printed(execute("03_frozen_training", FOLDER, environment))
    again = re.search(r"frozen-names: going on after step (\d+) of (\d+)", told)
    assert again
    assert reached <= int(again[1]) < int(again[2])
    results = tmp_path / "runs" / "scenes-smoke" / "frozen-names" / "results.json"
    assert [entry["epoch"] for entry in json.loads(results.read_text())["history"]] == list(
        range(1, 31)
    )


def test_an_input_error_is_one_line_in_a_notebook(tmp_path):
    found = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from camvid_lang.notebook import start\nstart('fast', 'scenes')"
            )
        ]
    )
    client = NotebookClient(found, timeout=120, allow_errors=True, kernel_name="python3")
    client.execute(env={**os.environ, "CAMVID_LANG_WORK": str(tmp_path)})
    outputs = found.cells[0].outputs
    told = "".join(output.get("text", "") for output in outputs)
    assert told.strip() == "error: unknown profile 'fast': choose thesis, cpu, smoke"
    assert all(len(output.get("traceback", [])) <= 1 for output in outputs)
