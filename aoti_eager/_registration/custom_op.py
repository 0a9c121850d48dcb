"""Functions of the user's own as PyTorch operators, compiled, cached and differentiable."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .._base.op_library import new_op_library
from .._base.torch_compat import dispatcher
from .._base.torch_compat.dispatcher import OpOverload
from .._functions.description import PythonFunction
from .._functions.op_functions import define, forget
from .._keys.schema import op_schema
from ..errors import CustomOpError
from . import registry
from .op_gradients import OpGradients
from .op_kernels import implement
from .op_results import with_checked_results
from .registry import Registration

_made: dict[str, CustomOp] = {}


def custom_op(
    name: str,
    function: Callable[..., Any] | None = None,
    /,
    *,
    mutates_args: str | Iterable[str] = (),
    device_types: str | Sequence[str] | None = None,
    schema: str | None = None,
    tags: Sequence[torch.Tag] | None = None,
) -> Any:
    """Make a PyTorch operator of a function; a decorator, as ``torch.library.custom_op`` is.

    The operator is ``torch.ops.<namespace>.<name>``. Its calls on the CPU are served by kernels
    that are compiled from the function, forward and backward; where none serves, the function
    itself runs. ``torch.compile``, ``torch.export`` and ``torch.func`` see the operator, or what
    the function consists of.

    Args:
        name: ``"mylib::rms_norm"``: a namespace of your own, and the operator's name.
        function: The function, if this is not used as a decorator. It computes its results from
            its arguments by torch's functions and returns new tensors.
        mutates_args: Names of the arguments that the function writes to; ``"unknown"`` for all
            tensors.
        device_types: Types of the devices that the operator is for, ``"cpu"``; ``None`` for all.
        schema: ``"(Tensor x, float eps=1e-6) -> Tensor"``; inferred from the annotations if absent.
        tags: As for ``torch.library.Library.define``.

    Raises:
        CustomOpError: The name has no namespace, or another function has it; an annotation is
            missing, or no schema can have it (``torch.library.infer_schema``'s own words).

    Source: torch.library.custom_op, whose signature this is.
    """

    _checked_name(name)

    def make(function: Callable[..., Any]) -> CustomOp:
        return CustomOp(name, function, mutates_args, device_types, schema, tags or ())

    return make if function is None else make(function)


def made_op(name: str, module: str) -> CustomOp:
    """Return the operator of a name; its module is imported if the operator does not exist yet.

    Pickles of operators call this, also those of ``torch.save`` and of a DataLoader's workers.

    Args:
        name: Its qualified name, ``"mylib::rms_norm"``.
        module: Name of the module that defines its function.

    Raises:
        CustomOpError: The module cannot be imported, or its import makes no such operator.
    """
    if name not in _made:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CustomOpError(
                f"{name}: is not in this process, and {module!r}, which defines it, cannot be "
                f"imported ({error}); make it by custom_op before it is unpickled"
            ) from error
    if name not in _made:
        raise CustomOpError(
            f"{name}: is not in this process, and importing {module!r} does not make it; call "
            "custom_op where that module is imported: not in a function, and not under "
            "if __name__ == '__main__'"
        )
    return _made[name]


# Pickles contain this name, and must stay readable when files move.
made_op.__module__ = "aoti_eager"


class _NamesItsOverload(type):
    """Metaclass of a class that torch's functions refuse: they quote what to pass instead."""

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__qualname__}'; pass its overload, op.op>"


class CustomOp(metaclass=_NamesItsOverload):
    """An operator made by ``custom_op``; calling it calls ``torch.ops.<namespace>.<name>``.

    A copy of an operator is the operator itself, and a pickle has its name. So a module that keeps
    an operator can be copied, saved and sent to another process.

    Attributes:
        name: Its qualified name.
        op: Its overload, for functions that take one: ``torch.library.opcheck``, ``explain``.

    Raises:
        CustomOpError: As ``custom_op``, which makes it.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        mutates_args: str | Iterable[str],
        device_types: str | Sequence[str] | None,
        schema: str | None,
        tags: Sequence[torch.Tag],
    ) -> None:
        if not isinstance(function, types.FunctionType):
            raise CustomOpError(
                f"{name}: is made of a {type(function).__name__}; a function that is defined with "
                "def is wanted, and all else by keyword"
            )
        namespace = _checked_name(name)
        if schema is None:
            try:
                schema = torch.library.infer_schema(function, mutates_args=mutates_args)
            except ValueError as error:
                raise CustomOpError(f"{name}: {error}") from error
        _release_older(name, function)
        self.name = name
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.__module__, self.__qualname__ = function.__module__, function.__qualname__
        self.__wrapped__ = function
        self._source = PythonFunction(lambda: function, fixed=True)
        self._library = new_op_library(namespace)
        self._registration: Registration | None = None
        self._gradients: OpGradients | None = None
        self._gone = ""
        try:
            self.op: OpOverload = define(
                self._library, name, schema, self._source, tags=tuple(tags)
            )
            known = op_schema(self.op)
            run = with_checked_results(name, known, function)
            implement(self._library, self.op, known, run, function, device_types)
            if dispatcher.has_computed_kernel(name, "CPU"):
                self._registration = registry.register(self.op)
            self._gradients = OpGradients(
                self.op,
                known,
                self._source,
                run,
                function,
                may_be_compiled=self._registration is not None,
            )
        except BaseException:
            self._release("could not be made")
            raise
        _made[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator.

        Raises:
            CustomOpError: The operator was taken out, or another version of its function has its
                place.
            CustomOpResultError: The function has returned what an operator cannot: an argument, a
                view, no tensor, or another number of results than its schema has.
        """
        return self.op(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<CustomOp {self.name}>"

    def __copy__(self) -> CustomOp:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CustomOp:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if _made.get(self.name) is not self:
            raise CustomOpError(f"{self.name}: cannot be pickled, by its name: {self._gone}")
        return made_op, (self.name, str(self.__module__))

    def register_autograd(
        self,
        backward: Callable[..., Any],
        /,
        *,
        setup_context: Callable[..., Any] | None = None,
    ) -> None:
        """Differentiate the operator by ``backward`` instead, as ``torch.library`` has it.

        The backward function runs as it is; make an operator of it to have it compiled.

        Args:
            backward: ``(ctx, *gradients) -> gradients`` of all arguments, ``None`` for those
                without one.
            setup_context: ``(ctx, inputs, output) -> None``, which keeps what ``backward`` needs.

        Raises:
            RuntimeError: The operator writes to an argument, or returns one.
        """
        if self._gradients is not None:
            self._gradients.remove()
        torch.library.register_autograd(
            self.name, backward, setup_context=setup_context, lib=self._library
        )

    def register_fake(self, fake: Callable[..., Any], /) -> Callable[..., Any]:
        """Use ``fake`` for sizes and dtypes of results, if tracing the function is not enough.

        Args:
            fake: Takes the operator's arguments, fake tensors among them, and returns results
                without data: sizes, strides, dtypes and devices count.

        Returns:
            ``fake``, so that this is a decorator.
        """
        torch.library.register_fake(self.name, fake, lib=self._library, allow_override=True)
        return fake

    def unregister(self) -> None:
        """Take the operator out of PyTorch; a second call does nothing.

        Not while other threads call it: PyTorch's dispatcher crashes on that.
        """
        if _made.get(self.name) is self:
            del _made[self.name]
            self._release("was taken out by unregister(); make it again by custom_op")

    def _release(self, why: str) -> None:
        """Take the operator out of the dispatcher; no call of it may run.

        Args:
            why: What a call says from now on, and what to do instead.
        """
        self._gone = why
        if self._gradients is not None:
            self._gradients.remove()
        if self._registration is not None:
            self._registration.unregister()
            self._registration = None
        forget(self.name)
        dispatcher.destroy(self._library)
        name = self.name

        def gone(*args: Any, **kwargs: Any) -> Any:
            raise CustomOpError(f"{name}: {why}")

        self.op = gone  # type: ignore[assignment]


def _checked_name(name: str) -> str:
    """Return the namespace of a qualified name.

    Raises:
        CustomOpError: ``name`` is no qualified name that an operator can have.
    """
    if not isinstance(name, str):
        raise CustomOpError(
            f'got {name!r} for the operator\'s name: @custom_op("namespace::name") is wanted'
        )
    namespace, separator, local = name.partition("::")
    if not separator or not namespace.isidentifier() or not local.isidentifier():
        raise CustomOpError(
            f"{name!r} is no name of an operator: namespace::name is wanted, mylib::rms_norm"
        )
    if namespace in ("aten", "prim", "prims"):
        raise CustomOpError(f"{name!r}: the namespace {namespace} is PyTorch's; take one of yours")
    return namespace


def _release_older(name: str, function: types.FunctionType) -> None:
    """Let a function take the place of its earlier version: notebooks define functions again.

    Raises:
        CustomOpError: Another function has the name.
    """
    older = _made.get(name)
    if older is None:
        return
    before = older.__wrapped__
    names = [(one.__module__, one.__qualname__) for one in (before, function)]
    # One definition can make several functions of the same code, each with another closure.
    is_sibling = before.__code__ is function.__code__ and before is not function
    if names[0] != names[1] or is_sibling:
        raise CustomOpError(
            f"{name}: is already the function {'.'.join(names[0])}, and {'.'.join(names[1])} "
            "would take its place; give one of them another name, or unregister() the older one"
        )
    code = function.__code__
    older._release(
        f"was defined anew since ({code.co_filename}, line {code.co_firstlineno}), and this is the "
        "older one; call the newer one, which its custom_op returned: it is also "
        f"torch.ops.{name.replace('::', '.')}"
    )
    del _made[name]
