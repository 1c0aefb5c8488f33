"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in settings, files or folders.

    The message gives the value, the rule and the remedy. The scripts print it without a traceback and exit with code 2;
    ``--debug`` shows the traceback.
    """
