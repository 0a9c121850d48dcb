"""The settings of Inductor that a compile worker uses: the script's own, and ours."""

from __future__ import annotations

from typing import Any

from .._base.cpu import Target
from .._base.torch_compat.settings import INDUCTOR_CONFIG, inductor_settings
from ..errors import CompileError


def code_options(target: Target, threads: int) -> dict[str, Any]:
    """Return Inductor's settings by dotted name; the script's own settings win.

    Args:
        target: The instruction set to compile for.
        threads: The thread count that code may use.

    Raises:
        CompileError: The script has set a value that JSON has not.
    """
    settings = inductor_settings()
    for name, value in settings.items():
        if not isinstance(value, str | int | float | bool | None):
            raise CompileError(
                "setting_not_portable",
                f"{INDUCTOR_CONFIG}.{name} is {value!r}, which cannot be sent to the "
                "compile worker",
                remember=False,
            )
    ours: dict[str, Any] = {
        "cpp.threads": threads,
        # Elements per thread; Inductor's 512 cost more to hand out than to compute.
        "cpp.min_chunk_size": 4096,
        # Otherwise each library has debug tables that take three megabytes and half a second.
        "aot_inductor.enable_line_tables": False,
    }
    if target.march != "native":
        ours["cpp.march"] = target.march
    return {**ours, **settings}
