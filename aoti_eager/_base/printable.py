"""Makes text from files and other machines safe to print: terminals obey escape sequences."""

from __future__ import annotations

# Characters that lay out text in several lines and do nothing else.
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


def shortened(text: str, most: int) -> str:
    """Return ``text`` with at most ``most`` characters; of a longer text, beginning and end stay.

    Args:
        text: Any text.
        most: Number of characters, at least 64.
    """
    if len(text) <= most:
        return text
    left_out = f" [... {len(text)} characters ...] "
    kept = most - len(left_out)
    return text[: kept // 2] + left_out + text[len(text) - (kept - kept // 2) :]


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
