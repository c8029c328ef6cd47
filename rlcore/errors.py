"""The one exception that is meant for the user: the command line prints its message as a single line, with no traceback."""


class UserError(Exception):
    """Bad input or a broken surrounding. The message says what happened, where, and what to do about it."""
