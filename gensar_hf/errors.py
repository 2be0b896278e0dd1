"""The exception for unusable input, and how its message shows a value."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_SHOWN = 100
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = _MAX_SHOWN
_BRIEF.maxlevel = _BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 3

MAX_MESSAGE = 500


class InputError(ValueError):
    """Input that cannot be used; the message is one full sentence that says what to change.

    The command line prints the message alone, without a traceback, and exits with status 2. Line feeds become blanks,
    and the middle of more than `MAX_MESSAGE` characters is left out, since a message may repeat a user's long text.
    """

    def __init__(self, message: object = "") -> None:
        text = " ".join(str(message).encode("utf-8", "backslashreplace").decode("utf-8").splitlines())
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE - 203]} … {text[-200:]}"
        super().__init__(text)


def shown(value: object) -> str:
    """A value as a message shows it: its `repr` on one line, cut to 100 characters however large the value is.

    >>> shown("films" * 1000)
    "'filmsfilmsfilmsfilmsfilmsfilmsfilmsfilmsfilmsf...msfilmsfilmsfilmsfilmsfilmsfilmsfilmsfilmsfilms'"
    """
    try:
        text = " ".join(map(str.strip, _BRIEF.repr(value).splitlines()))
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


@contextmanager
def extra_installed(extra: str) -> Iterator[None]:
    """Report a missing package as an extra to install.

    Raises:
        InputError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"This needs the package {error.name}, which is not installed; install the extra with "
            f"`pip install 'gensar-hf[{extra}]'`."
        ) from None
