"""What importing the package leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aoti_eager

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_left_as_it_was(collects: bool) -> None:
    switch = "" if collects else "gc.disable()"
    script = f"import gc, torch; {switch}\nimport aoti_eager; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(collects), done.stderr


# What settings and errors are made of.
OF_AN_IMPORT = {
    *(
        "errors",
        "config",
        "_base",
        "_base.accepted_values",
        "_base.amounts",
        "_base.at_exit",
        "_base.data_class",
        "_base.gc_pause",
    ),
    *("_base.ownership", "_base.printable", "_base.settings", "_base.tier_names"),
    *("_base.trusted_files", "_base.trusted_path", "_base.warn_once"),
}
# What no hit needs, and no call that is found on disk.
OF_OTHERS = {
    *("cache", "cli", "_commands", "_compile_worker", "_runner.runner", "_workloads"),
    *("_registration.custom_op", "_registration.op_constants", "_registration.op_gradients"),
    *("_registration.op_kernels", "_registration.op_results", "_store.verify", "_store.prune"),
}
# What registers ops and serves a call whose kernel the store has, by room.
OF_A_HIT = {
    "_base": "checked_torch cpp_compiler cpu determinism digest file_lock generated_code handover"
    " late_import op_library op_names scheduling scratch_directory sealed_library store_format"
    " store_marker store_removal"
    " torch_compat torch_compat.aotinductor torch_compat.autograd"
    " torch_compat.dispatcher torch_compat.settings torch_compat.tensors"
    " torch_compat.tracing",
    "_native": "build library op_kernel passthrough table",
    "_keys": "aliasing call_template declines dynamic_plan functional_overload guards"
    " index_ops kernel_key key_words pattern pattern_instances pattern_program schema"
    " size_arguments table_key unsaid_writes",
    "_runner": "abi container kernel_runner tensor_handles",
    "_store": "entry entry_files environment new_entries remembered store store_root"
    " stored_entries"
    " stored_failures stored_pattern verdict work_directories",
    "_compile_service": "cache_context compile_request device_backends kernel_compiler"
    " native_path queue this_torch",
    "_dispatch": "argument_watch asking_modules call_reader certificates closeness compare"
    " counters decision double_run dynamic_kernels dynamic_marks family_history gate kernel"
    " kernel_cache kernel_loading kernel_lookup kernel_request key_state live_check miss"
    " native_twin original python_kernel quarantine recheck recorder reference"
    " specialisations static_calls table tensor_copies tensor_pairs tier_copies"
    " unserved_calls versions",
    "_registration": "miss_imports registered_op registry resolve totals",
}
# What a region records and serves with, beside that.
OF_A_REGION = {
    "_base": "torch_compat.containers torch_compat.python_tensors torch_compat.replicas",
    "_dispatch": "candidate",
    "_functions": "allowed_names description op_functions source state tape tape_call tape_memory"
    " tape_replay tape_rules",
    "_native": "recorder runner thread_state",
    "_regions": "arguments call_times choice code_names current_settings fast_call frame fuse"
    " fused_forward fusion gradients guard_source guarded_tensors guarded_values kinds module_tree"
    " numpy_random overrides plain_values reader readiness recorded_call recording_time recordings"
    " region region_kernel replayed report results snapshot stop stopped_calls tape_of target"
    " variant varying waiting watch",
    "_registration": "preparation",
}
NEVER = {"tomllib", "tomli", "torch._inductor.config", "sympy", "argparse", "tqdm", "elftools"}


def in_rooms(rooms: dict[str, str]) -> set[str]:
    """Return the rooms, and the modules in them."""
    return {f"{room}.{name}" for room, names in rooms.items() for name in names.split()} | set(
        rooms
    )


def imported_by(statement: str) -> set[str]:
    """Return the modules that a statement imports after ``import torch``."""
    script = f"import sys, torch; before = set(sys.modules)\n{statement}\n"
    script += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    found = set(done.stdout.split())
    assert "aoti_eager" in found, done.stderr
    return found


def test_an_import_loads_what_settings_need_and_no_more() -> None:
    """Who adds to these has looked at what it costs: ``python -m tests.benchmarks.warm_start``."""
    found = imported_by("import aoti_eager")
    ours = {name.removeprefix("aoti_eager.") for name in found if name.startswith("aoti_eager.")}
    assert ours == OF_AN_IMPORT
    assert not found & NEVER


@pytest.mark.full
def test_a_hit_loads_nothing_that_only_others_need() -> None:
    call = "x = torch.ones(2, 2); x * x, x * x"
    found = imported_by(f"import aoti_eager; aoti_eager.register('aten::mul.Tensor'); {call}")
    assert "aoti_eager._dispatch.kernel_cache" in found
    assert not found & {f"aoti_eager.{name}" for name in OF_OTHERS}
    # A process of torch's own version of these may have them already.
    assert not found & NEVER


def test_an_install_brings_what_torch_warns_without(tmp_path: Path) -> None:
    """Else the first line that each command prints in a fresh environment is torch's warning."""
    absent = tmp_path / "numpy" / "__init__.py"
    absent.parent.mkdir()
    absent.write_text("raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')")
    said = {}
    for path in ("", str(tmp_path)):
        done = subprocess.run(
            [sys.executable, "-m", "aoti_eager", "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), path)))},
        )
        assert done.returncode == 0, done.stderr
        said[path] = done.stderr
    assert said[""] == ""
    assert "Failed to initialize NumPy" in said[str(tmp_path)], "torch needs it no more, nor do we"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, flags=re.M | re.S)
    assert listed is not None
    assert re.search(r'^ +"numpy>=', listed[1], flags=re.M)


@pytest.mark.full
@pytest.mark.native
def test_a_warm_start_loads_what_a_hit_needs_and_no_more() -> None:
    """As above. What asks for kernels, or makes an op differentiable, is for calls that need it."""
    x = torch.ones(4, 8)
    with aoti_eager.register("aten::mul.Tensor"):
        x * x
    register = "import aoti_eager; aoti_eager.register('aten::mul.Tensor')"
    call = "x = torch.ones(4, 8); x * x"
    served = "assert aoti_eager.stats()['aten::mul.Tensor'].hits == 1"
    found = imported_by(f"{register}; {call}; {served}")
    ours = {name.removeprefix("aoti_eager.") for name in found if name.startswith("aoti_eager.")}
    assert ours == OF_AN_IMPORT | in_rooms(OF_A_HIT)
    assert not found & NEVER
    assert not found & {"uuid", "secrets", "hmac"}


REGION = """
import torch, aoti_eager
from torch.nn import Linear, Sequential, Tanh
model, x = Sequential(Linear(5, 8), Tanh(), Linear(8, 3)).eval(), torch.ones(4, 5)
with torch.no_grad():
    report = aoti_eager.fuse(model)
    for _ in range(CALLS):
        model(x)
"""


@pytest.mark.full
@pytest.mark.native
def test_a_region_whose_library_is_stored_loads_what_it_needs_and_no_more() -> None:
    """The first result in a new process waits for these imports, and for no others."""
    imported_by(REGION.replace("CALLS", "3"))  # Makes the library.
    served = "assert report.regions[0].hits == 1, report\n"
    found = imported_by(REGION.replace("CALLS", "3") + served)
    ours = {name.removeprefix("aoti_eager.") for name in found if name.startswith("aoti_eager.")}
    assert ours == OF_AN_IMPORT | in_rooms(OF_A_HIT) | in_rooms(OF_A_REGION)
    assert not found & NEVER


@pytest.mark.parametrize("mode", ["background", "sync"])
def test_a_cold_start_loads_what_asks_for_kernels_before_a_call_waits_for_it(mode: str) -> None:
    found = imported_by(
        "import aoti_eager; aoti_eager.config.mode = "
        f"{mode!r}; aoti_eager.register('aten::mul.Tensor')"
    )
    asking = {"asking", "pending", "rare", "resumed"}
    assert {f"aoti_eager._dispatch.{name}" for name in asking} <= found
    assert {"aoti_eager._compile_service.worker_pool"} <= found


def test_every_public_name_is_there() -> None:
    script = (
        "import aoti_eager; listed = dir(aoti_eager)\n"
        "names = {}; exec('from aoti_eager import *', names)\n"
        "lacking = [one for one in aoti_eager.__all__ if one not in names or one not in listed]\n"
        "print(lacking, hasattr(aoti_eager, 'nothing'), aoti_eager.explain.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "False", "aoti_eager._commands.explain"], done.stderr
