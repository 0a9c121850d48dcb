"""The entry's format: what was written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aoti_eager._base.digest import json_digest
from aoti_eager._keys.guards import Guards
from aoti_eager._keys.kernel_key import KernelKey
from aoti_eager._store.entry import (
    FORMAT_VERSION,
    Entry,
    Library,
    Remembered,
    Status,
    decode,
    encode,
)
from aoti_eager._store.environment import Environment
from aoti_eager.errors import CacheFormatError, EntryDamagedError

from ..support.entries import make_entry

property_test = hypothesis_settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

ENTRY = make_entry(library=Library(4, "ab" * 32))
DOCUMENT = encode(ENTRY)

names = st.text(max_size=8)
leaves = st.none() | st.booleans() | st.integers() | names
components = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
pairs = st.dictionaries(names, components, max_size=3).map(lambda d: tuple(sorted(d.items())))
texts = st.dictionaries(names, names, max_size=3).map(lambda d: tuple(sorted(d.items())))
entries = st.builds(
    Entry,
    status=st.sampled_from(Status),
    key=st.builds(KernelKey, op=names, dispatch_key=names, arguments=pairs, context=pairs),
    environment=st.builds(Environment, components=pairs),
    target=names,
    requires=st.frozensets(names, max_size=4),
    outputs=st.lists(st.dictionaries(names, components, max_size=2), max_size=3).map(tuple),
    calls_aten=st.booleans(),
    checked=st.booleans(),
    library=st.none() | st.builds(Library, size_bytes=st.integers(0), sha256=names),
    reason=st.none() | names,
    message=st.none() | names,
    provenance=texts,
    guards=st.none() | st.just(Guards({"s0": (2, 64)}, (["==", ["%", "s0", 4], 0],))),
    remembered=st.none() | st.builds(Remembered, at=st.integers(), compiler=st.none() | names),
)


def document_of(outer: Any) -> bytes:
    """Return ``outer`` in the form in which entries are written."""
    return (json.dumps(outer, indent=1, sort_keys=True) + "\n").encode()


def signed(payload: Any) -> bytes:
    """Return a document with ``payload`` whose digest is right."""
    return document_of(
        {"format": FORMAT_VERSION, "sha256": json_digest(payload), "payload": payload}
    )


def parsed() -> dict[str, Any]:
    outer: dict[str, Any] = json.loads(DOCUMENT)
    return outer


# --- what was written ----------------------------------------------------------------------------


@given(entries)
@property_test
def test_what_was_encoded_is_what_is_decoded(entry: Entry) -> None:
    document = encode(entry)
    assert decode(document) == entry
    assert encode(decode(document)) == document


def test_a_document_is_the_same_whatever_order_its_entry_was_made_in() -> None:
    reordered = make_entry(
        library=Library(4, "ab" * 32),
        requires=frozenset(["fma", "avx2"]),
        provenance=tuple(reversed(ENTRY.provenance)),
    )
    assert encode(reordered) == DOCUMENT


def test_a_document_is_text_that_a_person_can_read() -> None:
    lines = DOCUMENT.decode("ascii").splitlines()
    assert parsed()["format"] == FORMAT_VERSION == 1
    assert '  "status": "ready",' in lines


def dynamic_payload(**fields: Any) -> dict[str, Any]:
    """Return the payload of an entry of a dynamic specialisation, with ``fields`` changed."""
    payload: dict[str, Any] = parsed()["payload"]
    payload["key"]["arguments"][0][1]["sizes"] = ["s0", ["*", "s0", 8]]
    payload["guards"] = {"ranges": {"s0": [2, 4096]}, "conditions": [["<", "s0", 9]]}
    return {**payload, **fields}


def test_guards_come_back() -> None:
    entry = decode(signed(dynamic_payload()))
    assert entry.guards == Guards({"s0": (2, 4096)}, (["<", "s0", 9],))
    assert decode(encode(entry)) == entry
    assert '"ranges": {' in encode(entry).decode()
    assert decode(DOCUMENT).guards is None


@pytest.mark.parametrize(
    "guards",
    [
        None,
        {},
        {"ranges": {}, "conditions": []},  # The key has a symbol without a range.
        {"ranges": {"s0": [2, 4096]}, "conditions": [["<", "s1", 9]]},
        {"ranges": {"s0": [2, 4096]}, "conditions": [["~", "s0"]]},
        {"ranges": {"s0": ["2", 4096]}, "conditions": []},
    ],
)
def test_guards_that_are_none_make_the_entry_a_damaged_one(guards: Any) -> None:
    with pytest.raises(EntryDamagedError):
        decode(signed(dynamic_payload(guards=guards)))


@pytest.mark.parametrize("size", [["**", "s0", 2], ["*", "s0"], [], None, 2.5, {"a": 1}])
def test_sizes_that_are_no_expressions_make_the_entry_a_damaged_one(size: Any) -> None:
    payload = dynamic_payload()
    payload["key"]["arguments"][0][1]["sizes"] = ["s0", size]
    with pytest.raises(EntryDamagedError):
        decode(signed(payload))


def test_a_remembered_failure_says_when_it_was_met_and_with_what() -> None:
    failed = make_entry(status=Status.DECLINED, remembered=Remembered(1_700_000_000, "g++-12"))
    payload = json.loads(encode(failed))["payload"]
    assert payload["remembered"] == {"at": 1_700_000_000, "compiler": "g++-12"}
    assert decode(encode(failed)) == failed
    # One that an older version wrote has no such field, and is written as it was.
    assert "remembered" not in parsed()["payload"]
    assert decode(DOCUMENT).remembered is None


def test_an_older_version_reads_a_remembered_failure() -> None:
    """It takes the fields it knows, and the form is that of what it read."""
    document = encode(make_entry(status=Status.DECLINED, remembered=Remembered(7, None)))
    outer = json.loads(document)
    assert (outer["format"], outer["sha256"]) == (1, json_digest(outer["payload"]))
    assert document_of(outer) == document


@pytest.mark.parametrize(
    "remembered",
    [
        None,
        7,
        [],
        {},
        {"at": 7},
        {"compiler": "g++"},
        {"at": "7", "compiler": None},
        {"at": 7.5, "compiler": None},
        {"at": True, "compiler": None},
        {"at": 7, "compiler": 12},
    ],
)
def test_a_failure_that_was_met_at_no_time_is_damage(remembered: Any) -> None:
    payload = {**parsed()["payload"], "remembered": remembered}
    with pytest.raises(EntryDamagedError, match="lacks a field"):
        decode(signed(payload))


# --- what was not --------------------------------------------------------------------------------


def refusal(position: int, value: int) -> type[Exception]:
    """Return what a document is refused with whose byte at ``position`` became ``value``.

    A digit in the place of the format's number or just before it makes it that of a newer one.
    """
    number = DOCUMENT.index(b'"format": 1') + len(b'"format": ')
    newer = (position == number and value in b"23456789") or (
        position == number - 1 and value in b"123456789"
    )
    return CacheFormatError if newer else EntryDamagedError


def test_no_change_of_one_byte_is_taken_for_an_entry() -> None:
    """A garbled record is known when it is read."""
    for position, byte in enumerate(DOCUMENT):
        for changed in {byte ^ 1, byte ^ 0x20, byte ^ 0x80, ord(" "), ord("9"), ord("\n")} - {byte}:
            document = DOCUMENT[:position] + bytes([changed]) + DOCUMENT[position + 1 :]
            with pytest.raises(refusal(position, changed)):
                decode(document)


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(0, 255))
@property_test
def test_no_byte_may_become_any_other(position: int, value: int) -> None:
    """A garbled record is known when it is read."""
    document = DOCUMENT[:position] + bytes([value]) + DOCUMENT[position + 1 :]
    if document == DOCUMENT:
        assert decode(document) == ENTRY
        return
    with pytest.raises(refusal(position, value)):
        decode(document)


def test_no_truncated_document_is_taken_for_an_entry() -> None:
    """A truncated record is known when it is read."""
    for length in range(len(DOCUMENT)):
        with pytest.raises(EntryDamagedError):
            decode(DOCUMENT[:length])


@pytest.mark.parametrize("added", [b" ", b"\n", b"\0", b"{}", DOCUMENT])
def test_a_document_with_something_behind_it_is_damaged(added: bytes) -> None:
    with pytest.raises(EntryDamagedError):
        decode(DOCUMENT + added)


@given(st.binary(max_size=64))
@example(b"")
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf{}")
@example(b"9" * 5000)
@example(b"[" * 100_000)
@example(b'{"format":' * 100_000)
@property_test
def test_garbage_is_damaged(document: bytes) -> None:
    with pytest.raises(EntryDamagedError):
        decode(document)


@pytest.mark.parametrize(
    "outer",
    [
        None,
        1,
        "entry",
        [],
        {},
        {"format": None},
        {"format": "1"},
        {"format": 1.0},
        {"format": True},
        {"format": 1},
        {"format": 1, "payload": None, "sha256": json_digest(None)},
        {"format": 1, "payload": [], "sha256": json_digest([])},
        {"format": 1, "payload": {}, "sha256": None},
        {"format": 1, "payload": {}, "sha256": json_digest({})},
    ],
)
def test_a_document_that_is_no_entry_is_damaged(outer: Any) -> None:
    with pytest.raises(EntryDamagedError):
        decode(document_of(outer))


@pytest.mark.parametrize("format_", [0, -1])
def test_a_format_that_never_was_is_damaged(format_: int) -> None:
    with pytest.raises(EntryDamagedError, match="never was"):
        decode(document_of({**parsed(), "format": format_}))


@pytest.mark.parametrize("format_", [2, 99, 10**30])
def test_a_newer_format_is_refused_before_anything_else_is_read(format_: int) -> None:
    for outer in (
        {"format": format_},
        {"format": format_, "sha256": 5, "payload": "of another kind"},
        {**parsed(), "format": format_, "more": [None]},
    ):
        with pytest.raises(CacheFormatError, match=f"has format {format_}; this version reads up"):
            decode(json.dumps(outer).encode())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_damage(number: float) -> None:
    outer = parsed()
    outer["payload"]["message"] = number
    for sha256 in (outer["sha256"], None, "missing"):
        changed = {**outer, "sha256": sha256}
        if sha256 == "missing":
            del changed["sha256"]
        with pytest.raises(EntryDamagedError):
            decode(document_of(changed))


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 950, 985, 990, 995, 1000, 5000, 200_000])
def test_deep_nesting_is_damage_and_no_recursion_error(depth: int) -> None:
    """The reader and the writer of JSON give up at different depths."""
    nested = b"[" * depth + b"]" * depth
    for sha256 in (b'"x"', b"null"):
        with pytest.raises(EntryDamagedError):
            decode(b'{"format":1,"payload":{"key":' + nested + b'},"sha256":' + sha256 + b"}")


@pytest.mark.parametrize("depth", [100, 300, 400, 600, 800])
def test_deep_nesting_with_a_right_digest_is_no_recursion_error(depth: int) -> None:
    payload = parsed()["payload"]
    nested: Any = []
    for _ in range(depth):
        nested = [nested]
    payload["surplus"] = nested
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    outer = f'{{"format":1,"payload":{canonical},"sha256":"{json_digest(payload)}"}}'
    with pytest.raises(EntryDamagedError):
        decode(outer.encode())


@pytest.mark.parametrize("field", sorted(parsed()["payload"]))
def test_a_missing_field_is_damage(field: str) -> None:
    payload = parsed()["payload"]
    del payload[field]
    with pytest.raises(EntryDamagedError, match="lacks a field"):
        decode(signed(payload))


@given(
    st.sampled_from([(field,) for field in sorted(parsed()["payload"])])
    | st.sampled_from(
        [("key", f) for f in ("op", "dispatch_key", "arguments", "context")]
        + [("library", "size_bytes"), ("library", "sha256")]
    ),
    components,
)
@property_test
def test_a_wrong_field_under_a_right_digest_is_damage_or_an_entry(
    path: tuple[str, ...], value: Any
) -> None:
    payload = parsed()["payload"]
    inner = payload
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    try:
        entry = decode(signed(payload))
    except EntryDamagedError:
        return
    assert isinstance(entry, Entry)


def test_an_unknown_status_is_damage() -> None:
    payload = parsed()["payload"]
    payload["status"] = "excellent"
    with pytest.raises(EntryDamagedError, match="excellent"):
        decode(signed(payload))
