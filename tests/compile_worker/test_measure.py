"""Times of a served call beside the original's, by the server that the compile worker uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import aoti_eager
from aoti_eager._base.op_names import find_overload
from aoti_eager._compile_service.replies import Compiled
from aoti_eager._compile_worker import rounds
from aoti_eager._compile_worker.fork_server import ForkServer
from aoti_eager._dispatch.kernel_cache import KernelCache
from aoti_eager._functions.description import python_function
from aoti_eager._keys.kernel_key import KernelKey, kernel_key
from aoti_eager._keys.schema import op_schema
from aoti_eager._native import library as native_library
from aoti_eager._registration import registry
from aoti_eager._store.verdict import PathTime, path_times

pytestmark = pytest.mark.native

aten = torch.ops.aten


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer("measure")
    yield server
    server.close()


def key_of(name: str, *args: Any) -> KernelKey:
    schema = op_schema(find_overload(name))
    return kernel_key(schema, "CPU", schema.bind(args, {}))


def library_of(name: str, *args: Any) -> dict[str, Any]:
    """Return the library that the current cache has for a call, as a request has it."""
    with aoti_eager.register(name):
        find_overload(name)(*args)
    digests = {e.digest for e in aoti_eager.cache.list() if e.op == name and e.status == "ready"}
    (details,) = [
        d
        for digest in digests
        for d in aoti_eager.cache.inspect(digest)
        if d.entry.key.arguments == key_of(name, *args).arguments
        and dict(d.entry.key.context)["threads"] in (torch.get_num_threads(), "any")
    ]
    assert details.entry.library is not None
    return {
        "path": str(details.summary.path / "library.so"),
        "sha256": details.entry.library.sha256,
        "outputs": [dict(output) for output in details.entry.outputs],
        "calls_aten": details.entry.calls_aten,
    }


def measured(
    server: ForkServer, name: str, *args: Any, library: dict[str, Any] | None = None
) -> dict[str, PathTime]:
    """Return the times of a call served by ``library``: by default, the call's own."""
    request = {
        "key": key_of(name, *args).to_json(),
        "function": None,
        "schema": "",
        "toolchain": "/nonexistent",
        "native": [str(part) for part in native_library.loaded() or ()],
        "is_native": True,
        "threads": 1,
        "libraries": [library or library_of(name, *args)],
        "timeout_s": 60.0,
    }
    answer = server.run(request)
    assert "times" in answer, answer
    (times,) = answer["times"]
    return path_times(times)


X = torch.randn(64, 256)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten::tanh", (X,)),
        ("aten::mul.Tensor", (X, X)),
        ("aten::mul.Tensor", (X, 2.0)),
        ("aten::mul_.Tensor", (X.clone(), X)),
        ("aten::cat", ([X, X], 1)),
        ("aten::var_mean.correction", (X, [1])),
        ("aten::native_layer_norm", (X, [256], None, None, 1e-5)),
        ("aten::sum.dim_IntList", (X, [1], True)),
        ("aten::_foreach_mul.List", ([X, X], [X, X])),
    ],
    ids=["tanh", "mul", "a number", "in place", "a list", "pair", "optional", "ints", "foreach"],
)
def test_calls_of_all_kinds_are_served_while_they_are_timed(
    name: str, args: tuple[Any, ...], server: ForkServer, shared_cache: Path
) -> None:
    (time,) = measured(server, name, *args).values()
    assert min(time.kernel_us, time.original_us, time.passed_us) > 0.0
    # Rounds always differ by something; the faster half of those with a core each, by little.
    assert not time.quiet or 0.0 < time.spread < 1.0


@pytest.mark.full
def test_a_kernel_that_is_seven_times_as_fast_wins(
    server: ForkServer, shared_cache: Path, machine: Any
) -> None:
    x = torch.randn(128, 4096)
    with machine.alone():
        (time,) = measured(server, "aten::var_mean.correction", x, [1]).values()
    # It is, where no other process keeps the cores from a parallel region.
    assert time.wins or not time.quiet


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: then no kernel has a parallel region, in which it waits for a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.full
def test_a_library_that_does_less_than_the_original_wins_and_one_that_does_more_loses(
    server: ForkServer, shared_cache: Path, one_thread: None
) -> None:
    """Results are not compared here, so a library may serve an op that is not its own."""
    cheap, dear = (library_of(name, X) for name in ("aten::neg", "aten::tanh"))
    (less,) = measured(server, "aten::tanh", X, library=cheap).values()
    (more,) = measured(server, "aten::neg", X, library=dear).values()
    assert less.wins, less
    assert not more.wins, more
    assert less.kernel_us < more.kernel_us
    assert less.original_us > more.original_us


def test_a_library_that_is_not_there_has_no_times(server: ForkServer) -> None:
    answer = server.run(
        {
            "key": key_of("aten::tanh", X).to_json(),
            "function": None,
            "schema": "",
            "toolchain": "/nonexistent",
            "native": None,
            "is_native": False,
            "threads": 1,
            "libraries": [
                {"path": "/nonexistent.so", "sha256": "", "outputs": [], "calls_aten": False}
            ],
            "timeout_s": 60.0,
        }
    )
    assert "times" not in answer
    assert (answer["reason"], answer["remember"]) == ("crashed", False)
    assert "nonexistent.so" in answer["message"]


@pytest.mark.full
def test_a_function_of_the_scripts_is_timed_too(server: ForkServer, shared_cache: Path) -> None:
    weight = torch.full((8,), 3.0)

    @torch.library.custom_op("aoti_eager_test::timed", mutates_args=())
    def timed(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * weight

    op = torch.ops.aoti_eager_test.timed.default
    x = torch.randn(4, 8)
    cache = KernelCache(op, "CPU")
    function, _ = cache.describe_function()
    assert python_function(op, "CPU") is not None
    assert function is not None
    with aoti_eager.config.scope(gate=True):
        made = compiled(op, function, cache, x)
    assert set(made.times) == {"python"}


def compiled(op: Any, function: Any, cache: KernelCache, *args: Any) -> Compiled:
    """Compile a call as a miss does, with the gate as it is set, and return what came out."""
    from aoti_eager._compile_service import cache_context
    from aoti_eager._compile_service.requests import LibraryRequest
    from aoti_eager._keys.call_template import call_template

    schema = op_schema(op)
    context = cache_context.current()
    more = cache.key_context(cache.toolchain, function)
    key = kernel_key(schema, "CPU", schema.bind(args, {}), more=more)
    with context.store.workspace() as work:
        code = cache.toolchain._code(call_template(schema, key), function, context, None)
        return context.service.compile(LibraryRequest(code, work))


@pytest.mark.full
@pytest.mark.parametrize(("native", "timed"), [("1", {"native"}), ("0", {"native", "python"})])
def test_the_hit_path_that_serves_is_timed_whether_or_not_the_other_is_loaded(
    shared_cache: Path, native: str, timed: set[str]
) -> None:
    with aoti_eager.config.scope(gate=True, native=native), aoti_eager.register("aten::tanh"):
        (cache,) = (one for one in registry.caches() if one.schema.op == "aten::tanh")
        made = compiled(aten.tanh.default, None, cache, X)
    assert set(made.times) == timed


@pytest.mark.full
@pytest.mark.compiles
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="there is one core")
def test_a_small_parallel_kernel_is_compared_with_one_of_one_thread(
    shared_cache: Path, machine: Any
) -> None:
    op = aten.silu.default
    x = torch.randn(32, 256)
    with machine.alone(), aoti_eager.config.scope(gate=True):
        made = compiled(op, None, KernelCache(op, "CPU"), x)
    # Whichever has won, it is for this thread count, and faster than a region's cost alone.
    assert made.parallel
    assert made.times
    assert min(time.kernel_us for time in made.times.values()) < 1000


def test_rounds_in_which_a_thread_waited_do_not_count() -> None:
    side = rounds.Side(None, "")
    for taken, quiet in ((5000.0, False), (1000.0, True), (1010.0, True), (1030.0, True)):
        side.add(taken, quiet)
    assert side.microseconds(quiet=True) == 1.005
    assert side.spread(quiet=True) == 0.01
    # Where nothing is quiet, the fastest quarter is what there is.
    assert side.microseconds(quiet=False) == 1.0
    assert side.spread(quiet=False) == 0.0
    assert side.calls(most=200) == 200
    assert side.calls(most=8) == 8
