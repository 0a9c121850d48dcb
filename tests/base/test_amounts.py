"""Sizes and ages as people write them."""

from __future__ import annotations

import pytest

from aoti_eager._base.amounts import parse_age, parse_size, size_in_words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (1234, 1234),
        ("1234", 1234),
        ("0", 0),
        ("5G", 5 << 30),
        ("5g", 5 << 30),
        (" 5 GiB ", 5 << 30),
        ("5GB", 5 * 10**9),
        ("1.5K", 1536),
        ("2M", 2 << 20),
        ("3T", 3 << 40),
        ("7B", 7),
    ],
)
def test_a_size_is_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "5X", "5 G G", "-1", -1, "1e9", "5iB", 1.5, None, True, "9" * 30, "9999999T"]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="wants bytes, or text such as 500M or 5G"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "age"),
    [("30m", 1800), ("12h", 43200), ("7d", 604800), ("1.5d", 129600), ("2w", 1209600), ("5s", 5)],
)
def test_an_age_is_seconds(text: str, age: float) -> None:
    assert parse_age(text) == age
    assert parse_age(age) == age


@pytest.mark.parametrize(
    "text",
    ["", "7", "d", "7 years", "-1d", -1, None, False, float("nan"), float("inf"), "9" * 18 + "w"],
)
def test_what_is_no_age_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="wants an age such as 30m, 12h or 7d"):
        parse_age(text)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_a_size_in_words(size: int, words: str) -> None:
    assert size_in_words(size) == words
