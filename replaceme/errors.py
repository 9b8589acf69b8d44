"""The one exception that users see: a line that says what is wrong, where, and what to do."""


class ReplaceMeError(Exception):
    """Bad input or a bad environment; the command line prints the message alone and exits with 1."""
