"""The environment: what shapes machine code is in it, nothing per process is; CPU targets."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._store import environment
from aoti_eager._store.environment import Environment, current_environment

from ..support import forked_python

# Both machines that the package is built for first; elsewhere a target is this very CPU.
ON_X86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the levels are x86-64's"
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - without_variables().keys():
        monkeypatch.delenv(name)


def without_variables() -> dict[str, str]:
    shaping = ("TORCHINDUCTOR_", "AOT_INDUCTOR_")
    return {name: value for name, value in os.environ.items() if not name.startswith(shaping)}


def in_new_process(*statements: str, cwd: Path | None = None, **variables: str) -> Any:
    """Return what ``statements`` leave in ``answer``, run in a new process."""
    program = "\n".join(
        [
            "import json",
            "from aoti_eager._store.environment import current_environment",
            *statements,
            "print(json.dumps(answer))",
        ]
    )
    done = forked_python.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env={**without_variables(), **variables},
    )
    return json.loads(done.stdout)


# --- what is in it -------------------------------------------------------------------------------


def test_components_are_named_and_complete() -> None:
    components = dict(current_environment().components)
    assert sorted(components) == [
        "code",
        "format",
        "inductor",
        "system",
        "torch",
        "torch_git",
        "variables",
    ]
    assert components["torch"] == str(torch.__version__)
    assert components["torch_git"] == torch.version.git_version
    assert components["variables"] == {}
    assert json.loads(json.dumps(components)) == components


def test_the_same_environment_has_one_digest() -> None:
    assert current_environment() == current_environment()
    assert current_environment().digest == current_environment().digest
    assert len(current_environment().digest) == 64


@pytest.mark.parametrize(
    ("component", "change"),
    [
        pytest.param("torch", lambda m: m.setattr(torch, "__version__", "2.13.1"), id="torch"),
        pytest.param(
            "torch_git", lambda m: m.setattr(torch.version, "git_version", "0" * 40), id="git"
        ),
        pytest.param("code", lambda m: m.setattr(environment, "CODE_VERSION", 999), id="code"),
        pytest.param(
            "system", lambda m: m.setattr(platform, "machine", lambda: "riscv64"), id="machine"
        ),
        pytest.param("system", lambda m: m.setattr(sys, "platform", "darwin"), id="platform"),
        pytest.param(
            "variables", lambda m: m.setenv("TORCHINDUCTOR_MAX_AUTOTUNE", "1"), id="inductor"
        ),
        pytest.param("variables", lambda m: m.setenv("TORCHINDUCTOR_ANYTHING", ""), id="unknown"),
        pytest.param(
            "variables", lambda m: m.setenv("AOT_INDUCTOR_DEBUG_COMPILE", "1"), id="aot_inductor"
        ),
    ],
)
def test_each_factor_changes_the_digest(
    component: str, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """One factor at a time, torch's version among them."""
    before = current_environment()
    with pytest.MonkeyPatch.context() as monkeypatch:
        change(monkeypatch)
        changed = current_environment()
    assert changed.digest != before.digest
    assert list(before.differing(changed)) == [component]
    assert current_environment() == before


def test_the_value_of_a_variable_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for value in ("0", "1", ""):
        monkeypatch.setenv("TORCHINDUCTOR_CPP_WRAPPER", value)
        digests.add(current_environment().digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    "name",
    [
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCHINDUCTOR_COMPILE_THREADS",
        "TORCHINDUCTOR_FX_GRAPH_CACHE",
        "TORCHINDUCTOR_WORKER_START",
        "AOTI_EAGER_CACHE_DIR",
        "TORCH_LOGS",
        "HOME",
        "OMP_NUM_THREADS",
    ],
)
def test_what_shapes_no_code_is_not_in_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No paths in keys. Thread counts are in the key of a call."""
    before = current_environment()
    monkeypatch.setenv(name, "/somewhere/else")
    assert current_environment() == before


def test_two_processes_set_up_alike_have_equal_environments(tmp_path: Path) -> None:
    """Nothing per process, not even the directory it runs in."""
    elsewhere = in_new_process(
        "environment = current_environment()",
        "answer = [environment.digest, dict(environment.components)]",
        cwd=tmp_path,
        HOME=str(tmp_path),
        PYTHONHASHSEED="1",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )
    # This process may have imported Inductor's settings; all of them have their defaults.
    assert elsewhere == [current_environment().digest, dict(current_environment().components)]


@pytest.fixture(scope="module")
def with_inductor() -> dict[str, Any]:
    """Digests of one process that imports Inductor; this one must not."""
    answer: dict[str, Any] = in_new_process(
        "import sys, torch",
        "answer = {'before': current_environment().digest}",
        "assert 'torch._inductor' not in sys.modules",
        "import torch._inductor.config as config",
        "answer['imported'] = current_environment().digest",
        "config.cpp.simdlen = 256",
        "answer['narrow'] = current_environment().digest",
        "answer['named'] = dict(current_environment().components)['inductor']",
        "config.cpp.simdlen = 512",
        "answer['wide'] = current_environment().digest",
        "config.cpp.simdlen = None",
        "answer['back'] = current_environment().digest",
        "with config.patch(epilogue_fusion=False):",
        "    answer['patched'] = current_environment().digest",
        "answer['unpatched'] = current_environment().digest",
        "torch.use_deterministic_algorithms(True)",
        "answer['deterministic'] = current_environment().digest",
        "torch.use_deterministic_algorithms(False)",
        "answer['indeterministic'] = current_environment().digest",
        "config.deterministic = True",
        "answer['deterministic code'] = current_environment().digest",
        "config.deterministic = False",
        "config.aot_inductor.metadata['AOTI_DEVICE_KEY'] = 'cpu'",
        "config.compile_threads = 3",
        "config._fuse_ddp_bucket_size = 7",
        "answer['written by torch'] = current_environment().digest",
    )
    return answer


def test_importing_inductor_changes_nothing(with_inductor: dict[str, Any]) -> None:
    """A script that has imported Inductor still hits."""
    assert with_inductor["before"] == with_inductor["imported"] == current_environment().digest


@pytest.mark.parametrize("setting", ["narrow", "wide", "patched", "deterministic code"])
def test_a_setting_of_inductor_changes_the_digest(
    with_inductor: dict[str, Any], setting: str
) -> None:
    """A kernel that was compiled with another setting is a miss."""
    others = {digest for name, digest in with_inductor.items() if name != "named"}
    assert with_inductor[setting] != with_inductor["before"]
    assert len(others) >= 5
    assert with_inductor["named"] == {"cpp.simdlen": "256"}


@pytest.mark.parametrize("moment", ["back", "unpatched", "indeterministic"])
def test_a_setting_that_came_back_to_its_default_is_not_in_it(
    with_inductor: dict[str, Any], moment: str
) -> None:
    """After ``config.patch`` or ``use_deterministic_algorithms``, still a hit."""
    assert with_inductor[moment] == with_inductor["before"]


@pytest.mark.parametrize("moment", ["deterministic", "written by torch"])
def test_what_torch_writes_into_settings_itself_is_not_in_it(
    with_inductor: dict[str, Any], moment: str
) -> None:
    """What the mode "deterministic" sets beside itself, packages' metadata, a number of processes.

    The mode is in the key.
    """
    assert with_inductor[moment] == with_inductor["before"]


@pytest.mark.full
def test_aotinductor_in_the_script_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    """Its settings, too: no key misses after it, and none declines."""
    answer = in_new_process(
        "import warnings; warnings.simplefilter('ignore')",
        "import torch",
        "import torch._inductor",
        "from aoti_eager._base.torch_compat.settings import inductor_settings",
        "before = current_environment().digest",
        "class Model(torch.nn.Module):",
        "    def forward(self, x): return torch.relu(x)",
        "program = torch.export.export(Model(), (torch.randn(3),))",
        f"path = {str(tmp_path / 'm.pt2')!r}",
        "torch._inductor.aoti_compile_and_package(program, package_path=path)",
        "assert torch._inductor.config.aot_inductor.metadata, 'AOTInductor writes it no more'",
        "torch.compile(Model())(torch.randn(3))",
        "same = before == current_environment().digest",
        "answer = {'same': same, 'settings': inductor_settings()}",
    )
    assert answer == {"same": True, "settings": {}}


@pytest.mark.full
def test_a_variable_counts_alike_whether_inductor_is_imported_or_not() -> None:
    """A script that imports Inductor hits what one that does not has stored."""
    before, imported = in_new_process(
        "answer = [current_environment().digest]",
        "import torch._inductor.config",
        "answer.append(current_environment().digest)",
        TORCHINDUCTOR_FX_GRAPH_CACHE="0",
        TORCHINDUCTOR_DISABLED_PASSES="SOME_PASS",
        TORCHINDUCTOR_MAX_AUTOTUNE="1",
    )
    assert before == imported


# --- comparing -----------------------------------------------------------------------------------


def test_differing_names_each_component_with_both_values() -> None:
    """``explain`` shows both values of what differs."""
    one = Environment((("a", 1), ("b", [1]), ("c", None)))
    other = Environment((("a", 1), ("b", [2]), ("d", 4)))
    assert one.differing(other) == {"b": ([1], [2]), "d": (None, 4)}
    assert one.differing(one) == {}
    assert one.digest != other.digest


# --- the CPU -------------------------------------------------------------------------------------

LEVEL_2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
LEVEL_3 = LEVEL_2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
LEVEL_4 = LEVEL_3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@ON_X86
@pytest.mark.parametrize(
    ("features", "name", "march", "vector_bits"),
    [
        (LEVEL_4, "cpu-x86-64-v4", "x86-64-v4", 512),
        (LEVEL_4 | {"amx_tile", "avx512_bf16"}, "cpu-x86-64-v4", "x86-64-v4", 512),
        (LEVEL_4 - {"avx512dq"}, "cpu-x86-64-v3", "x86-64-v3", 256),
        (LEVEL_3, "cpu-x86-64-v3", "x86-64-v3", 256),
    ],
)
def test_the_highest_level_that_the_cpu_has_is_the_target(
    features: set[str], name: str, march: str, vector_bits: int
) -> None:
    """A level's code needs a subset of the CPU's features, so other CPUs of the level run it."""
    target = cpu_target(frozenset(features))
    assert (target.name, target.march, target.vector_bits) == (name, march, vector_bits)
    assert target.requires <= features
    expected = LEVEL_4 if vector_bits == 512 else LEVEL_3
    assert target.requires == expected


@pytest.mark.parametrize("features", [set(), LEVEL_2, LEVEL_3 - {"fma"}, {"neon", "asimd"}])
def test_below_the_levels_the_target_is_this_very_cpu(features: set[str]) -> None:
    """Native code needs all that the compiler may have seen."""
    target = cpu_target(frozenset(features))
    # Nothing is probed on x86-64: without AVX2 there are no vectors for Inductor.
    assert (target.march, target.vector_bits) == ("native", 128)
    assert target.requires == features
    assert target.name.startswith("cpu-")
    assert target == cpu_target(frozenset(features))


def test_no_level_of_another_architecture_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    target = cpu_target(frozenset(LEVEL_4))
    assert (target.march, target.vector_bits) == ("native", 0)
    assert target.requires == LEVEL_4
    assert cpu_target(frozenset(LEVEL_4), "native") == target
    with pytest.raises(ValueError, match="this CPU is aarch64; set auto or native"):
        cpu_target(frozenset(LEVEL_4), "x86-64-v3")


@ON_X86
@pytest.mark.parametrize(
    ("setting", "vector_bits", "requires"),
    [("x86-64-v2", 128, LEVEL_2), ("x86-64-v3", 256, LEVEL_3), ("x86-64-v4", 512, LEVEL_4)],
)
def test_a_pinned_level_is_the_target(setting: str, vector_bits: int, requires: set[str]) -> None:
    target = cpu_target(frozenset(LEVEL_4 | {"amx_tile"}), setting)
    assert (target.name, target.march) == (f"cpu-{setting}", setting)
    assert (target.vector_bits, target.requires) == (vector_bits, requires)
    assert cpu_target(frozenset(requires), setting) == target


@ON_X86
def test_a_pinned_level_that_the_cpu_has_not_names_what_is_lacking() -> None:
    with pytest.raises(ValueError, match="lacks avx512dq, fma; set auto, native or a lower level"):
        cpu_target(frozenset(LEVEL_4 - {"fma", "avx512dq"}), "x86-64-v4")


@ON_X86
@pytest.mark.parametrize(
    ("features", "vector_bits"),
    [
        (LEVEL_4 | {"amx_tile", "avx512_bf16"}, 512),
        (LEVEL_3 | {"avx512f"}, 256),
        (LEVEL_2, 128),
    ],
)
def test_native_needs_every_feature_and_probes_nothing(
    features: set[str], vector_bits: int
) -> None:
    """The compiler may use any feature of this CPU, so a CPU that lacks one is a miss."""
    target = cpu_target(frozenset(features), "native")
    assert (target.march, target.vector_bits) == ("native", vector_bits)
    assert target.requires == features
    assert target.name not in {f"cpu-x86-64-v{level}" for level in (2, 3, 4)}


def test_different_cpus_have_different_native_targets() -> None:
    names = {cpu_target(frozenset(features)).name for features in ({"a"}, {"b"}, {"a", "b"}, ())}
    assert len(names) == 4


@ON_X86
def test_the_best_target_sorts_last_by_name() -> None:
    """The store looks through targets in that order."""
    names = [cpu_target(frozenset(f)).name for f in (LEVEL_2, LEVEL_3, LEVEL_4)]
    assert names == sorted(names)


def test_this_machine_can_run_what_is_compiled_for_it() -> None:
    """On the host that stored an entry, a new process hits."""
    features = cpu_features()
    assert features
    assert cpu_target(features).requires <= features
