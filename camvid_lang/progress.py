"""Progress bars: plain text everywhere, since stored widgets keep notebooks from being shown."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

__all__ = ["progress"]


def progress(iterable: Iterable | None = None, **options) -> tqdm:
    """A `tqdm` text bar with the time left; the options are tqdm's.

    In a notebook it writes to standard output, as standard error is shown on red, and seldom, as
    an exported page keeps every line.
    """
    shell = sys.modules.get("IPython")
    notebook = shell is not None and hasattr(shell.get_ipython(), "kernel")
    suited = {"file": sys.stdout, "mininterval": 5} if notebook else {"mininterval": 1}
    return tqdm(iterable, **{**suited, **options})
