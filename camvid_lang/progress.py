"""Progress bars: plain text everywhere, since stored widgets keep notebooks from being shown."""

import io
import sys
from collections.abc import Iterable

from tqdm import tqdm

__all__ = ["progress"]


class _NotebookBar(tqdm):
    """A text bar in a notebook that replaces itself: an exported page keeps its last line only."""

    def __init__(self, *args, **options):
        from IPython.display import display

        self._shown = display({"text/plain": ""}, raw=True, display_id=True)
        super().__init__(*args, **{"ncols": 105, **options, "file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        self._shown.update({"text/plain": str(self) if msg is None else msg}, raw=True)


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """A `tqdm` text bar with the time left; the options are tqdm's."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and hasattr(shell.get_ipython(), "kernel")
    bar = _NotebookBar if notebook else tqdm
    return bar(iterable, **{"mininterval": 1, **options})
