"""A call of one op in one table, without its tensors: what a kernel is looked up and made for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import warn_of_function
from .._compile_service.kernel_compiler import KernelCompiler
from .._keys.call_template import CallTemplate
from .._keys.kernel_key import KernelKey
from .._keys.pattern_instances import size_class
from .._keys.schema import OpSchema
from .._native.op_kernel import NativeOp
from .._runner.kernel_runner import RELEASE_GIL_NUMEL
from .._store.entry import Entry
from .._store.stored_pattern import native_pattern
from ..config import config
from .counters import Counter, OpCounters
from .kernel import Kernel
from .key_state import Decline, Progress
from .original import OriginalKernel
from .table import Table, TableKey

if TYPE_CHECKING:
    from .._functions.description import Description, PythonFunction
    from .._keys.pattern_program import NativePattern

log = logging.getLogger("aoti_eager")


class Cache(Protocol):
    """What a call without a kernel needs of its op's kernel cache."""

    op: OpOverload
    schema: OpSchema
    dispatch_key: str
    original: OriginalKernel
    counters: OpCounters
    python_kernel: Callable[..., Any]
    lookup: Callable[[TableKey], Kernel | None]
    table: Table
    toolchain: KernelCompiler
    function: PythonFunction | None
    counts_writes: bool
    compares_always: bool
    native: NativeOp | None

    def run_failed(self, error: RuntimeError, keyset: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call whose library raised."""

    def describe_function(self) -> tuple[Description | None, list[Tensor]]:
        """Return the op's Python function as data, if it has one, and its constants."""

    def key_context(
        self, toolchain: KernelCompiler, function: Description | None
    ) -> Sequence[tuple[str, Any]]:
        """Return the components of the key besides arguments and settings."""


@dataclass(frozen=True, slots=True, eq=False)
class KernelRequest:
    """A call of one op in one table, without its tensors.

    Attributes:
        cache: The op's kernel cache.
        table: The op's table at the time of the call; a scope may have ended since.
        table_key: The call's key in the table.
        key: The canonical key, with the call's thread count.
        template: The call without its tensors.
        function: The user's function behind the op, as data.
        toolchain: The op's kernel compiler at the time of the call.
        words: The key in C++; ``None`` if it has none.
        numel: How many elements all inputs have together.
        device: The device of the first input that is not on the CPU; ``None`` if all are.
    """

    cache: Cache
    table: Table
    table_key: TableKey
    key: KernelKey
    template: CallTemplate
    function: Description | None
    toolchain: KernelCompiler
    words: bytes | None
    numel: int
    device: torch.device | None

    @property
    def threads(self) -> int:
        """Return the thread count of the call."""
        return int(dict(self.key.context)["threads"])

    @property
    def may_be_dynamic(self) -> bool:
        """Return whether dynamic kernels are made for the op."""
        return may_be_dynamic(self.cache, self.toolchain)

    @property
    def releases_gil(self) -> bool:
        """Return whether a library that serves the call releases the GIL."""
        return self.numel >= RELEASE_GIL_NUMEL

    @property
    def checks(self) -> bool:
        """Return whether a library's results are compared with the original's."""
        return bool(config.check) or self.cache.original.overridden

    def size(self, entry: Entry) -> int | None:
        """Return the call's size class, for which a dynamic specialisation is measured."""
        return None if entry.guards is None else size_class(self.key)

    def pattern(self, entry: Entry) -> NativePattern | None:
        """Return how C++ recognises the calls that share an entry's library with this one."""
        return native_pattern(self.cache.schema, entry, self.key)

    def decline(
        self,
        reason: str,
        message: str,
        count: Counter | None = None,
        *,
        is_dynamic: bool = False,
        entry: Entry | None = None,
        progress: Progress | None = None,
        is_counted_in_python: bool = False,
    ) -> Decline:
        """Decline the key in its table from now on; ``count`` replaces the reason's counter.

        With the ``entry`` of a dynamic specialisation, all calls of its size class are declined.
        """
        decline = Decline(
            reason,
            message,
            count or self.cache.counters.declined(reason),
            self.words,
            is_dynamic or (entry is not None and entry.guards is not None),
            None if entry is None else self.pattern(entry),
            progress,
            is_counted_in_python,
        )
        keep_decline(self.table, self.table_key, decline, self.key.op)
        return decline


def keep_decline(table: Table, key: TableKey, decline: Decline, op: str) -> None:
    """Decline a key in its table from now on, and say so."""
    table.decline(key, decline)
    log.info("%s: declined (%s): %s", op, decline.reason, decline.message)
    if decline.reason == "mutates_constant":
        warn_of_function(op, decline.message)


def may_be_dynamic(cache: Cache, toolchain: KernelCompiler) -> bool:
    """Return whether dynamic kernels are made for the op of ``cache``."""
    return cache.function is None and toolchain.works_in_background and cache.dispatch_key == "CPU"
