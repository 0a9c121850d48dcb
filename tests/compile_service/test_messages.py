"""Requests and replies: what one side writes the other reads, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aoti_eager import config
from aoti_eager._base.cpu import cpu_features, cpu_target
from aoti_eager._compile_service import messages, worker_pool
from aoti_eager._compile_service.kernel_compiler import KernelCompiler
from aoti_eager._compile_service.messages import MessageError
from aoti_eager._compile_service.replies import (
    Busy,
    Compiled,
    Failure,
    Measured,
    PartsMade,
    Published,
    read_reply,
)
from aoti_eager._compile_service.requested import (
    BuiltLibrary,
    EntryOrigin,
    RequestedCall,
    RequestedCode,
)
from aoti_eager._compile_service.requests import (
    EntryRequest,
    LibraryRequest,
    Linger,
    PartsRequest,
    Request,
    TimesRequest,
    read_request,
)
from aoti_eager._compile_service.steps import Step
from aoti_eager._compile_service.worker_pool import CompileService
from aoti_eager._compile_worker.jobs import CompileJobs
from aoti_eager._compile_worker.main import _decoded
from aoti_eager._keys.call_template import call_template
from aoti_eager._keys.dynamic_plan import plan_of
from aoti_eager._keys.kernel_key import kernel_key
from aoti_eager._keys.pattern import family_of
from aoti_eager._keys.schema import op_schema
from aoti_eager._store.environment import current_environment
from aoti_eager._store.limits import Limits
from aoti_eager._store.verdict import PathTime
from aoti_eager.errors import CompileError

SCHEMA = op_schema(torch.ops.aten.mul.Tensor)
KEY = kernel_key(SCHEMA, "CPU", SCHEMA.bind((torch.ones(3, 4), torch.ones(3, 4)), {}))
FAMILY = family_of(SCHEMA, KEY)
PLAN = plan_of(FAMILY.pattern.digest, FAMILY, {"s0"})
ROOT = Path("/store")
CALL = RequestedCall(
    KEY,
    ROOT,
    check=True,
    timeout_s=60.0,
    function={"source": "x"},
    schema="f(Tensor x) -> Tensor",
    native=(ROOT / "native.so", "abc"),
    is_native=True,
    trial_timeout_s=1.5,
)
CODE = RequestedCode(CALL, gate=True, plan=PLAN, options={"cpp.threads": 2})
LIBRARY = BuiltLibrary(ROOT / "library.so", "abc", ({"output": 0},), calls_aten=False)
ORIGIN = EntryOrigin(current_environment(), "x86-64-v3", frozenset({"avx2", "fma"}))
REQUESTS: list[Request | Linger] = [
    LibraryRequest(CODE, ROOT / "tmp"),
    EntryRequest(CODE, ORIGIN, Limits(5 << 30, None)),
    TimesRequest(CALL, LIBRARY, compared=True, numbers=("alpha",), digest="abc", size=3),
    PartsRequest(ROOT, 2, 60.0, {"cpp.threads": 2}),
    Linger(12.5),
]
TIMES = {"python": PathTime(1.0, 2.0, 2.5, 0.1, True)}
REPLIES = [
    Compiled(
        *(ROOT / "library.so", "abc", ({"output": 0},), False, True, "c++ 13"),
        times=TIMES,
        compared=True,
        pattern=PLAN.pattern,
        guards=PLAN.guards,
        identity="abc",
        lost_signs=3,
        unmeasured="why",
    ),
    Published(ROOT / "entry", compiled=True),
    Busy(),
    Measured(TIMES, compared=True, unmeasured="why"),
    PartsMade(True),
    Failure("mismatch", "on ordinary data", log="text", remember=True),
]
MESSAGES: list[tuple[Any, Any]] = [
    *((read_request, one) for one in REQUESTS),
    *((read_reply, one) for one in REPLIES),
    (Step.from_json, Step("compiling C++", 4, 6)),
]
# What others' documents are about: kept as they are, whatever is in them.
OPEN = {"function", "options", "environment", "outputs"}
# Inside of these, the readers of keys, plans, guards and times check.
CHECKED_ELSEWHERE = {"key", "plan", "pattern", "guards", "times"}

by_kind = pytest.mark.parametrize(
    ("read", "message"), MESSAGES, ids=[type(message).__name__ for _, message in MESSAGES]
)


def written(message: Any) -> Any:
    return json.loads(json.dumps(message.to_json()))


def fields(document: Any) -> Iterator[tuple[str, ...]]:
    """Give the way to each field, and to the fields inside of it."""
    for name, value in document.items():
        yield (name,)
        if isinstance(value, dict) and name not in OPEN | CHECKED_ELSEWHERE:
            yield from ((name, *rest) for rest in fields(value))


def changed(document: Any, way: tuple[str, ...], *value: Any) -> Any:
    """Return a copy in which a field has another value, or is gone."""
    made = found = copy.deepcopy(document)
    for name in way[:-1]:
        found = found[name]
    del found[way[-1]]
    if value:
        found[way[-1]] = value[0]
    return made


@by_kind
def test_what_one_side_writes_the_other_reads(read: Any, message: Any) -> None:
    assert read(written(message)) == message


@pytest.mark.parametrize("plan", [None, PLAN], ids=["static", "dynamic"])
def test_a_call_of_an_op_of_torchs_needs_no_function(plan: Any) -> None:
    call = RequestedCall(KEY, ROOT, check=False, timeout_s=1.0, native=None)
    request = LibraryRequest(RequestedCode(call, plan=plan), ROOT)
    assert read_request(written(request)) == request


@by_kind
def test_a_message_that_lacks_a_field_is_refused(read: Any, message: Any) -> None:
    document = written(message)
    for way in fields(document):
        if way == ("reason",):  # Without it, it is no failure.
            continue
        with pytest.raises(MessageError, match=f"no '{way[-1]}'"):
            read(changed(document, way))


@by_kind
def test_a_message_with_a_field_of_a_wrong_kind_is_refused(read: Any, message: Any) -> None:
    document = written(message)
    for way in fields(document):
        for value in ([{"a": "b"}], 3.5 if way[-1] not in _SECONDS else "3.5", "\x1b"):
            if (isinstance(value, str) and way[-1] in _TEXTS) or (
                isinstance(value, list) and way[-1] == "outputs"
            ):
                continue
            with pytest.raises(MessageError):
                read(changed(document, way, value))


_SECONDS = {"timeout_s", "trial_timeout_s", "until"}
_TEXTS = {
    *("schema", "root", "work", "target", "path", "sha256", "digest", "library", "compiler"),
    *("identity", "unmeasured", "entry", "message", "log"),
}


@by_kind
@pytest.mark.parametrize("value", [None, 7, [], "text", {}])
def test_what_is_no_message_is_refused(read: Any, message: Any, value: Any) -> None:
    with pytest.raises(MessageError):
        read(value)


def test_a_number_that_is_too_large_for_a_float_is_refused() -> None:
    call = RequestedCall(KEY, ROOT, check=False, timeout_s=1.0, native=None)
    document = written(LibraryRequest(RequestedCode(call), ROOT))
    document["code"]["call"]["timeout_s"] = 10**400
    with pytest.raises(MessageError, match="too large to convert to float"):
        read_request(document)


@by_kind
def test_a_message_of_another_version_is_refused(
    read: Any, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but a failure, by which a worker says that it cannot read a request."""
    for name, module in (("MESSAGE_VERSION", messages), ("CODE_VERSION", messages)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, 0)
            document = written(message)
        if isinstance(message, Failure):
            assert read(document) == message
        else:
            with pytest.raises(MessageError, match="comes from version"):
                read(document)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "2.99")
        document = written(message)
    if not isinstance(message, Failure):
        with pytest.raises(MessageError, match=r"torch 2\.99"):
            read(document)


def test_a_refused_value_is_shown_in_one_short_line() -> None:
    document = changed(written(REQUESTS[0]), ("work",), ["\n\x1b[31m" * 100_000])
    with pytest.raises(MessageError) as refused:
        read_request(document)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()


# -- the script's side --


class Worker:
    """A worker that gives one answer."""

    pid = 0
    lingers = False

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def ask(self, request: Request, deadline: Any) -> Any:
        return self._answer

    def is_alive(self) -> bool:
        return True

    def kill(self) -> None:
        pass


def asked(answer: Any, request: Request, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what a service makes of a worker's answer."""
    monkeypatch.setattr(worker_pool, "WorkerProcess", lambda *_: Worker(answer))
    service = CompileService(cpu_target(cpu_features()), workers=1, ends_at_exit=False)
    method = {"compile": "compile", "publish": "publish", "measure": "measure"}
    return getattr(service, method.get(request.kind, "make_parts"))(request)


ASKED = dict(zip(("compile", "publish", "measure", "parts"), REQUESTS, strict=False))
ANSWERS = {"compile": REPLIES[0], "publish": REPLIES[1], "measure": REPLIES[3], "parts": REPLIES[4]}


@pytest.mark.compiles  # By a worker of the test's own.
@pytest.mark.parametrize("kind", ASKED)
def test_a_script_gets_what_its_worker_has_replied(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = ANSWERS[kind] if kind != "parts" else True
    assert asked(written(ANSWERS[kind]), ASKED[kind], monkeypatch) == want


def test_a_busy_key_has_no_entry_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(written(Busy()), ASKED["publish"], monkeypatch) is None


@pytest.mark.compiles
@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("wrong", ["lacks a field", "a wrong kind", "another version", "another"])
def test_a_reply_of_another_form_counts_as_the_death_of_its_worker(
    kind: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = written(ANSWERS[kind])
    last = list(document)[-1]
    answer = {
        "lacks a field": changed(document, (last,)),
        "a wrong kind": changed(document, (last,), {}),
        "another version": changed(document, ("version",), "0"),
        "another": written(ANSWERS["publish" if kind == "parts" else "parts"]),
    }[wrong]
    with pytest.raises(CompileError, match="an answer of another kind") as error:
        asked(answer, ASKED[kind], monkeypatch)
    assert (error.value.reason, error.value.remember) == ("worker_died", False)


def test_a_failure_is_raised_with_all_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match=r"aten::mul\.Tensor: on ordinary data") as error:
        asked(written(REPLIES[5]), ASKED["publish"], monkeypatch)
    assert (error.value.reason, error.value.log, error.value.remember) == ("mismatch", "text", True)


# -- the worker's side --


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("wrong", ["lacks a field", "a wrong kind", "another version", "unknown"])
def test_a_worker_refuses_a_request_of_another_form(kind: str, wrong: str) -> None:
    document = written(ASKED[kind])
    last = list(document)[-1]
    line = {
        "lacks a field": changed(document, (last,)),
        "a wrong kind": changed(document, (last,), []),
        "another version": changed(document, ("version",), "0"),
        "unknown": changed(document, ("kind",), "unknown"),
    }[wrong]
    assert refusal(json.dumps(line)).reason == "worker_died"


@pytest.mark.parametrize("line", ["", "words", "[1, 2", "7", "null", "[" * 100_000])
def test_a_line_that_is_no_request_costs_no_worker(line: str) -> None:
    assert refusal(line).reason == "worker_died"


def refusal(line: str) -> Failure:
    """Return what the script is told of a line that the worker refuses."""
    refused = _decoded(line)
    assert isinstance(refused, MessageError)
    told = read_reply(json.loads(CompileJobs(0).answer_line(refused)))
    assert isinstance(told, Failure)
    assert not told.remember
    assert "a request of another kind" in told.message
    return told


def test_a_real_worker_of_another_version_says_so(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the package is upgraded while a script runs."""
    service = CompileService(cpu_target(cpu_features()), workers=1, ends_at_exit=False)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(messages, "MESSAGE_VERSION", 0)
            with pytest.raises(CompileError, match="comes from version") as error:
                service.make_parts(PartsRequest(cache_dir, 1, 120.0))
        assert error.value.reason == "worker_died"
        # The worker lives on, and would serve a script of its own version.
        assert [worker.is_alive() for worker in service._all] == [True]
    finally:
        service.close()


# -- who is asked --


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("what", ["publish", "measure"])
def test_the_worker_has_the_priority_that_was_asked_for(
    what: str, background: bool, cache_dir: Path
) -> None:
    asked: list[tuple[bool, Any]] = []

    def service(is_low: bool) -> Any:
        def ask(request: Request) -> None:
            asked.append((is_low, request))

        return SimpleNamespace(publish=ask, measure=ask)

    context: Any = SimpleNamespace(
        store=SimpleNamespace(root=cache_dir),
        target=cpu_target(cpu_features()),
        environment=current_environment(),
        service=service(False),
        background_service=service(True),
    )
    entry: Any = SimpleNamespace(library=None, outputs=(), calls_aten=False, key=KEY, digest="abc")
    compiler = KernelCompiler(torch.ops.aten.mul.Tensor, None)
    template = call_template(SCHEMA, KEY, ())
    if what == "publish":
        compiler.publish(template, None, context, background=background)
    else:
        compiler.measure(
            *(template, None, context, cache_dir / "library.so", entry),
            background=background,
            compared=False,
            size=None,
        )
    ((is_low, request),) = asked
    assert is_low is background
    call = request.code.call if what == "publish" else request.call
    assert (call.key, call.root, call.check) == (KEY, cache_dir, config.check)
