"""Checks a key that comes from a file, before other code trusts it."""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import WorkloadError
from .kernel_key import KernelKey

# An op's name becomes a directory's name: no slash, no dot at the beginning, and not too long.
OP = r"\w[\w.]*::\w[\w.]*"


LONGEST_OP = 200


_MOST_THREADS = 1 << 16


_CONTEXT = frozenset(
    {"default_dtype", "deterministic", "float32_matmul_precision", "original", "threads"}
)


def checked_key(value: Any) -> KernelKey:
    """Return the key that ``value``, decoded from JSON, describes.

    Raises:
        WorkloadError: ``value`` describes no key.
    """
    if not isinstance(value, dict):
        raise wrong(value, "an object", "key")
    op = value.get("op")
    if not isinstance(op, str) or not re.fullmatch(OP, op):
        raise wrong(op, "an op's name, aten::add.Tensor", "key.op")
    if len(op) > LONGEST_OP:
        raise wrong(op, f"a name of up to {LONGEST_OP} characters, not {len(op)}", "key.op")
    if not isinstance(value.get("dispatch_key"), str):
        raise wrong(value.get("dispatch_key"), "a dispatch key's name, CPU", "key.dispatch_key")
    for name in ("arguments", "context"):
        if not _is_pairs(value.get(name)):
            raise wrong(value.get(name), "a list of [name, value]", f"key.{name}")
    context = dict(value["context"])
    if not context.keys() >= _CONTEXT:
        missing = ", ".join(sorted(_CONTEXT - context.keys()))
        raise wrong(value["context"], f"it to have {missing}, too", "key.context")
    threads = context["threads"]
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise wrong(threads, "a number of threads", "key.context.threads")
    key = KernelKey.from_json(value)
    try:
        _ = key.digest
    except (ValueError, RecursionError) as error:
        raise wrong(value, "JSON without NaN", "key") from error
    return key


def _is_pairs(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    )


def wrong(got: object, wanted: str, name: str = "") -> WorkloadError:
    try:
        text = got if isinstance(got, str) else json.dumps(got)
    except RecursionError:
        text = "too deep"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return WorkloadError(f"{name and f'{name} '}is {text or 'empty'}; wanted {wanted}")
