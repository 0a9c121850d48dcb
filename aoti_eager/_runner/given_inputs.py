"""Checks the inputs of a run, and says in words what a library found wrong with one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError, LibraryRunError
from .container import Container
from .model_container import ModelContainer
from .tensor_handles import dtype_of_number, has_own_data


def check_given(
    name: str, container: Container, device: torch.device, inputs: list[Tensor], *, in_full: bool
) -> None:
    """Raise if a container cannot run on ``inputs``.

    Args:
        name: The library's name, for messages.
        container: The loaded library.
        device: The device that the library runs on.
        inputs: The inputs of a run.
        in_full: Whether to check dtypes, sizes and strides where the library does not (a thin one).

    Raises:
        InputError: Number, device or kind of the inputs are wrong, or one has no data.
        InputTypeError: An input is no tensor.
    """
    names = container.input_names
    if len(inputs) != len(names):
        raise InputError(
            f"{name}: got {len(inputs)} inputs; {len(names)} are wanted: {', '.join(names)}"
        )
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(
                f"{name}: input {index} ({names[index]}) is {type(tensor).__name__}; a tensor is "
                "wanted"
            )
        problem = _kind_problem(tensor, device)
        if problem is not None:
            raise InputError(f"{name}: input {index} ({names[index]}) {problem}")
    if in_full and isinstance(container, ModelContainer):
        problem = container.input_problem(inputs)
        if problem is not None:
            raise InputError(f"{name}: {problem}")


def _kind_problem(tensor: Tensor, device: torch.device) -> str | None:
    """Return why C code cannot read a tensor on ``device``, or ``None``."""
    # A 0-dim CPU tensor stands for a number on every device.
    if tensor.device != device and not (tensor.device.type == "cpu" and tensor.dim() == 0):
        return f"is on {tensor.device}; the runner is on {device}"
    plain = tensor.layout is torch.strided and not tensor.is_nested
    if not plain or tensor.is_conj() or tensor.is_neg():
        return "is no plain strided tensor; resolve its layout, conj or neg first"
    if not has_own_data(tensor):
        return f"has no data of its own ({type(tensor).__name__}); a plain tensor is wanted"
    return None


def raise_in_words(name: str, names: Sequence[str], error: LibraryRunError) -> NoReturn:
    """Raise what a failed run of a library raises.

    Args:
        name: The library's name.
        names: The names of the inputs.
        error: The error of the run.

    Raises:
        InputError: The library complains about an input.
        LibraryRunError: It complains about something else; this is ``error``.
    """
    problem = input_problem(names, error.library_message)
    if problem is not None:
        raise InputError(f"{name}: {problem}") from error
    raise error


def input_problem(names: Sequence[str], message: str) -> str | None:
    """Return a library's complaint about an input, with the input's name and dtypes in words.

    Args:
        names: The names of the inputs.
        message: What the library said.

    Returns:
        ``None`` if the library complains about something else.
    """
    if not message.startswith("input_handles["):
        problem, _, where = message.partition("\nError in op: ")
        # The message does not say which input.
        return f"an input: {problem}" if where == "input" else None
    index, _, problem = message.removeprefix("input_handles[").partition("]: ")
    name = names[int(index)] if index.isdigit() and int(index) < len(names) else "?"
    if problem.startswith("unmatched dtype"):
        dtypes = [dtype_of_number().get(int(n)) for n in re.findall(r": (\d+)", problem)]
        if len(dtypes) == 2 and None not in dtypes:
            problem = f"has dtype {dtypes[1]}; {dtypes[0]} is wanted"
    elif problem.startswith("dim value is too small"):
        problem += (
            "; the library was compiled for a range that begins there (a dynamic dim begins at "
            "2; aot_inductor.check_lowerbound=False at the compile lifts that)"
        )
    return f"input {index} ({name}): {problem}"
