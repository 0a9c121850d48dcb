"""A torch that was never checked: right results, one warning, exit status 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aoti_eager._base import checked_torch as checked

from ..support import faked_torch
from ..support.toolchains import copy_toolchain

FUTURE = "2.99.0"

SCRIPT = """
import copy, sys, warnings
import torch
torch._C  # a removed name is removed before the package is imported
for name in sys.argv[1:]:
    delattr(torch._C, name)
import aoti_eager

def silu(x):
    return x * torch.sigmoid(x)

with warnings.catch_warnings(record=True) as given:
    warnings.simplefilter("always")
    x = torch.linspace(-3, 3, 64).reshape(8, 8)
    with aoti_eager.register(["aten::silu", "aten::add.Tensor"]) as registration:
        registered = len(registration.ops)
        for _ in range(3):
            torch.testing.assert_close(torch.nn.functional.silu(x), silu(x))
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
    plain = copy.deepcopy(model)
    report = aoti_eager.fuse(model)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(model(x), plain(x))
    report.undo()

    @aoti_eager.custom_op("future_test::scaled")
    def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
        return silu(x) * by

    y = x.clone().requires_grad_()
    scaled(y, 2.0).sum().backward()
    z = x.clone().requires_grad_()
    (silu(z) * 2.0).sum().backward()
    torch.testing.assert_close(y.grad, z.grad)
    aoti_eager.wait()
    hits = sum(counts.hits for counts in aoti_eager.stats().values())
for one in given:
    if issubclass(one.category, aoti_eager.errors.AotiEagerWarning):
        print("warning:", one.message)
print("served:", registered, hits)
"""


def run(
    tmp_path: Path, *arguments: str, code: str = SCRIPT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with a torch of the future, and a store of its own: that keeps the answer."""
    environment = faked_torch.environment(tmp_path / "site", FUTURE, tmp_path / "own")
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment, **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["_dispatch_get_all_op_names", "_after_autograd_keyset"])
def test_a_private_name_that_is_gone_ends_in_originals_and_one_warning(
    tmp_path: Path, name: str
) -> None:
    warning, served = lines_of(run(tmp_path, name))
    assert f"torch {FUTURE} was never checked with this package, and lacks torch._C.{name}" in (
        warning
    )
    assert "originals run" in warning
    assert served == "served: 0 0"


def test_names_that_stand_in_and_names_that_are_missing(tmp_path: Path) -> None:
    code = """
import sys, warnings
import torch
del torch._C._dispatch_get_all_op_names
warnings.simplefilter("ignore")
import aoti_eager
with aoti_eager.use("inference", exclude="aten::silu", regions=True):
    aoti_eager.enable(children=True)
for name in ("ModelContainerRunner", "cache", "load_runner"):
    assert not hasattr(aoti_eager, name), name
    try:
        getattr(aoti_eager, name)
    except aoti_eager.errors.UnsupportedTorchError as error:
        print(error)
assert hasattr(aoti_eager, "use")
aoti_eager.disable()
"""
    printed = lines_of(run(tmp_path, code=code))
    assert len(printed) == 3
    assert f"needs a torch that this package was checked with; this is torch {FUTURE}" in printed[0]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("torch", "torch cannot be imported"),
        ("aoti_eager.cli", "this package cannot be imported"),
        ("aoti_eager._base.checked_torch", "this package cannot be imported"),
    ],
)
def test_the_command_line_says_what_cannot_be_imported(
    tmp_path: Path, broken: str, says: str
) -> None:
    code = f"""
import sys
sys.modules[{broken!r}] = None
from aoti_eager.__main__ import main
sys.argv = ["aoti-eager", "list"]
sys.exit(main())
"""
    done = run(tmp_path, code=code)
    assert done.returncode == 1
    assert done.stderr.startswith(f"aoti-eager: {says}")
    assert "install" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_says_which_name_is_gone(tmp_path: Path) -> None:
    code = """
import sys, torch
del torch._C._dispatch_get_all_op_names
from aoti_eager.__main__ import main
sys.argv = ["aoti-eager", "doctor"]
sys.exit(main())
"""
    done = run(tmp_path, code=code)
    assert done.returncode == 1
    assert f"torch {FUTURE} lacks torch._C._dispatch_get_all_op_names" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_torch_that_may_not_be_used_runs_originals_with_one_warning(tmp_path: Path) -> None:
    warning, served = lines_of(run(tmp_path, AOTI_EAGER_UNTESTED_TORCH="0"))
    assert f"this is {FUTURE}, and AOTI_EAGER_UNTESTED_TORCH is 0" in warning
    assert served == "served: 0 0"
    assert not list((tmp_path / "own").glob("v1/*"))


def test_until_a_self_test_has_passed_originals_run(tmp_path: Path) -> None:
    """A process that may not compile has none made, either."""
    warning, served = lines_of(run(tmp_path, AOTI_EAGER_MODE="cache_only"))
    assert "no self-test has passed yet, and originals run" in warning
    assert served == "served: 0 0"


@pytest.mark.full
@pytest.mark.compiles
def test_a_self_test_that_passes_is_kept_and_calls_are_served(
    tmp_path: Path, shared_cache_dir: Path
) -> None:
    copy_toolchain(shared_cache_dir, tmp_path / "own")
    variables = {"AOTI_EAGER_MODE": "sync", "AOTI_EAGER_GATE": "0"}
    warning, served = lines_of(run(tmp_path, **variables))
    assert "the self-test has passed, and calls are served" in warning
    assert served.startswith("served: 3 ")
    assert int(served.split()[-1]) > 0
    # The next process finds the answer, and needs no compiler.
    warning, served = lines_of(run(tmp_path, AOTI_EAGER_MODE="cache_only", AOTI_EAGER_GATE="0"))
    assert "the self-test has passed" in warning
    assert served.startswith("served: 3 ")


@pytest.mark.full
def test_a_self_test_that_crashes_ends_in_originals(tmp_path: Path) -> None:
    """The compiler makes a library that ends its process."""
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nkill -SEGV $PPID\n")
    compiler.chmod(0o755)
    variables = {"AOTI_EAGER_MODE": "sync", "CXX": str(compiler)}
    warning, served = lines_of(run(tmp_path, **variables))
    assert "the self-test has failed, and originals run" in warning
    assert served == "served: 0 0"


def test_this_torch_was_checked() -> None:
    assert checked.is_checked()
    assert checked.missing_names() == []


@pytest.mark.parametrize(
    "version",
    ["2.11.0", "2.15.0", "2.13.0a0+git1234567", "2.14.0.dev20260901+cpu", "3.0", "nonsense"],
)
def test_other_releases_and_nightly_builds_were_not(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert not checked.is_checked()


@pytest.mark.parametrize("version", ["2.12.1+cu130", "2.13.0+cpu", "2.14", "2.14.1"])
def test_builds_and_corrections_of_a_checked_release_were(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert checked.is_checked()
