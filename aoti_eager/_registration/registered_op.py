"""One overload's kernels in the dispatcher: Python's, and C++'s above it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload
from .._compile_service import native_path
from .._dispatch.kernel_cache import KernelCache
from .._native import library as native_library
from ..config import config
from ..errors import NativePathError

if TYPE_CHECKING:
    from .._autograd.differentiable import Differentiable


class Installed:
    """One overload's kernel in the dispatcher, shared by the registrations that hold it."""

    def __init__(self, op: OpOverload, cache: KernelCache) -> None:
        self._op = op
        self.cache = cache
        self.library: torch.library.Library | None = None
        self.holders: dict[object, bool] = {}  # a registration's token -> enabled
        self.gradients: Differentiable | None = None  # of a composite op

    def set_holder(self, holder: object, enabled: bool | None) -> None:
        """Apply what a registration wants: served, disabled, or ``None`` if it is gone."""
        if enabled is None:
            self.holders.pop(holder, None)
        else:
            self.holders[holder] = enabled
        self.cache.set_enabled(any(self.holders.values()))

    def install(self, above: KernelCache | None, *, native: bool = True) -> None:
        """Put the kernels into the dispatcher: Python's, and C++'s above it if there is one.

        Args:
            above: Our other kernel for the same op and key, if one is registered already.
            native: Whether C++ may serve.
        """
        if native:
            _attach_native(self.cache, above)  # first: it takes the original from the dispatcher
        self.library = dispatcher.new_library(self.cache.schema.op.partition("::")[0])
        try:
            install(self.library, self._op, self.cache)
            if not _install_native(self.cache):
                # Python serves the hits: without the stub, which generates the kernel at a miss.
                dispatcher.destroy(self.library)
                self.library = dispatcher.new_library(self.cache.schema.op.partition("::")[0])
                install(self.library, self._op, self.cache)
        except BaseException:
            # The kernel may be in the dispatcher all the same: impl warns after it has registered.
            self.uninstall()
            self.cache.detach_native()
            raise

    def uninstall(self) -> None:
        """Take the kernels out of the dispatcher; no call of the op may run."""
        if self.cache.native is not None:
            self.cache.native.uninstall()  # first: it is above
        if self.library is not None:
            dispatcher.destroy(self.library)
            self.library = None

    def switch_to_native(self) -> None:
        """Put C++'s kernel above Python's, if that was registered before the hit path was loaded.

        This is done only if nobody else has registered anything for the op since, because the order
        of registrations is their choice.
        """
        function = self.cache.function
        if self.cache.native is not None or (function is not None and not function.is_constant):
            return
        if self.library is None or not dispatcher.is_ours(
            torch.library.get_kernel(self._op, self.cache.dispatch_key)
        ):
            return
        self.uninstall()
        try:
            self.install(None)
        except NativePathError:
            self.install(None, native=False)  # Registrations hold the op and rely on it.
            raise


def install(library: torch.library.Library, op: OpOverload, cache: KernelCache) -> None:
    """Register the Python kernel of ``cache`` in ``library``."""
    if cache.native is None:
        cache.generate()
    with warnings.catch_warnings():
        # PyTorch warns that a kernel is overridden, which is what was asked for.
        warnings.simplefilter("ignore")
        library.impl(  # type: ignore[no-untyped-call]
            op, cache.python_kernel, cache.dispatch_key, with_keyset=True
        )


def _attach_native(cache: KernelCache, above: KernelCache | None) -> None:
    if config.native == "0" or not native_library.is_loaded():
        return
    try:
        cache.attach_native(above)
    except NativePathError as error:
        native_path.failed(error)


def _install_native(cache: KernelCache) -> bool:
    """Return whether what is registered stands: C++'s kernel above Python's, or Python's alone."""
    if cache.native is None:
        return True
    try:
        cache.native.install()
    except NativePathError as error:
        cache.detach_native()
        native_path.failed(error)
        return False
    return True
