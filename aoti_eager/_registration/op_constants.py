"""List and update the tensors that an op's Python function closes over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._base.op_names import find_overload, no_op
from .._base.torch_compat.dispatcher import OpOverload, OpOverloadPacket
from .._functions.op_functions import function_of
from .._keys.schema import qualified_name
from .._native.passthrough import passthrough
from .._runner import constants as library_constants
from ..errors import ConstantError, UnknownConstantError


def constants(
    op: str | OpOverload | OpOverloadPacket, dispatch_key: str = "CPU"
) -> dict[str, Tensor]:
    """Return the constants of an op that ``torch.library.custom_op`` made, by name.

    A constant is a tensor that the op's function closes over or finds among its globals, or a
    parameter or buffer of a ``torch.nn`` module there (``linear.weight``). Kernels are keyed by
    the metadata of constants and read their values in each call: change them in place, or bind
    another tensor, as you would without us.

    Args:
        op: The op's qualified name, ``"mylib::scale"``, or its overload or packet.
        dispatch_key: The dispatch key of the function.

    Returns:
        The function's own tensors, no copies.

    Raises:
        UnknownOpError: There is no op of that name.
        RegistrationError: ``op`` is no op.
        UnsupportedFunctionError: Its function cannot be sent to the compile worker; the message
            names what it uses.
    """
    overload = _overload(op)
    function = function_of(overload, dispatch_key)
    if function is None:
        return {}
    description, tensors = function.describe()
    return dict(zip((name for name, _ in description.constants), tensors, strict=True))


def update_constants(
    op: str | OpOverload | OpOverloadPacket,
    values: Mapping[str, Tensor],
    dispatch_key: str = "CPU",
) -> None:
    """Copy new values into constants of an op; nothing is compiled again.

    Args:
        op: As for ``constants``.
        values: Tensors by the names that ``constants`` gives; sizes and dtype must be those of the
            constant. Any device; they are copied.
        dispatch_key: The dispatch key of the function.

    Raises:
        UnknownOpError: There is no op of that name.
        UnsupportedFunctionError: As for ``constants``.
        UnknownConstantError: There is no such constant.
        ConstantError: A tensor has another dtype or other sizes; nothing was updated.
    """
    name = qualified_name(_overload(op))
    own = constants(op, dispatch_key)
    for one, value in values.items():
        if one not in own:
            raise UnknownConstantError(
                f"{name}: has no constant {one!r}{library_constants.near(one, list(own))}", (one,)
            )
        target = own[one]
        if value.dtype != target.dtype or value.shape != target.shape:
            raise ConstantError(
                f"{name}: constant {one!r} is {target.dtype} {tuple(target.shape)}, got "
                f"{value.dtype} {tuple(value.shape)}; bind a new tensor to its name instead, and "
                "the next call compiles for it",
                (one,),
            )
    with passthrough(), torch.no_grad():
        for one, value in values.items():
            own[one].copy_(value)


def _overload(op: str | OpOverload | OpOverloadPacket) -> OpOverload:
    if isinstance(op, str):
        return find_overload(op)
    if isinstance(op, OpOverloadPacket):
        return op.default
    if not isinstance(op, OpOverload):
        raise no_op(op)
    return op
