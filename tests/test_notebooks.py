"""The notebooks: generated from their sources, and executed as a user would."""

import base64
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbclient.util import run_sync
from PIL import Image

import camvid_lang

REPO = Path(__file__).resolve().parent.parent
FOLDER = REPO / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("0*.ipynb"))


@pytest.fixture(scope="module")
def generator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module("generate")


def test_a_notebook_that_differs_from_its_source_is_found(generator, tmp_path, monkeypatch, capsys):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    monkeypatch.setattr(generator, "HERE", tmp_path / "notebooks")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generator.main() == 0
    with (tmp_path / "notebooks" / "02_baselines.py").open("a", encoding="utf-8") as source:
        source.write("\n# %%\nprint(1 + 1)\n")
    assert generator.main() == 1
    assert "02_baselines.ipynb: not generated from the current source" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    generator.main()
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generator.main() == 1
    assert "02_baselines.ipynb: its outputs are of other code" in capsys.readouterr().out
    notebook = nbformat.read(tmp_path / "notebooks" / "02_baselines.ipynb", as_version=4)
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) > 5  # of other cells: kept


def test_outputs_are_stored_without_what_changes_at_each_run(generator, tmp_path):
    cells = ["# @title Choices\nDATA = 'camvid'", "import os, sys\nprint(DATA, os.getcwd() + '/x')"]
    cells += ["print('bar', file=sys.stderr)\nprint('in 3.2 ms')\nprint('a', flush=True)\nprint(1)"]
    cells += ["from PIL import Image\nImage.new('RGB', (3000, 10)).save('x.png')"]
    cells += ["import ipywidgets\nipywidgets.VBox([ipywidgets.Image.from_file('x.png')])"]
    new = nbformat.v4.new_code_cell
    notebook = nbformat.v4.new_notebook(cells=[new(x, id=str(i)) for i, x in enumerate(cells)])
    done = generator.execute(notebook, tmp_path.resolve())
    texts = ["".join(x.get("text", "") for x in cell.outputs) for cell in done.cells]
    assert texts == ["", "scenes x\n", "a\n1\n", "", ""]
    (shown,) = done.cells[-1].outputs
    with Image.open(io.BytesIO(base64.b64decode(shown.data["image/png"]))) as image:
        assert image.width == generator.WIDTH
    assert "widgets" not in done.metadata
    assert done.cells[0].source == cells[0]
    assert generator.code_digest(done) == done.metadata["outputs_of"]


def test_stored_outputs_are_small():
    sizes = [(FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES]
    assert max(sizes) < 1.5e6
    assert sum(sizes) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_ready_for_colab(name, generator):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    setup, *_ = [cell for cell in notebook.cells if cell.source.startswith("# @title")]
    text = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"^(def|class) \w+[(:]|\{\{", text, re.MULTILINE)
    assert not re.search(r"""["'(\s](/[a-z]+/|[A-Z]:\\)""", text)  # no absolute path
    for target in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (FOLDER / target).is_file()
    address = generator.project()[0]
    short = address.removeprefix("https://github.com/")
    tag = f"v{camvid_lang.__version__}"
    assert f"research.google.com/github/{short}/blob/{tag}/notebooks/{name}.ipynb" in text
    assert f'REPOSITORY = "{address}"  # @param' in setup.source
    assert f'REF = "{tag}"  # @param' in setup.source
    assert f"{short}/blob/{tag}/notebooks/{name}.ipynb" in (REPO / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def kernel():
    """One kernel for several notebooks, as each would take ten seconds to import the package."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    if manager.has_kernel:
        run_sync(manager.shutdown_kernel)(now=True)


def execute(name, folder, before="", environment=(), kernel=None, **choices):
    """Run a notebook in `folder` with these choices in its form; returns all that it printed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    setup, *forms = [cell for cell in notebook.cells if cell.source.startswith("# @title")]
    choices = {"PROFILE": "smoke", "DATA": "scenes", **choices}
    for form in forms:
        for key, value in choices.items():
            form.source = re.sub(rf"(?m)^{key} = .*$", lambda _: f"{key} = {value!r}", form.source)  # noqa: B023
    forms[0].source += before
    origin = f'REPOSITORY = "{(folder.parent / "origin").as_uri()}"'
    setup.source = re.sub(r'REPOSITORY = ".*?"', origin, setup.source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder}"))
    client = NotebookClient(notebook, km=kernel, timeout=300, kernel_name="python3")
    client.execute(cwd=str(folder), env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", output) for output in outputs]
    assert sum(bool(data.keys() & {"image/png", "image/svg+xml"}) for data in shown) >= 2
    text = "\n".join(data.get("text/markdown", data.get("text", "")) for data in shown)
    assert not re.search("Traceback|Warning", text)
    return text


@pytest.mark.slow(0.2)  # notebooks last, the longest of them first
def test_all_six_run_in_order(tmp_path, kernel):
    printed = {name: execute(name, tmp_path, kernel=kernel) for name in NAMES}
    assert len(list(tmp_path.glob("runs/scenes-smoke/*/results.json"))) == 9
    assert "missing: none" in printed["05_analysis"]
    assert "drawn road scenes" in printed["05_analysis"]
    assert "63.16" not in printed["05_analysis"]  # the thesis's, on other data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"), [("05_analysis", "camvid"), ("06_open_vocabulary", "scenes")]
)
def test_on_a_machine_without_runs_those_of_the_package_are_shown(name, data, tmp_path, kernel):
    printed = execute(name, tmp_path, kernel=kernel, DATA=data, PROFILE="auto")
    assert "no run is finished in" in printed


COLAB = """
import os

class drive:
    mount = lambda path: os.makedirs(f"{path}/MyDrive", exist_ok=True)
"""
# At the start of every Python process: Colab's module is loaded, this package is not installed.
SITE = """
import sys, google.colab
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")
                    and "__editable__" not in getattr(f, "__name__", "")]
sys.path[:] = [p for p in sys.path if "__editable__" not in p and p != {repo!r}]
"""


@pytest.mark.slow(0.1)
def test_in_colab_training_resumes_from_drive_on_a_new_machine(tmp_path):
    (tmp_path / "site" / "google").mkdir(parents=True)
    (tmp_path / "site" / "google" / "colab.py").write_text(COLAB)
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(repo=str(REPO)))
    origin = tmp_path / "origin"
    shutil.copytree(REPO / "camvid_lang", origin / "camvid_lang")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    tag = ["tag", f"v{camvid_lang.__version__}"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"], tag):
        subprocess.run([*git, *arguments], check=True)
    machine, run, saved = tmp_path / "content", "frozen-names epochs=8", []
    copies = machine / "drive" / "MyDrive" / "camvid-lang" / "scenes-smoke" / run
    machine.mkdir()

    def new_machine(number):
        machine.rename(tmp_path / f"old{number}")
        shutil.copytree(tmp_path / f"old{number}" / "drive", machine / "drive")

    def kill():
        while len(saved) < 2:
            saved[:] = copies.glob("checkpoints/last-*.pt")
            time.sleep(0.02)
        os.kill(int((machine / "pid").read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    options = {"environment": {"PYTHONPATH": str(tmp_path / "site")}, "DRIVE": True}
    training = {**options, "RUNS": "frozen-names", "SETTINGS": "epochs=8"}
    write_pid = "\nimport os\nprint(os.getpid(), file=open('pid', 'w'), flush=True)"
    with pytest.raises(DeadKernelError):
        execute("03_frozen_training", machine, write_pid, **training)
    assert (machine / "camvid-lang" / "camvid_lang" / "__init__.py").is_file()
    assert not (copies / "results.json").exists()
    new_machine(1)
    assert "restored last-" in execute("03_frozen_training", machine, **training)
    history = json.loads((copies / "results.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    new_machine(2)
    printed = execute("06_open_vocabulary", machine, RUN=run, **options)
    assert "frozen-names, trained on: sky" in printed
