"""JSON values and their digests, which name keys, environments and files."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# A value made of None, bool, int, str, list and dict, which json.dumps takes.
Component = Any


def json_digest(values: Component) -> str:
    """Return the SHA-256 of ``values`` as canonical JSON, 64 hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
