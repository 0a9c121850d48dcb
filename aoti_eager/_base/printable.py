"""Text from files and other machines, made safe to print: a terminal obeys escape sequences."""

from __future__ import annotations

# They lay out what is printed in several lines, and do nothing else.
_LAYOUT = frozenset("\n\t")


def printable(text: str) -> str:
    r"""Return ``text`` as one line that a terminal shows and does not obey.

    Control characters, bidirectional controls, lone surrogates and every other character that
    ``str.isprintable`` refuses become escapes as in a Python literal, ``\x1b``. Letters of every
    alphabet stay.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """Return ``text`` as ``printable`` does, but keep its line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(c if c in _LAYOUT else _shown(c) for c in text)


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
