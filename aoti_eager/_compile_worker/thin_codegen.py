"""Thin kernel libraries: the graph's own code behind AOTInductor's C interface, nothing else.

Runs in the compile worker only. Inductor's generator of C++ is told to leave out the model
container's code; ``csrc/thin_interface.cpp`` has the C interface, compiled once. For a graph that
needs constants or subgraphs, which a thin library lacks, the generator raises ``NotThinError``, and
AOTInductor's full library is made instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import inductor_compat as inductor
from .thin_header import (
    HEADER,
    INTERFACE,
    CommonParts,
    call_compiler,
    common_parts,
    discard_parts,
    discard_stub,
    make_stub,
    stub_library,
)

# A library with symbols that are unique in a process can never be unloaded. Warnings would be about
# torch's headers.
_FLAGS = ("-fno-gnu-unique", "-g0", "-w")


class NotThinError(Exception):
    """The graph needs more than a thin library has."""


class ThinWrapper(inductor.CppWrapperCpu):
    """Writes the C++ of one graph as the function ``aoti_eager::run``."""

    @staticmethod
    def create(*args: Any, **kwargs: Any) -> ThinWrapper:
        """Return a new writer, for the graph and for each graph within it."""
        return ThinWrapper()  # type: ignore[no-untyped-call]

    @staticmethod
    def get_device_include_path_aot(device: str) -> str:
        """Return nothing: the precompiled header has every include."""
        return ""

    def _write_aoti_interface_header(self) -> None:
        pass

    def generate_input_output_runtime_checks(self) -> None:
        """Write nothing: a library of the cache only gets inputs that match its key."""

    def _codegen_assert_size_stride(self, *args: Any) -> None:
        pass

    def _write_aoti_entry_point_signature(self) -> None:
        graph = inductor.V.graph
        if graph.const_module or graph.is_const_graph or graph.constants:
            raise NotThinError("the graph has constants")
        self.codegen_additional_funcs()  # type: ignore[no-untyped-call]
        self.prefix.splice_aot(
            """
            void run_graph(
                const AtenTensorHandle* input_handles, AtenTensorHandle* output_handles) {
            // In place of torch's function of that name: inputs stay the caller's.
            using steal_from_raw_handles_to_raii_handles = aoti_eager::Inputs;
            """
        )

    def _write_constants_unpacking(self) -> None:
        if inductor.V.graph.constants:
            raise NotThinError("the graph has constants")

    def _write_entry_point_postamble(self) -> None:
        self.prefix.writeline_aot("inputs.clear();")

    def _codegen_aoti_model_class(self) -> None:
        if inductor.V.graph.constants:
            raise NotThinError("the graph has constants")
        self.codegen_initialized_kernel_decls()  # type: ignore[no-untyped-call]
        self.prefix.writeline("using namespace torch::aot_inductor;")

    def can_reuse(self, input_buffer: Any, output_buffer: Any = None) -> bool:
        """Return whether a buffer's memory may be used again: within a larger buffer, never.

        A result there would begin behind the larger buffer's beginning, and keep all of it.
        """
        node = getattr(input_buffer, "node", input_buffer)
        if inductor.is_within_another(node):
            return False
        return bool(super().can_reuse(input_buffer, output_buffer))  # type: ignore[no-untyped-call]

    def codegen_free(self, buffer: Any) -> None:
        """Free a buffer; the memory of one within a larger buffer is not offered to others."""
        if not inductor.is_within_another(buffer):
            super().codegen_free(buffer)  # type: ignore[no-untyped-call]
        elif super().can_reuse(buffer):  # type: ignore[no-untyped-call]
            self.freed.add(buffer.get_name())
            self.writeline(inductor.PlainFreeLine(self, buffer))  # type: ignore[no-untyped-call]

    def codegen_device_idx(self, device: Any, device_id: str) -> str:
        """Return the index with which the full library creates tensors on the CPU."""
        return "-1"

    def generate_before_suffix(self, result: Any) -> None:
        """Close the function."""
        result.writeline("} // run_graph")

    def codegen_subgraph(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: a subgraph's function would have the signature of a model's method."""
        raise NotThinError("the graph has subgraphs")


def compiler_into(
    work: Path, headers: Path, inspect: Callable[[str, str, bool], tuple[str, str]]
) -> Callable[[Any, str, str, bool], str]:
    """Return a function that compiles a graph's two sources into a library in ``work``.

    Args:
        work: An empty directory.
        headers: The directory of precompiled headers.
        inspect: Sees the sources first, and returns them as they are compiled; an error that it
            raises ends the compile.
    """

    def compile_(graph: Any, wrapper: str, kernels: str, proxy_executor: bool) -> str:
        wrapper, kernels = inspect(wrapper, kernels, proxy_executor)
        if graph.constants:
            raise NotThinError("the graph has constants")
        command = compile_command(work)
        outputs = [f"output{i}" for i in range(len(graph.graph_outputs))]
        source = "\n".join([wrapper, kernels, _definitions(graph.graph_inputs, outputs)])
        return str(_compile(source, command, work, headers))

    return compile_


def compile_command(work: Path) -> list[str]:
    """Return the compiler and its flags for a library in ``work``, under Inductor's settings."""
    return [*inductor.compile_flags(work / "library.cpp"), *_FLAGS]


def _compile(source: str, command: list[str], work: Path, headers: Path) -> Path:
    """Return the library of a source, in ``work``.

    Raises:
        CppCompileError: The compiler fails, also without the shared parts.
    """
    parts = common_parts(command, headers)
    try:
        return _link(source, command, work, parts, stub_library(command[0], headers, work))
    except inductor.CppCompileError as error:
        if inductor.was_ended(error):
            raise
    library = _link(source, command, work, None, make_stub(command[0], work))
    # The parts were at fault, not the code. They are made anew.
    if parts is not None:
        discard_parts(parts)
    discard_stub(headers)
    return library


def _link(
    source: str, command: list[str], work: Path, parts: CommonParts | None, stub: Path
) -> Path:
    file, library = work / "library.cpp", work / "library.so"
    # The package's own header has no precompiled form beside it that the compiler would take.
    header = HEADER if parts is None else parts.header
    file.write_text(source if parts is not None else f'{source}\n#include "{INTERFACE}"')
    call_compiler(
        [
            *command,
            *("-include", str(header), str(file)),
            *([] if parts is None else [str(parts.interface)]),
            *("-shared", "-o", str(library)),
            # Link against a stub: reading torch's own library takes longer than every other step.
            *(f"-L{stub}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"),
        ]
    )
    return library


def _size(size: Any) -> int | str:
    """Return a size or stride, or its expression if the value is not known yet."""
    try:
        return int(size)
    except TypeError:
        return str(size)


def _definitions(inputs: Mapping[str, Any], outputs: list[str]) -> str:
    """Return what ``thin_interface.cpp`` needs from each library: definitions, and the manifest."""

    def names(values: Iterable[str]) -> str:
        return ", ".join([*map(json.dumps, values), "nullptr"])

    described = [
        {
            "name": name,
            "dtype": str(value.get_dtype()).removeprefix("torch."),
            "sizes": [_size(n) for n in value.get_size()],
            "strides": [_size(n) for n in value.get_stride()],
        }
        for name, value in inputs.items()
    ]
    manifest = json.dumps({"inputs": described, "outputs": outputs, "constants": []})
    return f"""
// A runner that is not the cache's checks inputs by this.
extern "C" __attribute__((visibility("default"))) const char aoti_eager_manifest[];
const char aoti_eager_manifest[] = R"json({manifest})json";

namespace aoti_eager {{
extern const char* const input_names[];
extern const char* const output_names[];
extern const size_t num_inputs;
extern const size_t num_outputs;
const char* const input_names[] = {{{names(inputs)}}};
const char* const output_names[] = {{{names(outputs)}}};
const size_t num_inputs = {len(inputs)};
const size_t num_outputs = {len(outputs)};
void run(const AtenTensorHandle* input_handles, AtenTensorHandle* output_handles) {{
  torch::aot_inductor::run_graph(input_handles, output_handles);
}}
}} // namespace aoti_eager
"""
