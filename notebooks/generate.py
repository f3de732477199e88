"""Generate the notebooks (.ipynb) from their sources (.py, percent format), and their outputs.

    python notebooks/generate.py              # write them; outputs of cells that changed are lost
    python notebooks/generate.py --outputs    # also execute them, a quarter of an hour
    python notebooks/generate.py --check      # exit with 1 if one differs, or its outputs are older

Edit the sources only. A cell `# {{setup}}` becomes setup_cell.py and `{{badge}}` the links to Colab
and Kaggle; the repository's address and the dependencies in them are those of pyproject.toml. Cells
have fixed ids; the metadata asks Colab for a T4.

Outputs are of drawn scenes and the profile `cpu`. What differs at each run is left out: progress
bars, lines that end in a time, the folder. A widget becomes the images in it.
"""

import ast
import base64
import hashlib
import io
import itertools
import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from PIL import Image

from camvid_lang import __version__

HERE = Path(__file__).parent
CHOICES = {"PROFILE": "cpu", "DATA": "scenes"}  # of the outputs
COLOURS, WIDTH = 256, 1000  # of a stored image, which then takes a third
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def project() -> tuple[str, list[str]]:
    """The repository's address and the package's dependencies, from pyproject.toml.

    Python 3.10 has no tomllib; a TOML list of strings reads like Python's.
    """
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    address = re.search(r'^Repository = "([^"]+)"', text, re.MULTILINE)[1]
    dependencies = re.search(r"^dependencies = (\[.*?\])", text, re.MULTILINE | re.DOTALL)[1]
    return address, ast.literal_eval(dependencies)


def generate(source: Path) -> NotebookNode:
    """The notebook that belongs to a source, without outputs."""
    address, dependencies = project()
    ref = f"v{__version__}"  # a tag
    place = (
        f"{address.removeprefix('https://github.com/')}/blob/{ref}/notebooks/{source.stem}.ipynb"
    )
    badges = [
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{place})",
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src={address}/blob/{ref}/notebooks/{source.stem}.ipynb)",
    ]
    note = "Outputs below: drawn street scenes, tiny CLIP (`DATA` scenes, `PROFILE` cpu)"
    marks = {
        "# {{setup}}": (HERE / "setup_cell.py").read_text(encoding="utf-8").rstrip(),
        "{{badge}}": f"{' '.join(badges)}\n\n*{note}, version {__version__}; not CamVid.*",
        "{{repository}}": address,
        "{{ref}}": ref,
        "{{dependencies}}": '", "'.join(dependencies),
    }
    cells = []
    for number, cell in enumerate(jupytext.reads(source.read_text("utf-8"), "py:percent").cells):
        content = cell.source
        for mark, replacement in marks.items():
            content = content.replace(mark, replacement)
        new = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        cells.append(new(content, id=f"{source.stem[:2]}-{number:02d}"))
        if content.startswith("# @title"):
            cells[-1].metadata["cellView"] = "form"
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def code_digest(notebook: NotebookNode) -> str:
    """SHA-256 over all code cells but the setup, which names the version."""
    code = [x.source for x in notebook.cells if x.cell_type == "code"]
    code = [x for x in code if not x.startswith("# @title Setup")]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def with_outputs(notebook: NotebookNode, stored: Path) -> NotebookNode:
    """A notebook with the outputs in a file, of cells whose code is the same."""
    if stored.is_file():
        old = nbformat.read(stored, as_version=4)
        outputs = {x.source: x.outputs for x in old.cells if x.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = outputs.get(cell.source, [])
        if digest := old.metadata.get("outputs_of"):
            notebook.metadata["outputs_of"] = digest
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Execute a notebook in a folder with CHOICES; the outputs are added to its cells."""
    from nbclient import NotebookClient

    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        for key, value in CHOICES.items():
            if cell.source.startswith("# @title Choices"):
                cell.source = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value!r}", cell.source)
    client = NotebookClient(copy, timeout=1800, kernel_name="python3")
    client.execute(cwd=str(folder), env={**os.environ, "HF_HUB_OFFLINE": "1"})
    images = [
        buffer["data"]
        for model, state in client.widget_state.items()
        if state.get("_model_name") == "ImageModel"
        for buffer in client.widget_buffers.get(model, {}).values()
    ]
    for cell, done in zip(notebook.cells, copy.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = []
            for output in itertools.chain(*(stored(x, folder, images) for x in done.outputs)):
                if "text" in output and cell.outputs and "text" in cell.outputs[-1]:
                    cell.outputs[-1]["text"] += output["text"]  # printed at two times
                else:
                    cell.outputs.append(output)
    notebook.metadata["outputs_of"] = code_digest(notebook)
    return notebook


def stored(output: NotebookNode, folder: Path, images: list[str]) -> list[NotebookNode]:
    """What is kept of an output: see the top of this file."""
    if output.output_type == "stream":
        lines = output.text.replace(f"{folder}{os.sep}", "").splitlines(keepends=True)
        lines = [x for x in lines if not re.search(r"\d (ms|s|seconds)$", x.rstrip())]
        output.text = "".join(lines)
        return [output] if output.name == "stdout" and lines else []
    if "application/vnd.jupyter.widget-view+json" in output.data:
        return [nbformat.v4.new_output("display_data", {"image/png": small(x)}) for x in images]
    if len(output.data) > 1:
        output.data.pop("text/plain", None)
    if "image/png" in output.data:
        output.data["image/png"] = small(output.data["image/png"])
    return [output] if any(output.data.values()) else []


def small(png: str) -> str:
    """A PNG in base64 with few colours."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.thumbnail((WIDTH, 4 * WIDTH))
        few = image.convert("RGB").quantize(COLOURS, kmeans=2)
        few.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def text(notebook: NotebookNode) -> str:
    """What the file holds."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def problem(target: Path, notebook: NotebookNode) -> str:
    """What is wrong with a file, if anything."""
    if not target.is_file() or target.read_text(encoding="utf-8") != text(notebook):
        return f"{target.name}: not generated from the current source; run `make notebooks`"
    if notebook.metadata.get("outputs_of") != code_digest(notebook):
        return f"{target.name}: its outputs are of other code; run `make outputs`"
    return ""


def main() -> int:
    problems, option = [], sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(HERE.glob("0*.py")):
            target = source.with_suffix(".ipynb")
            notebook = with_outputs(generate(source), target)
            if option == "--check":
                problems.append(problem(target, notebook))
                continue
            if option == "--outputs":
                notebook = execute(notebook, Path(folder).resolve())
            target.write_text(text(notebook), encoding="utf-8")
    for line in filter(None, problems):
        print(line)
    return any(problems)


if __name__ == "__main__":
    sys.exit(main())
