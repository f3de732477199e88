"""Exceptions that end a command with one line instead of a traceback."""

START_OVER = "start over with fresh=True"


class InputError(Exception):
    """The input is wrong; the message says what is wrong, where, and how to fix it.

    Messages speak of arguments of the Python API. The command line prints them in one line, with
    the flags of these arguments, and exits with code 1. Any other exception is a defect and keeps
    its traceback.
    """


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; it resumes from its last checkpoint.

    Attributes:
        signal: the signal's number; a command exits with 128 plus it.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal
