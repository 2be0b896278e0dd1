"""The exception for unusable input."""

MAX_MESSAGE = 500


class InputError(ValueError):
    """Input that cannot be used; the message is one full sentence that says what to change.

    The command line prints the message alone, without a traceback, and exits with status 2. Line feeds become blanks,
    and the middle of more than `MAX_MESSAGE` characters is left out, since a message may repeat a user's long text.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message).replace("\n", " ")
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE - 203]} … {text[-200:]}"
        super().__init__(text)
