"""The request to a registered compile backend, and what becomes of its result."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._base.data_class import dataclass
from .._base.torch_compat.dispatcher import OpOverload
from .._base.torch_compat.tracing import fake_mode
from .._functions.tracing import (
    call_module,
    error_text,
    fake_inputs,
    trace_outputs,
)
from .._keys.call_template import CallTemplate
from .._native.passthrough import passthrough
from ..errors import CompileError, RunnerError
from .compile_request import CompileFunction, CompileRequest, LoadFunction


@dataclass(frozen=True, slots=True)
class DeviceBackend:
    """The compile backend of one device type.

    Attributes:
        identity: The name and version that the key has, because they affect the code.
    """

    device_type: str
    identity: str
    compile_fn: CompileFunction
    load_fn: LoadFunction

    def compile(
        self, op: OpOverload, template: CallTemplate, work: Path, *, timeout_s: float
    ) -> BackendLibrary:
        """Return the library for a call, made on a thread without the caller's state.

        Autocast, inference mode, dispatch modes and the current stream belong to a thread.

        Args:
            op: The overload.
            template: The call.
            work: An empty directory of the store.
            timeout_s: Seconds to wait. After that, the thread goes on, because a thread cannot be
                ended, and its result is not used.

        Raises:
            CompileError: No library came out, with the decline reason.
        """
        answer: list[BackendLibrary | BaseException] = []

        def compile_() -> None:
            try:
                with passthrough():
                    answer.append(self._compile(op, template, work))
            except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
                answer.append(error)

        thread = threading.Thread(target=compile_, name="aoti_eager compile", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if not answer:
            raise CompileError(
                "compile_timeout",
                f"{template.schema.op}: no library after {timeout_s:g} s",
                remember=False,
            )
        result = answer[0]
        if isinstance(result, CompileError):
            raise result
        if isinstance(result, BaseException):
            # Not remembered: the backend's author fixes it under the same version.
            raise CompileError(
                "compile_failed",
                f"{template.schema.op}: the compile backend of {self.device_type} raised "
                f"{error_text(result)}",
                log="".join(traceback.format_exception(result)),
                remember=False,
            ) from result
        return result

    def load(self, library: Path, device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return a function that runs a stored library.

        Raises:
            RunnerError: It cannot be loaded.
        """
        try:
            run = self.load_fn(library, device)
        except RunnerError:
            raise
        except Exception as error:
            raise RunnerError(f"{library}: cannot be loaded: {error_text(error)}") from error
        return _as_library(run, self.device_type)

    def _compile(self, op: OpOverload, template: CallTemplate, work: Path) -> BackendLibrary:
        mode = fake_mode()
        with mode, torch.no_grad():
            outputs = trace_outputs(op, template, fake_inputs(template))
            inputs = tuple(fake_inputs(template))
        module = call_module(op, template, outputs)
        request = CompileRequest(template.schema.op, module, inputs, mode, work)
        library = Path(self.compile_fn(request))
        if not library.is_file():
            raise CompileError(
                "compile_failed",
                f"the compile backend of {self.device_type} returned {library}, which is no file",
            )
        if not library.resolve().is_relative_to(work.resolve()):
            raise CompileError(
                "compile_failed",
                f"the compile backend of {self.device_type} returned {library}, which is not in "
                f"{work}",
            )
        return BackendLibrary(library, tuple(outputs))


@dataclass(frozen=True, slots=True)
class BackendLibrary:
    """A library from a compile backend; ``outputs`` as in ``Entry.outputs``."""

    library: Path
    outputs: tuple[dict[str, Any], ...]


def _as_library(run: Any, device_type: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return ``run``, with its results and errors brought into the form of a library's."""

    def run_as_library(inputs: list[Tensor]) -> list[Tensor]:
        try:
            with passthrough(), torch.no_grad():
                return list(run(inputs))
        except RuntimeError:
            raise
        except Exception as error:
            raise RunnerError(f"the runner of {device_type} raised {error_text(error)}") from error

    return run_as_library
