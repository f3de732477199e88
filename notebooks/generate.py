"""Generate the notebooks (.ipynb) from their sources (.py, percent format).

    python notebooks/generate.py            # write them
    python notebooks/generate.py --check    # exit with 1 if one differs from its source

Edit the sources only. A cell `# {{setup}}` becomes setup_cell.py and `{{badge}}` the link to Colab;
the repository's address and the dependencies in them are those of pyproject.toml. Cells have fixed
ids and no outputs; the metadata asks Colab for a T4.
"""

import ast
import re
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
REF = "main"  # the branch or tag that the notebooks clone
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


def generate(source: Path) -> str:
    """The text of the .ipynb that belongs to a source."""
    address, dependencies = project()
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    target = f"{colab}/blob/{REF}/notebooks/{source.stem}.ipynb"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    marks = {
        "# {{setup}}": (HERE / "setup_cell.py").read_text(encoding="utf-8").rstrip(),
        "{{badge}}": f"[![Open in Colab]({image})]({target})",
        "{{repository}}": address,
        "{{ref}}": REF,
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
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    stale = []
    for source in sorted(HERE.glob("0*.py")):
        target, text = source.with_suffix(".ipynb"), generate(source)
        if "--check" not in sys.argv:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            stale.append(target.name)
    if stale:
        print(f"{', '.join(stale)}: not generated from the current source; run `make notebooks`")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
