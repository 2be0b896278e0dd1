"""The exception for unusable input."""


class InputError(ValueError):
    """Input that cannot be used; the message is one full sentence that says what to change.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
