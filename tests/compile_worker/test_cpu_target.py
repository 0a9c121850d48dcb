"""Kernels for each instruction set: compiled, looked into, checked and served."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aoti_eager
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._compile_service import cache_context
from aoti_eager._registration import registry
from aoti_eager._store.store import StoredEntry
from aoti_eager.errors import ConfigError

from ..conftest import assert_close
from ..store.test_environment import ON_X86

PRINT_MARCH = """
from aoti_eager._compile_service.cache_context import current
print(current().target.march)
"""

# Registers that no instruction of the level names.
ABOVE = {
    "x86-64-v2": r"%[yz]mm|\{%k[0-7]\}",
    "x86-64-v3": r"%zmm|%[xy]mm(1[6-9]|2\d|3\d)|\{%k[0-7]\}",
}
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "native")


def can_run(setting: str) -> bool:
    try:
        cpu_target(cpu_features(), setting)
    except ValueError:
        return False
    return True


@pytest.fixture(autouse=True)
def _end_other_workers() -> object:
    """End the workers of targets that no other test compiles for."""
    yield
    auto = cpu_target(cpu_features())
    for (target, _), pool in cache_context._pools.items():
        service = pool.started()
        if target != auto and service is not None:
            service.close()


def stored() -> list[StoredEntry]:
    found = [one for one in cache_context.current().store.scan() if isinstance(one, StoredEntry)]
    assert len(found) == len(list(cache_context.current().store.scan()))
    return found


def call_softmax(x: torch.Tensor) -> None:
    """Call once as a miss and once as a hit."""
    want = torch.softmax(x, -1)
    with aoti_eager.register("aten::_softmax"):
        torch.softmax(x, -1)
        before = aoti_eager.stats()["aten::_softmax"]
        assert before.compiles + before.misses > 0
        got = torch.softmax(x, -1)
        assert aoti_eager.stats()["aten::_softmax"].hits == before.hits + 1
    assert_close(got, want)


@pytest.mark.full
@ON_X86
@pytest.mark.compiles
@pytest.mark.share(of=2)
@pytest.mark.parametrize("setting", [one for one in LEVELS if can_run(one)])
def test_a_kernel_for_each_level_is_right_and_has_nothing_above_it(setting: str) -> None:
    """An instruction above the level would be illegal on another CPU that has the level."""
    x = torch.randn(33, 70, generator=torch.Generator().manual_seed(3))
    with aoti_eager.config.scope(cpu_target=setting):
        call_softmax(x)
        (found,) = stored()
        target = cache_context.current().target
    assert found.entry.status.value == "ready", found.entry.message
    assert (found.entry.target, found.entry.requires) == (target.name, target.requires)
    if shutil.which("objdump") is None:
        return
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(found.library_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "%xmm" in code
    assert re.findall(ABOVE.get(setting, "no such register"), code) == []
    if setting == "x86-64-v4":
        assert "%zmm" in code
    if setting == "x86-64-v3":
        assert "%ymm" in code


@pytest.mark.full
@ON_X86
def test_another_target_is_compiled_for_where_it_is_set_and_only_there() -> None:
    x = torch.randn(9, 16)
    names = []
    with aoti_eager.register("aten::_softmax"):
        for setting in ("x86-64-v2", "native"):
            with aoti_eager.config.scope(cpu_target=setting):
                names.append(cache_context.current().target.name)
                assert cache_context.current() is cache_context.current()
        assert cache_context.current().target == cpu_target(cpu_features())
        assert len({*names, cache_context.current().target.name}) == 3
        before = aoti_eager.stats()["aten::_softmax"]
        torch.softmax(x, -1)
        torch.softmax(x, -1)
        cache = next(one for one in registry.caches() if one.table.kernels)
        table = cache.table
        with aoti_eager.config.scope(cpu_target="x86-64-v2"):
            assert cache.table is not table
            # Found in the store: this CPU can run it, and nothing better fits what is set.
            torch.softmax(x, -1)
            assert len(cache.table.kernels) == 1
        assert cache.table is table
        after = aoti_eager.stats()["aten::_softmax"]
    assert after.compiles == before.compiles + 1
    assert after.hits == before.hits + 2


@ON_X86
def test_a_level_that_this_cpu_has_not_is_refused_at_register(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_context, "cpu_features", lambda: cpu_features() - {"fma"})
    monkeypatch.setenv("AOTI_EAGER_CPU_TARGET", "x86-64-v3")
    with pytest.raises(ConfigError, match="AOTI_EAGER_CPU_TARGET: got 'x86-64-v3'.* lacks fma"):
        aoti_eager.register("aten::silu")
    assert aoti_eager.registered_ops() == []


def test_what_is_set_reaches_a_process_by_its_variable(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "env",
            "AOTI_EAGER_CPU_TARGET=native",
            *(sys.executable, "-W", "error", "-c"),
            PRINT_MARCH,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "native\n"
