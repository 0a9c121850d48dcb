"""One call, timed with the original and with libraries in turn, made as a script makes it.

The op is registered for each round and taken out again, so that both sides are as in a script: one
with our kernels, hit path included, and one without.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from .._autograd.differentiable import is_differentiable, signature_of
from .._autograd.kernel import AutogradKernel
from .._base.sealed_library import sealed_file
from .._base.torch_compat import dispatcher
from .._dispatch.kernel import Kernel
from .._dispatch.kernel_cache import KernelCache
from .._dispatch.key_state import Decline
from .._dispatch.table import TableKey
from .._dispatch.tensor_copies import copy_tensor
from .._functions.gradient import GradientFunction
from .._keys.call_template import CallTemplate
from .._keys.key_words import native_key
from .._keys.schema import Kind, OpSchema
from .._registration.registered_op import Installed
from .._runner.kernel_runner import RELEASE_GIL_NUMEL, LibraryRunner
from ..config import config
from .input_ranges import matrix_scales
from .made_up_data import made_up_input
from .measured_step import MeasuredStep
from .rounds import Side, waited_ns

_MOST_CALLS = 200
# A round counts if no thread of ours waited for a core: the script runs at the same time, and a
# parallel region that waits takes a thousand times as long as one that does not. If too few rounds
# count, the fastest rounds are taken.
_QUIET_ROUNDS, _LEAST_QUIET_ROUNDS = 12, 4
_QUIET_SHARE = 0.05
_BUDGET_NS = 150_000_000
_MOST_NS = 1_000_000_000
# An argument that the op writes to changes with each call, and must keep values that a script may
# have.
_MOST_CALLS_WRITING = 8

Times = dict[str, dict[str, float | bool]]


class NotMeasuredError(Exception):
    """Our kernel was not entered or did not serve, or the times say nothing about it."""


class MeasuredCall:
    """One call, timed with the original and with libraries in turn.

    ``function`` is the schema of the user's function behind the op, in words, if there is one.
    """

    def __init__(self, target: Any, template: CallTemplate, function: str | None) -> None:
        self._template = template
        self._schema = template.schema
        self._mutates = any(slot.mutated for slot in template.slots)
        torch.manual_seed(0)
        tape = getattr(target, "tape", None)
        scales = {} if tape is None else matrix_scales(tape, template.slots)
        self._fresh = [
            made_up_input(slot, "normal", i, scales.get(i, 1.0))
            for i, slot in enumerate(template.slots)
        ]
        self._constants = self._fresh[len(self._fresh) - template.constants :]
        self._function: Callable[..., Any] | None = None
        self._function_library: torch.library.Library | None = None
        self._op = target if function is None else self._define(target, function)
        self._cache = KernelCache(self._op, "CPU")
        self._cache.miss = self._miss  # type: ignore[method-assign]
        self._installed = Installed(self._op, self._cache)
        self._words = native_key(self._schema, template.key)
        self._kernels: list[Kernel] = []
        self._current: Kernel | None = None
        self._call: Callable[..., Any] = self._op
        self._step: MeasuredStep | None = None
        if isinstance(self._function, GradientFunction):
            self._step = MeasuredStep(self._function, self._op, self._arguments()()[0])

    def add(self, library: Mapping[str, Any]) -> None:
        """Measure this library, too: ``path``, ``sha256``, ``outputs`` and ``calls_aten``."""
        numel = sum(tensor.numel() for tensor in self._fresh)
        with sealed_file(Path(library["path"]), library["sha256"]) as copy:
            runner = LibraryRunner(
                copy,
                calls_aten=library["calls_aten"],
                release_gil=numel >= RELEASE_GIL_NUMEL,
                native=True,
            )
        if self._constants:
            runner.run = _with_constants(runner.run, self._constants)
        slots = self._template.slots[: len(self._template.slots) - self._template.constants]
        slots = tuple(slot for slot in slots if "value" not in slot.component)
        listed = any(a.kind is Kind.TENSORS for a in self._schema.arguments)
        plain = not listed and all("dtype" in slot.component for slot in slots)
        plain = plain and len(slots) == sum(a.is_tensor for a in self._schema.arguments)
        self._kernels.append(
            Kernel(
                self._schema,
                runner,
                library["outputs"],
                plain=plain,
                parallel=False,
                words=self._words,
            )
        )
        self._kernels[-1].take_numbers(self._template)

    def times(self, paths: Sequence[str]) -> list[Times]:
        """Return for each library and hit path the medians of alternating rounds."""
        self._choose_call()
        step = self._step
        if step is None:
            sides = [Side(None, ""), *(Side(None, path) for path in paths)]
            forward = None
        else:
            sides = [Side(None, "", step.eager)]
            sides += [Side(None, path, step.declined(path)) for path in paths]
            forward = Side(None, "", step.forward)
        sides += [
            Side(kernel, path, None if step is None else step.served(path))
            for kernel in self._kernels
            for path in paths
        ]
        served = sides[1 + len(paths) :]
        sides += [] if forward is None else [forward]
        start = perf_counter_ns()
        for number in itertools.count():
            # In turn from both ends, so that a disturbance of the machine meets every side alike.
            for side in sides if number % 2 else reversed(sides):
                self._round(side)
            least, spent = min(len(side.quiet) for side in sides), perf_counter_ns() - start
            if spent > _MOST_NS or (spent > _BUDGET_NS and least >= _QUIET_ROUNDS):
                break
        quiet = least >= _LEAST_QUIET_ROUNDS
        original, passed = sides[0], dict(zip(paths, sides[1:], strict=False))
        results: list[Times] = [{} for _ in self._kernels]
        for side in served:
            assert side.kernel is not None
            three = (side, original, passed[side.path])
            kernel_us, original_us, passed_us = (one.microseconds(quiet) for one in three)
            if forward is not None:
                kernel_us = round(kernel_us + forward.microseconds(quiet), 3)
            results[self._kernels.index(side.kernel)][side.path] = {
                "kernel_us": kernel_us,
                "original_us": original_us,
                "passed_us": passed_us,
                "spread": min(1.0, (side.spread(quiet) + original.spread(quiet)) / 2),
                "quiet": quiet,
            }
        return results

    # -- one round --

    def _round(self, side: Side) -> None:
        """Time one side once more."""
        arguments = self._arguments()
        args, kwargs = arguments()
        calls = side.calls(_MOST_CALLS_WRITING if self._mutates else _MOST_CALLS)
        call = side.call or self._call
        if not side.path or (side.call is not None and side.kernel is None):
            for _ in range(2):
                call(*args, **kwargs)
            side.add(*self._timed(call, arguments, calls))
            return
        self._use(side.kernel)
        counts = self._cache.counters
        counter = counts.declined("measured") if side.kernel is None else counts.hits
        config.native = "auto" if side.path == "native" else "0"
        self._installed.install(None, native=side.path == "native")
        self._installed.set_holder(self, True)
        above = self._at_autograd() if side.path == "python" else None
        try:
            for _ in range(3):
                call(*args, **kwargs)
            before = counter.value
            side.add(*self._timed(call, arguments, calls))
            counted = counter.value - before
        finally:
            if above is not None:
                dispatcher.destroy(above)
            self._installed.uninstall()
            self._cache.detach_native()
        if counted != calls:
            raise NotMeasuredError(f"{self._schema.op}: {counted} of {calls} calls were ours")

    def _timed(
        self, call: Callable[..., Any], arguments: Callable[[], Any], calls: int
    ) -> tuple[float, bool]:
        args, kwargs = arguments()
        waited = waited_ns()
        start = perf_counter_ns()
        for _ in itertools.repeat(None, calls):
            call(*args, **kwargs)
        taken = perf_counter_ns() - start
        return taken / calls, waited_ns() - waited <= _QUIET_SHARE * taken

    def _arguments(self) -> Callable[[], tuple[list[Any], dict[str, Any]]]:
        """Return a function that gives the call's arguments, new ones if the op writes to them."""

        def arguments() -> tuple[list[Any], dict[str, Any]]:
            inputs = self._fresh
            if self._mutates:
                inputs = [
                    copy_tensor(tensor) if slot.mutated else tensor
                    for slot, tensor in zip(self._template.slots, inputs, strict=True)
                ]
            args, kwargs = self._template.arguments(inputs, as_number=lambda number: number.item())
            return args, _without_defaults(self._schema, kwargs)

        return arguments

    # -- the op --

    def _define(self, target: Any, schema: str) -> Any:
        """Return an op, defined in this process, with the user's function as its kernel."""
        name = self._schema.op.partition("::")[2].replace(".", "_")
        namespace = f"aoti_eager_measure_{name}"
        library = self._function_library = dispatcher.new_library(namespace, "DEF")
        library.define(f"{name}{schema[schema.index('(') :]}")  # type: ignore[no-untyped-call]
        self._function = target.with_constants_for_good(self._constants)
        library.impl(name, self._function, "CPU")  # type: ignore[no-untyped-call]
        return getattr(getattr(torch.ops, namespace), name).default

    def _at_autograd(self) -> torch.library.Library | None:
        """Register the autograd kernel of a function's op, where Python serves the op.

        C++'s autograd kernel is left out: it takes a hundredth of a microsecond per argument.
        """
        function = self._function
        if function is None or self._step is not None or not is_differentiable(self._schema):
            return None
        gradient = GradientFunction(function, signature_of(self._schema))
        kernel = AutogradKernel(
            self._op, self._schema, function, gradient, self._op, lambda: None, function_op=""
        )
        namespace, _, name = self._op.name().partition("::")
        library = dispatcher.new_library(namespace)
        library.impl(  # type: ignore[no-untyped-call]
            name, kernel, "Autograd", with_keyset=True
        )
        return library

    def _choose_call(self) -> None:
        """Choose the function that a script calls: torch's own, where it reaches the overload.

        ``torch.ops`` enters the dispatcher boxed, which is expensive for torch's kernels and cheap
        for ours: kernels that lose would seem to win.
        """
        if self._step is not None:
            return
        self._use(self._kernels[0])
        config.native = "0"
        self._installed.install(None, native=False)
        self._installed.set_holder(self, True)
        try:
            for call in _bindings(self._schema):
                self._call = call
                before = self._cache.counters.hits.value
                try:
                    for _ in range(2):
                        args, kwargs = self._arguments()()
                        call(*args, **kwargs)
                except Exception:  # noqa: BLE001 - it takes other arguments: try the next function
                    continue
                if self._cache.counters.hits.value > before:
                    return
            self._call = self._op
        finally:
            self._installed.uninstall()

    def _use(self, kernel: Kernel | None) -> None:
        """Serve calls by ``kernel``; decline them if ``None``."""
        if kernel is not self._current:
            self._cache.table.clear()
            self._current = kernel

    def _miss(
        self, key: TableKey, keyset: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Decide on this key, which is the dispatcher's spelling of the call."""
        decline = self._cache.table.declines.get(key)
        if decline is not None:
            decline.count.add()
            return self._cache.original(keyset, args, kwargs)
        if self._current is None:
            count = self._cache.counters.declined("measured")
            self._cache.table.decline(key, Decline("measured", "", count, self._words))
        else:
            self._cache.table.put(key, self._current)
        return self._cache.original(keyset, args, kwargs)


def _with_constants(
    run: Callable[[list[Tensor]], list[Tensor]], constants: Sequence[Tensor]
) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda inputs: run([*inputs, *constants])


def _without_defaults(schema: OpSchema, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {a.name: a.default for a in schema.arguments if a.has_default}
    return {
        name: value
        for name, value in kwargs.items()
        if value is not None
        and not (name in defaults and type(value) is not Tensor and value == defaults[name])
    }


def _bindings(schema: OpSchema) -> list[Callable[..., Any]]:
    """Return torch's own functions with the op's name: functions in C++, not Python wrappers."""
    name = schema.op.partition("::")[2].partition(".")[0]
    if not schema.op.startswith("aten::"):
        return []
    found = (getattr(one, name, None) for one in (torch, torch.nn.functional, Tensor))
    kinds = (types.BuiltinFunctionType, types.MethodDescriptorType)
    return [one for one in found if isinstance(one, kinds)]
