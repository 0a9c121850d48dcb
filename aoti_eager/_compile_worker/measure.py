"""Times a call served, declined and with the original, in a child of a fork server.

The compile worker has started the server (``fork_server``), so the caller's process is not delayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._base.torch_compat import settings as torch_settings
from .._functions.call_target import call_target, is_constant
from .._keys.call_template import call_template
from .._keys.kernel_key import KernelKey
from .._native import build as native_build
from .._native import library as native_library
from ..config import config
from . import fork_server
from .measured_call import MeasuredCall, NotMeasuredError


def serve() -> None:
    """Measure libraries until standard input ends; see ``fork_server``."""
    fork_server.serve(_measure)


def _measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``times``: for each of the request's ``libraries`` the times by hit path."""
    key = KernelKey.from_json(request["key"])
    target, schema = call_target(key.op, request["function"], request["schema"])
    context = dict(key.context)
    torch.set_default_dtype(getattr(torch, context["default_dtype"]))
    torch_settings.set_deterministic_algorithms(context["deterministic"])
    torch.set_float32_matmul_precision(context["float32_matmul_precision"])
    torch.set_num_threads(request["threads"])
    config.mode = "cache_only"
    config.untested_torch = "1"  # Who asks for times has asked whether this torch may serve.
    numbers = request.get("numbers") or ()
    template = call_template(schema, key, numbers)
    native = None
    if request["function"] is None or is_constant(request["function"]):
        # The library that the caller has, or that it may have later.
        if request["native"] is not None:
            native = native_library.read(Path(request["native"][0]), request["native"][1])
        else:
            native = native_build.find(Path(request["toolchain"]), None)
        if native is not None:
            native_library.load(native)
    function = None if request["function"] is None else request["schema"]
    measured = MeasuredCall(target, template, function)
    for library in request["libraries"]:
        measured.add(library)
    # An op that the C++ path serves needs no times of Python's path.
    paths = [] if native is not None and request["is_native"] else ["python"]
    paths += [] if native is None else ["native"]
    try:
        return {"times": measured.times(paths)}
    except NotMeasuredError as error:
        return {"reason": "unmeasured", "message": str(error), "remember": False}
