"""The exception for unusable input, and how its message shows a value."""

import functools
import inspect
import numbers
import reprlib
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

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


def types_checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a public function so that arguments are of the types of its annotations; see `check_type`."""

    @functools.cache  # at the first call, when all names in annotations are known
    def signature() -> inspect.Signature:
        return inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        parameters = signature().parameters
        for name, value in signature().bind(*args, **kwargs).arguments.items():
            if parameters[name].kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                check_type(name, value, parameters[name].annotation)
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: object, annotation: Any) -> None:
    """Compare an argument with its annotation. What a list or a dictionary holds is not looked at.

    Raises:
        InputError: another type, or none of the values of a `Literal`.
    """
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        raise InputError(f"`{name}` must be one of {', '.join(map(repr, get_args(annotation)))}; got {shown(value)}.")
    kinds = _kinds(annotation)
    if not isinstance(value, kinds):
        names = [{numbers.Real: "number", type(None): "None"}.get(kind, kind.__name__) for kind in kinds]
        raise InputError(f"`{name}` must be of type {' or '.join(names)}; got {shown(value)}.")


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The classes that an annotation allows."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return sum(map(_kinds, get_args(annotation)), ())
    if origin is Literal:
        return tuple({type(value) for value in get_args(annotation)})
    kind = type(None) if annotation is None else origin or annotation
    if kind in (int, float):
        return (numbers.Real,)  # those of NumPy as well
    return (kind,) if isinstance(kind, type) and kind not in (Any, inspect.Parameter.empty) else (object,)


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
