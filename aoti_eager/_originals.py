"""The public names where this torch lacks a private name that the package needs: originals run.

Nothing here imports another room but ``_base``'s warnings and the errors, so nothing here can fail
for the same cause. Calls that would put kernels into the dispatcher put none.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from ._base.warn_once import warn_once
from .errors import CustomOpError, UnsupportedTorchError


def explain_once(missing: str) -> None:
    """Warn, once in a process, that nothing is served, and why."""
    warn_once(
        "untested_torch",
        f"torch {torch.__version__} was never checked with this package, and lacks {missing}: "
        "originals run; install a torch that was checked (python -m aoti_eager doctor names them)",
    )


class Registration:
    """A registration of no op; also a context manager."""

    def __init__(self, dispatch_key: str) -> None:
        self.dispatch_key = dispatch_key
        self.ops: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}

    def disable(self) -> None:
        """Do nothing: originals run."""

    def enable(self) -> None:
        """Do nothing: originals run."""

    def unregister(self) -> None:
        """Do nothing: nothing is registered."""

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class FusionReport:
    """The report of a model that is not fused; also a context manager."""

    regions = ()

    def undo(self) -> None:
        """Do nothing: nothing was changed."""

    def __str__(self) -> str:
        return "nothing is fused: this torch lacks a name that aoti_eager needs"

    def __enter__(self) -> FusionReport:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class CustomOp:
    """An operator of a function that consists of the function's own ops, gradients included."""

    def __init__(
        self, name: str, function: Callable[..., Any], mutates_args: Any, schema: str | None
    ) -> None:
        if schema is None:
            try:
                schema = torch.library.infer_schema(function, mutates_args=mutates_args)
            except ValueError as error:
                raise CustomOpError(f"{name}: {error}") from error
        namespace, _, local = name.partition("::")
        self.name, self.__wrapped__ = name, function
        self._library = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
        self._library.define(f"{local}{schema}")  # type: ignore[no-untyped-call]
        # Autograd, torch.func and fakes see the ops that the function calls.
        self._library.impl(local, function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        self.op = getattr(getattr(torch.ops, namespace), local).default

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator."""
        return self.op(*args, **kwargs)

    def register_fake(self, fake: Callable[..., Any], /) -> Callable[..., Any]:
        """Return ``fake``, which is not needed: the function's ops have fakes."""
        return fake

    def register_autograd(self, backward: Callable[..., Any], /, **options: Any) -> None:
        """Refuse: the function's own ops decide on gradients here.

        Raises:
            CustomOpError: Always.
        """
        raise CustomOpError(
            f"{self.name}: register_autograd needs a torch that aoti_eager was checked with"
        )

    def unregister(self) -> None:
        """Take the operator out of PyTorch."""
        del self._library  # With it, torch drops the operator.


def custom_op(
    name: str,
    function: Callable[..., Any] | None = None,
    /,
    *,
    mutates_args: Any = (),
    schema: str | None = None,
    **options: Any,
) -> Any:
    """Make an operator of a function; arguments as in the package's ``custom_op``."""

    def make(function: Callable[..., Any]) -> CustomOp:
        return CustomOp(name, function, mutates_args, schema)

    return make if function is None else make(function)


def fuse(target: Any, **options: Any) -> Any:
    """Return a report for a module, and for a function, one that calls it."""
    if isinstance(target, torch.nn.Module):
        return FusionReport()

    @functools.wraps(target)
    def called(*args: Any, **kwargs: Any) -> Any:
        return target(*args, **kwargs)

    called.report = FusionReport()  # type: ignore[attr-defined]
    return called


def register(ops: Any, dispatch_key: str = "CPU") -> Registration:
    """Return a registration of no op."""
    return Registration(dispatch_key)


def stats() -> dict[str, Any]:
    """Return nothing: no call is counted."""
    return {}


def registered_ops() -> list[str]:
    """Return nothing: no op is registered."""
    return []


def wait(*arguments: Any, **options: Any) -> bool:
    """Return at once: nothing is compiled."""
    return True


def use(*arguments: Any, **options: Any) -> contextlib.AbstractContextManager[None]:
    """Return a block in which nothing is served."""
    return contextlib.nullcontext()


def _nothing(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


impl = enable = disable = mark_dynamic = mark_static = unmark = _nothing


def standing_in(name: str) -> Any:
    """Return what stands in for a public name.

    Raises:
        UnsupportedTorchError: Nothing can: the name is about libraries, and none can be had.
    """
    found = globals().get(name)
    if found is None:
        raise UnsupportedTorchError(
            f"aoti_eager.{name}: needs a torch that this package was checked with; this is torch "
            f"{torch.__version__}"
        )
    return found
