"""Which calls a stored dynamic specialisation serves, in Python and as C++ matches them."""

from __future__ import annotations

import struct

from .._keys.guards import Expression, Guards, match
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._keys.key_words import key_words, pattern_words
from .._keys.pattern_instances import (
    in_size_class,
    size_class,
)
from .._keys.pattern_program import NativePattern, pattern_program
from .._keys.schema import OpSchema
from .entry import Entry
from .store import StoredEntry


def serves(
    schema: OpSchema, found: StoredEntry, key: KernelKey, words: list[int] | None = None
) -> bool:
    """Return whether calls with ``key`` are instances of a stored pattern whose guards hold."""
    entry, threads = found.entry, dict(key.context)["threads"]
    if entry.guards is None:
        return False
    pattern = entry.key
    if dict(pattern.context)["threads"] == ANY_THREADS:
        pattern = pattern.with_threads(threads)
    if (pattern.op, pattern.dispatch_key) != (key.op, key.dispatch_key):
        return False
    if pattern.context != key.context:
        return False
    words = words or key_words(schema, key)
    general: list[Expression] | None = pattern_words(schema, pattern)
    return (
        words is not None
        and general is not None
        and match(words, general, entry.guards) is not None
    )


def native_pattern(schema: OpSchema, entry: Entry, key: KernelKey) -> NativePattern | None:
    """Return the pattern by which C++ matches calls of ``entry`` in the size class of ``key``.

    ``None`` if only Python can match the calls.
    """
    if entry.guards is None:
        return None
    pattern = entry.key.with_threads(dict(key.context)["threads"])
    words, size = pattern_words(schema, pattern), size_class(key)
    if words is None:
        return None
    guards = Guards(entry.guards.ranges, (*entry.guards.conditions, *in_size_class(pattern, size)))
    program = pattern_program(words, guards)
    if program is None:
        return None
    name = bytes.fromhex(entry.digest) + struct.pack("=q", size)
    return NativePattern(name, program)
