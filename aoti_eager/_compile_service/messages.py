"""What all messages between a script and its compile worker share: a version, checked fields.

A worker is started from the files that are installed at that moment, and the script may have
started before an upgrade. So both sides check what they read: a message of another version, or of
another form, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from .._base.printable import printable, shortened
from .._keys.kernel_key import KernelKey
from .._store.environment import CODE_VERSION

# Raise this number when a field of a request or of a reply changes its meaning.
MESSAGE_VERSION = 3
# Most characters of a refused value that an error repeats.
_LONGEST_VALUE = 100
# What a number of 400 digits, or a list in a list in a list, raises.
_TOO_LARGE = (OverflowError, RecursionError)

Document = dict[str, Any]
T = TypeVar("T")


class MessageError(ValueError):
    """A message lacks a field, has a field of a wrong kind, or comes from another version."""


def version() -> str:
    """Return the version of this process's messages, of its generated code, and of torch.

    A worker of another version would make a library that is stored under the wrong environment.
    """
    return f"{MESSAGE_VERSION}, code {CODE_VERSION}, torch {torch.__version__}"


class Fields:
    """The fields of a JSON object, read one by one and checked.

    Args:
        document: The object, decoded.
        what: What the object is, for errors.

    Raises:
        MessageError: ``document`` is no object.
    """

    def __init__(self, document: object, what: str) -> None:
        if not isinstance(document, dict):
            raise MessageError(f"{what} is {_shown(document)}; an object is wanted")
        self._document = document
        self._what = what

    @classmethod
    def of_message(cls, document: object, what: str) -> Fields:
        """Return the fields of a message that this version of the package has written.

        Raises:
            MessageError: ``document`` is no object, or comes from another version.
        """
        fields = cls(document, what)
        theirs = fields.read("version", text)
        if theirs != version():
            raise MessageError(
                f"{what} comes from version {_shown(theirs)}; this is version {version()!r}"
            )
        return fields

    def read(self, name: str, read: Callable[[Any], T]) -> T:
        """Return the value of one field.

        Args:
            name: The field.
            read: Returns the value from its JSON form; raises where the form is wrong.

        Raises:
            MessageError: There is no such field, or its value is of another kind.
        """
        if name not in self._document:
            raise MessageError(f"{self._what} has no {name!r}")
        value = self._document[name]
        try:
            return read(value)
        except (LookupError, TypeError, ValueError, AttributeError, *_TOO_LARGE) as error:
            problem = shortened(str(error), 2 * _LONGEST_VALUE)
            raise MessageError(
                f"{self._what}: {name} is {_shown(value)}, of another kind: {problem}"
            ) from error

    def optional(self, name: str, read: Callable[[Any], T]) -> T | None:
        """Return the value of one field that may be null; see ``read``."""
        return self.read(name, lambda value: None if value is None else read(value))


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except RecursionError:
        return "too deep"
    return printable(shortened(shown, _LONGEST_VALUE))


def text(value: object) -> str:
    """Return ``value``, a string.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError("a string is wanted")
    return value


def flag(value: object) -> bool:
    """Return ``value``, true or false.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError("true or false is wanted")
    return value


def whole(value: object) -> int:
    """Return ``value``, an integer.

    Raises:
        TypeError: It is none.
    """
    if type(value) is not int:
        raise TypeError("an integer is wanted")
    return value


def number(value: object) -> float:
    """Return ``value``, a finite number, as a float.

    Raises:
        TypeError: It is none.
    """
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise TypeError("a finite number is wanted")
    return float(value)  # type: ignore[arg-type]


def path(value: object) -> Path:
    """Return the path that ``value``, a string, spells.

    Raises:
        TypeError: It is no string.
    """
    return Path(text(value))


def document(value: object) -> Document:
    """Return ``value``, an object.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, dict):
        raise TypeError("an object is wanted")
    return value


def many(read: Callable[[Any], T]) -> Callable[[object], tuple[T, ...]]:
    """Return a reader of lists whose items ``read`` reads; it raises ``TypeError`` for no list."""

    def items(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise TypeError("a list is wanted")
        return tuple(read(item) for item in value)

    return items


def kernel_key(value: object) -> KernelKey:
    """Return the key that ``value`` describes.

    Raises:
        TypeError, ValueError, KeyError: It describes none.
    """
    key = KernelKey.from_json(document(value))
    text(key.op), text(key.dispatch_key)
    whole(dict(key.context)["threads"])
    return key


def pattern(value: object) -> KernelKey:
    """Return the pattern of a dynamic kernel that ``value`` describes.

    Raises:
        TypeError, ValueError, KeyError: It describes none.
    """
    found = KernelKey.from_json(document(value))
    text(found.op), text(found.dispatch_key)
    return found
