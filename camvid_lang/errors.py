"""The one exception that means that the input is at fault, and what can be told in one line."""

import unicodedata

START_OVER = "start over with --fresh (in a notebook: untick RESUME)"

__all__ = [
    "InputError",
    "is_printable",
]


class InputError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints the message and leaves with exit code 1; everything else that is
    raised is a defect and keeps its traceback.
    """


def is_printable(text: str) -> bool:
    """Whether a text can be shown and written anywhere: no control characters, no line breaks, no
    bytes of a file name that are no UTF-8. Spaces of all widths are let be: macOS writes them.
    """
    return all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)
