"""Regions' tapes through a real worker: compiled, tried, published, found again, run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aoti_eager
from aoti_eager import cache, cli
from aoti_eager._compile_worker.fork_server import ForkServer
from aoti_eager._compile_worker.library_runs import trial_server
from aoti_eager._functions.tape import SCHEMA, TapeFunction, op_name
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.schema import parsed_schema
from aoti_eager.errors import CompileError

from ..conftest import assert_close
from ..support import forked_python
from ..support.tapes import (
    Attention,
    Convolutions,
    GraphLayer,
    Recorded,
    module_tensors,
    policy,
    registered,
    tape_of,
)

ROOT = Path(__file__).parents[2]
F = torch.nn.functional


def recorded(name: str) -> Recorded:
    torch.manual_seed(0)
    edges = torch.tensor([0, 1, 2, 3, 4, 5, 0, 3, 3])
    models: dict[str, Callable[[], tuple[torch.nn.Module, list[Tensor]]]] = {
        "policy": lambda: (policy(), [torch.randn(2, 17)]),
        "attention": lambda: (Attention(), [torch.tensor([[3, 49, 0, 7, 7], [1, 2, 3, 4, 5]])]),
        "convolutions": lambda: (Convolutions(), [torch.randn(2, 3, 8, 8)]),
        "graph": lambda: (GraphLayer(), [torch.randn(6, 16), edges, edges.flip(0)]),
    }
    module, arguments = models[name]()
    return tape_of(module, arguments, module_tensors(module))


def served(name: str) -> tuple[int, int]:
    stats = aoti_eager.stats()[name]
    return stats.hits, stats.compiles


def serve(one: Recorded, calls: int = 2) -> list[Tensor]:
    """Return the results of the last of some calls of a tape's op, which compile its library."""
    with registered(one.tape) as op:
        for _ in range(calls):
            results: list[Tensor] = op(one.inputs)
        assert served(op_name(one.tape))[0] == calls - 1, aoti_eager.stats()[op_name(one.tape)]
    return results


def test_the_first_call_is_judged_by_the_steps_of_the_tape(cache_dir: Path) -> None:
    """Compiled code keeps in float32 what eager rounds to bfloat16 between two ops."""
    x = torch.linspace(-3, 3, 64).to(torch.bfloat16)
    one = tape_of(lambda x: torch.sin((x * 1.1).float()), [x])
    (mine,) = serve(one)
    exact = torch.sin(x.double() * 1.1)
    assert (mine - exact).abs().max() < (one.results[0] - exact).abs().max()


MODELS = [
    "policy",
    "graph",
    pytest.param("attention", marks=pytest.mark.full),
    pytest.param("convolutions", marks=pytest.mark.full),
]


@pytest.mark.parametrize("name", MODELS)
def test_a_library_gives_what_eager_gave(cache_dir: Path, name: str) -> None:
    one = recorded(name)
    for mine, theirs in zip(serve(one), one.results, strict=True):
        assert_close(mine, theirs)
        assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("name", ["policy", pytest.param("attention", marks=pytest.mark.full)])
def test_a_second_process_finds_the_library(cache_dir: Path, name: str) -> None:
    one = recorded(name)
    serve(one)
    document = cache_dir / "tape.json"
    document.write_text(json.dumps(one.tape.document()))
    script = f"""
import json, sys
import torch, aoti_eager
from aoti_eager._functions.tape import Tape, op_name
from tests.compile_worker.test_tapes import assert_close, recorded, registered
one = recorded({name!r})
tape = Tape.from_document(json.loads(open({str(document)!r}).read()))
assert tape == one.tape
aoti_eager.config.mode = "cache_only"
aoti_eager.config.gate = False
with registered(tape) as op:
    for _ in range(3):
        results = op(one.inputs)
    stats = aoti_eager.stats()[op_name(tape)]
    print(stats.hits, stats.compiles)
assert_close(results[0], one.results[0])
"""
    done = forked_python.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(cache_dir),
    )
    assert done.returncode == 0, done.stderr
    hits, compiles = map(int, done.stdout.split())
    assert hits >= 2
    assert compiles == 0


def environment(cache_dir: Path) -> dict[str, str]:
    return {**os.environ, "AOTI_EAGER_CACHE_DIR": str(cache_dir), "PYTHONPATH": str(ROOT)}


def test_inspect_prints_the_listing(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = recorded("policy")
    serve(one)
    (entry,) = cache.list()
    assert cli.main(["inspect", entry.digest]) == 0
    printed = capsys.readouterr().out
    assert "\n  tape\n    i0: float32 [2, 17]\n" in printed
    assert "aten::addmm(" in printed
    assert "float32 [2, 64]" in printed


# --- indices --------------------------------------------------------------------------------------

WEIGHT = torch.linspace(-1, 1, 50 * 64).reshape(50, 64)
TABLE = torch.linspace(-1, 1, 200 * 200).reshape(200, 200)


def looked_up(words: Tensor) -> Tensor:
    return F.embedding(words, WEIGHT) * 2.0


def indexed(places: Tensor) -> Tensor:
    return torch.relu(TABLE[places, places + 1])


def gathered(places: Tensor) -> Tensor:
    return torch.relu(TABLE.gather(1, places)).sum(1)


def selected(places: Tensor) -> Tensor:
    return torch.relu(TABLE.index_select(1, places))


def added(places: Tensor) -> Tensor:
    return torch.relu(TABLE.index_add(0, places, TABLE))


def added_in_place(places: Tensor) -> Tensor:
    return torch.relu((TABLE + 1).index_add_(0, places, TABLE, alpha=2))


def scattered(places: Tensor) -> Tensor:
    return torch.relu(TABLE.scatter(0, places, 2.0))


# The function, the sizes of its places, and how many of them there are: parallel code over rows, a
# single number without a loop, vectors of places, ATen's own function.
LOOKUPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "rows": (looked_up, (4, 64), 50),
    "one row": (looked_up, (), 50),
    "indexed": (indexed, (3000, 3), 199),
    "gathered": (gathered, (200, 100), 200),
    "selected": (selected, (100,), 200),
    "added": (added, (200,), 200),
    "added in place": (added_in_place, (200,), 200),
    "scattered": (scattered, (200, 200), 200),
}


def lookup(name: str) -> Recorded:
    function, sizes, count = LOOKUPS[name]
    torch.manual_seed(1)
    # A scatter to one place twice has no defined result.
    places = torch.stack([torch.randperm(200) for _ in range(200)], 1)
    if name != "scattered":
        places = torch.randint(0, count, sizes)
    return tape_of(function, [places], [WEIGHT, TABLE])


def wrong_places(name: str) -> list[Tensor]:
    """Return places that the original refuses: one or many, too large or too small."""
    _, _, count = LOOKUPS[name]
    places = lookup(name).inputs[0]
    wrong = []
    for number in (count, -1 if name != "indexed" else -202, 1 << 50, -(1 << 50)):
        one = places.clone()
        one.view(-1)[-1] = number
        wrong += [one, torch.full_like(places, number)]
    return wrong


def refuses_and_goes_on(name: str, library: Path, sha256: str, calls_aten: bool) -> None:
    """Run a library on wrong places: each run fails, and the next good run is right."""
    from aoti_eager._base.sealed_library import sealed_file
    from aoti_eager._runner.kernel_runner import LibraryRunner

    one = lookup(name)
    with sealed_file(library, sha256) as copy:
        run = LibraryRunner(copy, calls_aten=calls_aten).run
    for places in wrong_places(name):
        inputs = [places, *one.inputs[1:]]
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            one.tape.replay(inputs)
        with pytest.raises(RuntimeError, match="out of bounds"):
            run(inputs)
        assert_close(run(list(one.inputs))[0], one.results[0])


@pytest.mark.parametrize(
    "name",
    [
        "rows",
        *(pytest.param(n, marks=pytest.mark.full) for n in LOOKUPS if n != "rows"),
    ],
)
def test_an_index_out_of_range_fails_in_order(cache_dir: Path, name: str) -> None:
    one = lookup(name)
    assert_close(serve(one)[0], one.results[0])
    (entry,) = cache.list()
    (details,) = cache.inspect(entry.digest)
    stored = details.entry.library
    assert stored is not None
    script = f"""
from pathlib import Path
from tests.compile_worker.test_tapes import refuses_and_goes_on
refuses_and_goes_on({name!r}, Path({str(entry.path / "library.so")!r}), {stored.sha256!r},
                    {details.entry.calls_aten!r})
print("lives")
"""
    done = forked_python.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(cache_dir),
    )
    assert done.stdout == "lives\n", done.stderr


def test_the_original_raises_for_an_index_out_of_range(cache_dir: Path) -> None:
    one = lookup("rows")
    with registered(one.tape) as op:
        op(one.inputs)
        assert_close(op(one.inputs)[0], one.results[0])
        with pytest.raises(IndexError, match="out of range"):
            op([wrong_places("rows")[0], *one.inputs[1:]])
        assert_close(op(one.inputs)[0], one.results[0])


# --- the trial ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = trial_server()
    yield server
    server.close()


def tried(server: ForkServer, right: Recorded, library: Path) -> dict[str, Any]:
    """Return what a trial says of a library for the tape of ``right``."""
    description, _ = TapeFunction(right.tape).describe()
    schema = parsed_schema(op_name(right.tape) + SCHEMA)
    key = kernel_key(schema, "CPU", [right.inputs], more=description.context())
    return server.run(
        {
            "key": key.to_json(),
            "library": str(library),
            "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
            "outputs": [{"outputs": list(range(len(right.results)))}],
            "check": True,
            "timeout_s": 60.0,
            "function": description.document,
            "schema": op_name(right.tape) + SCHEMA,
        }
    )


def library_of(one: Recorded) -> Path:
    serve(one)
    (entry,) = [e for e in cache.list() if e.op == op_name(one.tape)]
    return entry.path / "library.so"


def attention(
    eps: float = 1e-5, *, swapped: bool = False, plain: bool = False, axis: int = -1
) -> Recorded:
    """Return the tape of a block, right or with one fault."""
    torch.manual_seed(0)
    words, width, tokens = torch.randn(40, 16), 16, 16
    q, k, out = (torch.randn(width, width) / 4 for _ in range(3))
    gain, shift = torch.rand(width) + 0.5, torch.randn(width)

    def block(places: Tensor, positions: Tensor) -> Tensor:
        x = F.embedding(places, words) + F.embedding(positions, words)
        first, second = torch.mm(x, q.t()), torch.mm(x, k.t())
        scores = torch.mm(second, first.t()) if swapped else torch.mm(first, second.t())
        mixed = torch.mm(torch.softmax(scores * 0.25, axis), x)
        x = x + torch.mm(mixed, out if plain else out.t())
        return F.gelu(F.layer_norm(x, (width,), gain, shift, eps))

    places = torch.randint(0, 40, (tokens,))
    return tape_of(block, [places, torch.arange(tokens)], [words, q, k, out, gain, shift])


def convolution(
    eps: float = 1e-5, *, swapped: bool = False, plain: bool = False, axis: int = 3
) -> Recorded:
    """Return the tape of a convolutional block, right or with one fault."""
    torch.manual_seed(0)
    weight, last = torch.randn(6, 6, 3, 3) / 4, torch.randn(6, 6) / 3
    mean, var = torch.randn(6), torch.rand(6) + 0.5

    def block(image: Tensor) -> Tensor:
        x = F.conv2d(image, weight, padding=1)
        statistics = (var, mean.abs()) if swapped else (mean.abs(), var)
        x = F.silu(F.batch_norm(x, *statistics, training=False, eps=eps))
        return torch.mm(x.mean(axis).mean(2), last if plain else last.t())

    return tape_of(block, [torch.randn(6, 6, 8, 8)], [weight, mean, var, last])


@pytest.mark.full
@pytest.mark.parametrize("make", [attention, convolution])
def test_the_trial_finds_a_fault_and_passes_what_is_right(
    cache_dir: Path, server: ForkServer, make: Callable[..., Recorded]
) -> None:
    right = make()
    assert tried(server, right, library_of(right))["compared"] >= 3
    faults = [make(1e-3), make(swapped=True), make(plain=True)]
    faults += [make(axis=0)] if make is attention else []
    for fault in faults:
        answer = tried(server, right, library_of(fault))
        assert answer.get("reason") == "mismatch", answer


@pytest.mark.full
def test_many_layers_stay_in_range(cache_dir: Path, server: ForkServer) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(48, 48) / 7 for _ in range(24)]

    def layers(x: Tensor) -> Tensor:
        for weight in weights:
            x = torch.mm(x, weight.t()) * 1.5 + 0.1
        return x

    right = tape_of(layers, [torch.randn(4, 48)], weights)
    assert tried(server, right, library_of(right))["compared"] >= 3


# --- what declines --------------------------------------------------------------------------------


def reason_of(one: Recorded) -> str:
    with registered(one.tape) as op:
        op(one.inputs)
        (reason,) = aoti_eager.stats()[op_name(one.tape)].declined
    return reason


def test_one_call_of_atens_is_no_region_and_two_are(cache_dir: Path) -> None:
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    assert reason_of(tape_of(torch.mm, [x, w])) == "no_kernel_of_its_own"
    two = tape_of(lambda x, w: torch.mm(torch.mm(x, w), w), [x, w])
    assert_close(serve(two)[0], two.results[0])


def test_a_mask_is_no_index(cache_dir: Path) -> None:
    x = torch.arange(6.0)
    assert reason_of(tape_of(lambda x, m: x[m] * 2, [x, x > 2])) == "data_dependent_output"


def test_a_tape_of_an_op_that_the_worker_lacks_says_so() -> None:
    from aoti_eager._functions.call_target import call_target

    document = tape_of(torch.add, [torch.ones(2), torch.ones(2)]).tape.document()
    document["tape"]["calls"][0][0] = "aten::nothing"
    with pytest.raises(CompileError, match="nothing") as raised:
        call_target("aoti_eager_region::t_0", document, "aoti_eager_region::t_0() -> ()")
    assert (raised.value.reason, raised.value.remember) == ("op_not_in_worker", False)
