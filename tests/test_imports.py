"""The package's shape: imports point one way, private names of torch live in two files."""

from __future__ import annotations

import ast
import io
import itertools
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aoti_eager

PACKAGE = Path(aoti_eager.__file__).parent
# Rooms, too: a file that is not looked at would pass whatever it imports.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "_examples")


def module_name(path: Path) -> str:
    """Return a module's name within the package: ``_store``, ``_base.file_lock``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


# Each module imports only from modules before it. docs/architecture.md says what each is for.
ORDER = """
    _collector errors _base.__init__ _base.at_exit _base.data_class _base.printable _warnings
    _base.ownership _base.trusted_files _base.store_format _base.file_lock _base.sealed_library
    _base.recorded_files _base.scratch_directory _base.scheduling _base.deadline _share _settings
    config _compat _schema _aliasing _output_file _guards _key _size_arguments _native_key
    _native_pattern _native_library _native_table _native_gate _native _pattern _environment _entry
    _stats _ops _marks _functional_overload _certificates _template _work_directories _store_root
    _versions _entry_files _store _verdict _remote _bundle _passthrough _payback _cpp_compiler
    _child _determinism _fork_server _native_build _elf _handles _abi _constants _devices _container
    _library_container _model_container _proxy_container _package _instances _input_checks
    _constant_buffers _runner _library_runner _reference _closeness _check _declines _entries
    _remembered _stored_failures _tracing _graph_checks _function_names _function_source
    _python_function _gradient_function _op_functions _rebuilt_function _call_target _probes
    _inductor_headers _exact_sums _float_division _layer_norm _result_layout _decompositions
    _float_flags _vector_math _inductor_compat _thin_header _thin_codegen _plain_path _row_sums
    _symbolic _lowering _made_up_values _made_up_numbers _made_up_data _trial_runs _trial
    _compile_job _parent_watch _worker _worker_process _answers _compile _background _device_compile
    _device_backends _backend _native_path _original _static_calls _plan _workload _wanted
    _stored_pattern _specialisations _kernel _table _entrance _toolchain _live_check _recheck
    _keyed_call _making _pending _resumed _asking _rare _miss _kernel_cache _gradient_node
    _gradients _differentiable _installed _measured_step _measure _library _op_constants _explain
    _custom_op _coverage _compile_task _warm_report _warm _warm_kept _verify _prune cache
    _run_report _script _warm_verb _setup_verb _demo cli __main__ __init__
""".split()  # noqa: SIM905 - a list of names to read, not to parse

# Modules that have a place before they are there.
TO_COME = {"_remote", "_bundle", "_coverage"}

# The files that may spell private names of torch, each with its reason.
PRIVATE_NAMES = {"_compat.py", "_inductor_compat.py"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def imported_modules(path: Path) -> Iterator[str]:
    """Give the package's own modules that the file at ``path`` imports, anywhere in it."""
    room = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = node.level - 1
            assert above <= len(room), "imports of a package above"
            base = [*room[: len(room) - above], *(node.module or "").split(".")]
            base = [part for part in base if part]
            if PACKAGE.joinpath(*base).is_dir():
                yield from (_module([*base, alias.name]) for alias in node.names)
            else:
                yield ".".join(base)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "aoti_eager", "spell it relatively"
        elif isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
            assert "aoti_eager" not in names, "spell it relatively"


def _module(parts: list[str]) -> str:
    # `from . import config` gives the module; `from . import register` what __init__ re-exports.
    is_module = PACKAGE.joinpath(*parts).with_suffix(".py").exists()
    return ".".join(parts if is_module else [*parts[:-1], "__init__"])


def test_every_file_of_the_package_is_looked_at() -> None:
    names = set(map(module_name, FILES))
    assert names == {name for name in ORDER if name not in TO_COME}
    assert len(names) > 110


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_from_modules_before_it(path: Path) -> None:
    name = module_name(path)
    assert name in ORDER, f"{name} has no place in the order yet"
    before = ORDER[: ORDER.index(name)]
    later = sorted(set(imported_modules(path)) - set(before))
    assert later == []


def test_every_module_has_one_place_in_the_order() -> None:
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_code_is_that_of_the_oldest_python_supported(path: Path) -> None:
    assert parsed(path).body


def private_torch_names(path: Path) -> list[str]:
    """Return each ``torch._name`` that the file spells in code, or as a module's name in a string.

    Comments, docstrings and messages may speak of them.
    """
    text = path.read_text(encoding="utf-8")
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL)
    ]
    found = [
        f"{path.name}:{first.start[0]}: torch.{third.string}"
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if (first.string, second.string) == ("torch", ".") and is_private(third.string)
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] == "torch" and all(map(str.isidentifier, parts)) and len(parts) > 1:
                found += [f"{path.name}:{node.lineno}: {node.value}"] * is_private(parts[1])
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [f"{path.name}:{node.lineno}" for a in node.names if is_private(a.name)]
    return found


def is_private(name: str) -> bool:
    return name[:1] == "_" and name[1:2].isalpha()


def test_private_names_of_torch_are_spelled_in_two_files_alone() -> None:
    others = [path for path in FILES if path.name not in PRIVATE_NAMES]
    assert list(itertools.chain.from_iterable(map(private_torch_names, others))) == []
    assert private_torch_names(PACKAGE / "_compat.py")


# --- importing -----------------------------------------------------------------------------------

IMPORT = """
import json, sys
import torch
torchs = set(sys.modules)
started = []
EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system")
sys.addaudithook(lambda event, args: started.append(event) if event in EVENTS else None)
import threading
threads = threading.active_count()
import aoti_eager
print(json.dumps({
    "private": sorted(
        name for name in set(sys.modules) - torchs
        if name.startswith(("torch._inductor", "torch._dynamo", "torch._functorch", "torch.export"))
    ),
    "torch": sorted(name for name in set(sys.modules) - torchs if name.startswith("torch.")),
    "started": started,
    "threads": threading.active_count() - threads,
    "all": aoti_eager.__all__,
    "pickle": "pickle" in vars(aoti_eager),
}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What importing the package does in a new process, beyond what importing torch does."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.stderr == ""
    return answer


def test_importing_the_package_imports_no_compiler(imported: dict[str, Any]) -> None:
    """Requirement 22."""
    assert imported["private"] == []


def test_importing_the_package_starts_no_process_and_no_thread(imported: dict[str, Any]) -> None:
    """Requirement 7."""
    assert imported["started"] == []
    assert imported["threads"] == 0


# --- the public names ----------------------------------------------------------------------------


def test_public_names_are_sorted_and_there(imported: dict[str, Any]) -> None:
    assert aoti_eager.__all__ == sorted(set(aoti_eager.__all__))
    assert imported["all"] == aoti_eager.__all__
    for name in aoti_eager.__all__:
        assert getattr(aoti_eager, name) is not None


def test_nothing_is_ever_unpickled() -> None:
    """Requirement 17."""
    forbidden = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            else:
                continue
            assert not names & forbidden, path.name
