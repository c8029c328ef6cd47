"""The one exception that is meant for the user, and the hint that many of its messages end with.

The command line prints the message as a single line, with no traceback.
"""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Bad input or a broken surrounding. The message says what happened, where, and what to do about it."""


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for a mistyped name: `; did you mean 'x'?`, or the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
