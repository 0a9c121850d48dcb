"""Load the library of an entry as the kernel of a call."""

from __future__ import annotations

from typing import Any

from .._base.handover import let_others_run
from .._compile_service.cache_context import CacheContext
from .._keys.call_template import call_template
from .._keys.kernel_key import ANY_THREADS
from .._keys.pattern import number_arguments
from .._keys.schema import Kind
from .._store.store import StoredEntry
from ..config import config
from .kernel import Kernel
from .kernel_request import KernelRequest
from .recheck import LIMIT_NUMEL, Recheck


def load(call: KernelRequest, found: StoredEntry, context: CacheContext) -> Kernel:
    """Return the kernel of a ready entry; calls share the library of a dynamic specialisation.

    Raises:
        RunnerError: The library cannot be loaded.
        StoreError: The library is not the one that was stored, or there is no memory for a copy.
        OSError: There is no space for a copy.
    """
    entry = found.entry

    def load_library() -> Any:
        with context.store_of(found).sealed_library(found) as library:
            let_others_run()
            return call.toolchain.load(library, entry, numel=call.numel, device=call.device)

    if entry.guards is None:
        runner = load_library()
    else:
        runner = call.table.dynamic.kernels.runner(entry, call.releases_gil, load_library)
    let_others_run()
    schema = call.cache.schema
    plain = all(
        argument.kind is Kind.TENSOR and isinstance(component, dict) and "dtype" in component
        for argument, (_, component) in zip(schema.arguments, call.key.arguments, strict=True)
        if argument.is_tensor
    )
    parallel = dict(entry.key.context)["threads"] != ANY_THREADS
    kernel = Kernel(schema, runner, entry.outputs, plain=plain, parallel=parallel, words=call.words)
    kernel.certified = bool(config.certified)  # The miss has asked the certificates.
    kernel.is_dynamic = entry.guards is not None
    if kernel.is_dynamic:
        kernel.take_numbers(call_template(schema, call.key, number_arguments(entry.key)))
    let_others_run()
    kernel.pattern = call.pattern(entry)
    let_others_run()
    # A dynamic specialisation is shared with calls of other sizes.
    is_small = call.numel <= LIMIT_NUMEL or kernel.is_dynamic or call.cache.compares_always
    if is_small and call.toolchain.works_in_background and call.cache.dispatch_key == "CPU":
        Recheck(call, entry).attach(kernel)
    return kernel
