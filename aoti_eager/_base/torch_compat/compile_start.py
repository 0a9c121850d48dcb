"""Tells when ``torch.compile`` begins to compile, without importing what compiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

# The list of functions to call at a compile's start lives in this module, which has no public name.
_CALLBACKS = "torch._dynamo.callback"
_DYNAMO = "torch._dynamo."

_told: list[Callable[[], None]] = []


class _ImportWatch:
    """A finder of modules that finds none: it sees Dynamo being imported.

    It stays in ``sys.meta_path``: to take a finder out while another thread imports something would
    hide a module from that thread.
    """

    is_registered = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Find nothing; register with Dynamo as soon as the module with the callbacks is there."""
        if not self.is_registered and name.startswith(_DYNAMO):
            self.register()

    def register(self) -> bool:
        """Return whether Dynamo tells of compiles."""
        handler = getattr(sys.modules.get(_CALLBACKS), "callback_handler", None)
        if handler is not None and not self.is_registered:
            self.is_registered = True
            handler.register_start_callback(_tell)
        return self.is_registered


_watch = _ImportWatch()


def _tell(args: Any) -> None:
    for one in list(_told):
        one()


def on_compile_start(tell: Callable[[], None]) -> Callable[[], None]:
    """Have ``tell`` called before each compile of Dynamo's; return the function that ends that."""
    _told.append(tell)
    if not _watch.register() and _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)

    def end() -> None:
        if tell in _told:
            _told.remove(tell)

    return end
