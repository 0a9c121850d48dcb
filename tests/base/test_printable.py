"""What is printed is shown by a terminal, and not obeyed."""

from __future__ import annotations

import logging
import sys
import unicodedata
import warnings

import pytest

from aoti_eager._base import warn_once as warn_once_module
from aoti_eager._base.printable import printable, printable_lines
from aoti_eager._commands.columns import align
from aoti_eager.errors import AotiEagerWarning

HOSTILE = "\x1b]0;owned\x07\x9b2J\x7f\u202egnp.exe\u2066\u200b\ud800"
SHOWN = r"\x1b]0;owned\x07\x9b2J\x7f\u202egnp.exe\u2066\u200b\ud800"


def test_what_a_terminal_would_obey_becomes_an_escape() -> None:
    assert printable(HOSTILE) == printable_lines(HOSTILE) == SHOWN
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable_lines("a\nb\tc\rd") == "a\nb\tc\\rd"


def test_letters_of_every_alphabet_stay() -> None:
    for text in ("aten::add.Tensor", "größer", "层归一化", "слой", "ἀριθμός", "→ ±2 µs", ""):
        assert printable(text) == printable_lines(text) == text


def test_no_control_or_format_character_is_left() -> None:
    """Every character that Unicode has."""
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            assert printable(character).isascii()
            assert printable(character).isprintable()


def test_a_table_is_even_where_a_cell_has_escapes() -> None:
    rows = [("op", "n"), ("a\x1b[2J", "1"), ("b\n", "22")]
    assert align(rows, left=(0,)) == ["op         n", "a\\x1b[2J   1", "b\\n       22"]


def test_a_warning_and_the_log_show_escapes(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(AotiEagerWarning) as caught:
        warn_once_module.warn_once("test", f"path {HOSTILE}")
    assert str(caught[0].message) == f"aoti_eager: path {SHOWN}"
    logging.getLogger("aoti_eager").warning("%s of %d", HOSTILE, 3)
    assert caplog.messages == [f"{SHOWN} of 3"]
    with pytest.raises(TypeError):  # Said by the handler, as without us; pytest's raises.
        logging.getLogger("aoti_eager").warning("%d", "no number")


def test_a_warning_that_cannot_be_shown_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The script has closed its standard error, say: that is no error of a call."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("I/O operation on closed file")

    warn_once_module.forget_warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", fail)
        warn_once_module.warn_once("test", "originals run instead")
    assert "originals run instead" in caplog.text
