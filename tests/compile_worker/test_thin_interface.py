"""The C interface that thin libraries share: what it says of a run that fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from aoti_eager._base.cpp_compiler import compiler_on_path

INTERFACE = (
    Path(__file__).parents[2] / "aoti_eager" / "_compile_worker" / "csrc" / "thin_interface.cpp"
)
INCLUDE = Path(torch.__file__).parent / "include"

# A library whose run fails with as long a message as it is told to, and what torch has to say of
# it; torch itself is not in the process.
FAILING = r"""
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include <torch/csrc/inductor/aoti_runtime/interface.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

static std::string message, said;

namespace aoti_eager {
extern const char* const input_names[] = {"x"};
extern const char* const output_names[] = {"y"};
extern const size_t num_inputs = 1;
extern const size_t num_outputs = 1;
void run(const AtenTensorHandle*, AtenTensorHandle*) { throw std::runtime_error(message); }
}

extern "C" {
const char* torch_exception_get_what_without_backtrace() { return said.c_str(); }
bool aoti_torch_grad_mode_is_enabled() { return false; }
void aoti_torch_grad_mode_set_enabled(bool) {}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle) { return 0; }
AOTIRuntimeError aoti_eager_run(const AtenTensorHandle* inputs, AtenTensorHandle* outputs);
}

int main(int count, char** arguments) {
  message = std::string(arguments[1]) + std::string(std::atoi(arguments[2]), 'm');
  said = std::string(std::atoi(arguments[3]), 's');
  AtenTensorHandle inputs[1] = {}, outputs[1] = {};
  for (int i = 0; i < 2; ++i) {  // The second message has no more room than the first.
    if (aoti_eager_run(inputs, outputs) == 0) return 3;
  }
  const char* last = nullptr;
  AOTInductorGetLastError(&last);
  std::fputs(last, stdout);
}
"""
FAILED = "API call failed "
ROOM = 2047


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    directory = tmp_path_factory.mktemp("failing")
    source = directory / "failing.cpp"
    source.write_text(FAILING)
    command = [compiler_on_path() or "c++", "-std=c++20", "-O2", "-Wall", f"-I{INCLUDE}"]
    # Its bounds are checked by its own text, and by the system's copy of these functions.
    command += ["-D_FORTIFY_SOURCE=2", str(source), str(INTERFACE)]
    subprocess.run([*command, "-o", directory / "failing"], check=True)
    return directory / "failing"


def said_of(program: Path, message: int, said: int) -> str:
    """Return what the interface says of a message of so many characters, and of torch's."""
    command = [program, FAILED, str(message), str(said)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("said", [1, 100_000])
def test_a_message_is_told_with_what_torch_says_as_far_as_there_is_room(
    failing: Path, said: int
) -> None:
    room = ROOM - len(FAILED)
    for message in (10, *range(room - 4, room + 3), 100_000):
        whole = f"{FAILED}{message * 'm'}: {said * 's'}"
        assert said_of(failing, message, said) == whole[:ROOM]
