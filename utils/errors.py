"""The one exception for mistakes that a user can mend."""

import difflib
import errno
import io
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

CTRL_C, TRY_AGAIN = 130, 75  # codes to leave with: of shells after SIGINT; EX_TEMPFAIL of sysexits.h after a scheduler's signal
SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)  # who asks for the place of a command
_LONGEST, _LONGEST_WORD = 4000, 100  # letters of a message; of a word that is compared with known ones


class UserError(ValueError):
    """A mistake in settings, files or folders.

    The message gives the value, the rule and the remedy. The scripts print it without a traceback and exit with code 2;
    ``--debug`` shows the traceback.
    """

    def __init__(self, message: str) -> None:
        """A value in the message may have any length; what is very long is cut in its middle."""
        long = len(message) > _LONGEST
        super().__init__(f"{message[: _LONGEST // 3]} … {message[-_LONGEST // 2 :]}" if long else message)

    shows_traceback = False  # whether ``reported`` shows the traceback in any case: ``debug`` of an experiment file


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question to append to an error message, or the words of otherwise when no known word is near, regardless of case.

    Typing errors rarely change the first letter: a word that begins otherwise has to be very like the known one.
    """
    by_lower = {name.lower().lstrip("-"): name for name in known}
    typed = word[:_LONGEST_WORD].lower().lstrip("-–—")
    for near in difflib.get_close_matches(typed, by_lower, n=3, cutoff=0.6):
        if near[:1] == typed[:1] or difflib.SequenceMatcher(None, typed, near).ratio() >= 0.8:
            return f"; did you mean {by_lower[near]}?"
    return otherwise


def printable(text: str) -> str:
    """Text in which is spelled out what a terminal would obey (control characters) or no font has (bytes that are no letters).

    Ends of lines and tabs stay.
    """
    return re.sub(r"[^\n\t -~\xa0-\ud7ff\ue000-\U0010ffff]", lambda found: repr(found[0])[1:-1], text)


def is_full(error: OSError) -> bool:
    """Whether it says that the disc is full; numpy forgets why it wrote less than it should."""
    forgotten = error.errno is None and "requested and" in str(error)
    return forgotten or error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reported(debug: bool, again: str = "") -> Iterator[None]:
    """Ends the program with the message of a UserError and code 2, after Ctrl-C with 130, after a scheduler's signal with 75.

    debug: with the traceback. again: what running the command again would do. What packages warn of is logged.
    """
    logging.captureWarnings(True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of an older cluster, which may know no µ; and names may be of any bytes
            stream.reconfigure(errors="backslashreplace")
    try:
        with _giving_way(again):
            try:
                yield
            except ImportError as error:  # what some libraries make of a signal that comes as they are loaded
                if isinstance(error.__cause__, KeyboardInterrupt | SystemExit):
                    raise error.__cause__ from None
                raise
    except UserError as error:
        if debug or error.shows_traceback:
            raise
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(2)
    except MemoryError as error:
        if debug or UserError.shows_traceback:
            raise
        why = f" ({error})" if str(error) else ""
        how = "end other programs, or give this one more (--debug shows where)"
        sys.stderr.write(printable(f"error: memory does not suffice{why}; {how}\n"))
        sys.exit(2)
    except OSError as error:  # what the system refuses, such as a full disc or a name that is too long
        if debug or UserError.shows_traceback:
            raise
        where = f"{error.filename}: " if error.filename else ""
        what = f"{error.strerror or error} (--debug shows where)"
        if is_full(error):
            what = "the disc is full; make room and run the command again"
        sys.stderr.write(printable(f"error: {UserError(where + what)}\n"))
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write(f"stopped by Ctrl-C{again}\n")
        sys.exit(CTRL_C)


@contextmanager
def _giving_way(again: str) -> Iterator[None]:
    """A scheduler's signal ends the program as Ctrl-C does: what is half-written is removed, what is kept is kept."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.stderr.write(f"stopped by {signal.Signals(number).name}{again}\n")
        sys.exit(TRY_AGAIN)

    mine = threading.current_thread() is threading.main_thread()  # no other thread hears signals
    before = {number: signal.signal(number, leave) for number in SCHEDULERS} if mine else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
