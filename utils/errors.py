"""The one exception for mistakes that a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in settings, files or folders.

    The message gives the value, the rule and the remedy. The scripts print it without a traceback and exit with code 2;
    ``--debug`` shows the traceback.
    """

    shows_traceback = False  # whether ``reported`` shows the traceback in any case: ``debug`` of an experiment file


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Ends the program with the message of a UserError and code 2, or after Ctrl-C with 130; debug: with the traceback."""
    try:
        yield
    except UserError as error:
        if debug or error.shows_traceback:
            raise
        sys.stderr.write(f"error: {_plain(str(error))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("stopped by Ctrl-C\n")
        sys.exit(130)


def _plain(message: str) -> str:
    """The message itself where torch has wrapped what a worker process raised: "Caught ... Original Traceback ..."."""
    return message.rpartition(f"{UserError.__name__}: ")[2].rstrip() if message.startswith("Caught ") else message
