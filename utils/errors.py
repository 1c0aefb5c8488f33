"""The one exception for mistakes that a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in settings, files or folders.

    The message gives the value, the rule and the remedy. The scripts print it without a traceback and exit with code 2;
    ``--debug`` shows the traceback.
    """


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Ends the program with the message of a UserError and code 2; with debug the traceback is shown instead."""
    try:
        yield
    except UserError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
