"""The one exception that means: the input is at fault, not the program."""

__all__ = ["InputError"]


class InputError(Exception):
    """Bad input, told in one line: what is wrong, where, and how to mend it.

    The command line prints the message and leaves with exit code 1; everything else that is
    raised is a defect and keeps its traceback.
    """
