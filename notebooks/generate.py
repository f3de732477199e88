"""Makes the notebooks (.ipynb) from their sources (.py, percent format).

    python notebooks/generate.py            # write them
    python notebooks/generate.py --check    # exit 1 if one is not what its source gives

The source is what is edited. A cell `# {{badge}}` becomes the Colab badge and `# {{setup}}` the
content of setup_cell.py; the repository's address in both, and the versions that the setup cell
asks for, are those of pyproject.toml. Cells get fixed ids and no outputs, and the metadata is what
Colab needs to offer a T4.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent
METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def repository() -> str:
    """The public address of the repository, kept in pyproject.toml only."""
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://[^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('pyproject.toml: [project.urls] has no Repository = "https://..."')
    return found[1].rstrip("/")


def requirement(name: str) -> str:
    """A dependency with its range of versions, as in pyproject.toml."""
    text = (HERE.parent / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'^    "({re.escape(name)}[^a-z"][^"]*)",$', text, re.MULTILINE)
    if not found:
        raise SystemExit(f"pyproject.toml: no dependency {name}, which setup_cell.py asks for")
    return found[1]


def setup_cell() -> str:
    """The setup cell's content, its marks filled in."""
    text = (HERE / "setup_cell.py").read_text(encoding="utf-8")
    text = text.replace("{{repository}}", repository())
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda mark: requirement(mark[1]), text).rstrip()


def sources() -> list[Path]:
    """The six sources, in order."""
    return sorted(HERE.glob("0*.py"))


def generate(source: Path) -> str:
    """The notebook of a source, as the text of its .ipynb."""
    address = repository()
    name = f"{source.stem}.ipynb"
    colab = address.replace("https://github.com/", "https://colab.research.google.com/github/")
    badge = (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"({colab}/blob/main/notebooks/{name})"
    )
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    cells = []
    for number, cell in enumerate(notebook.cells):
        content = cell.source.replace("{{badge}}", badge)
        if content.strip() == "# {{setup}}":
            content = setup_cell()
        if "{{" in content:
            raise SystemExit(f"{source.name}: unknown mark in cell {number}: {content[:60]}")
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else None
        new = (make or nbformat.v4.new_markdown_cell)(content, id=f"{source.stem[:2]}-{number:02d}")
        if content.startswith("# @title"):
            new.metadata["cellView"] = "form"
        cells.append(new)
    made = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for source in sources():
        target = source.with_suffix(".ipynb")
        made = generate(source)
        if check:
            same = target.is_file() and target.read_text(encoding="utf-8") == made
            stale += [] if same else [target.name]
        else:
            target.write_text(made, encoding="utf-8")
    if stale:
        print(f"not as their sources say: {', '.join(stale)}; run `make notebooks`")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
