"""What the compile worker does for one request: compile, try, measure, publish (worker only)."""

from __future__ import annotations

import contextlib
import ctypes.util
import itertools
import json
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._base.child_process import LONGEST_ANSWER
from .._base.cpp_compiler import compiler_identity
from .._base.determinism import is_compilers_own
from .._base.printable import shortened
from .._keys.guards import Guards
from .._keys.kernel_key import KernelKey
from .._keys.pattern import (
    with_values,
)
from .._keys.pattern_instances import (
    instances,
    size_class,
    size_symbols,
    with_ones,
)
from .._store.environment import Environment
from .._store.new_entries import (
    LONGEST_MESSAGE,
    failed_entry,
    is_remembered,
    ready_entry,
)
from .._store.store import Store
from .._store.stored_failures import met_now
from .._store.verdict import Verdict, Verdicts, path_times
from ..errors import (
    AotiEagerError,
    CompileError,
    LockTimeoutError,
    StoreError,
)
from .fork_server import ForkServer
from .job_context import (
    Request,
    standard_error_in,
    stored_entry,
    use_context,
    use_directories,
    values_of_symbols,
)
from .plain_path import plain_path

if TYPE_CHECKING:
    from .lowering import Lowered

# If another process compiles a key under the same lock, the caller asks for the key again later.
_LOCK_TIMEOUT_S = 0.05
# Above this time, entering and leaving a parallel region costs next to nothing, and code for one
# thread cannot win.
_SERIAL_BELOW_US = 300.0

# A dynamic specialisation is tried with further calls of at most so many elements.
_MOST_ELEMENTS = 1 << 20

# The most sizes of 1 in one trial of a dynamic specialisation; it serves no calls with more.
_MOST_ONES = 3

# At most this many characters of a log are sent: the last ones.
_LONGEST_LOG = 20_000

Answer = dict[str, Any]
Times = dict[str, dict[str, float]]


def trial_server() -> ForkServer:
    """Return the server of first runs: with glibc's checking allocator where glibc has one."""
    # OpenMP's waiting threads sleep. By default, each spins on a core that the script wants.
    variables = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    checker = ctypes.util.find_library("c_malloc_debug")
    if checker is None:
        return ForkServer("trial", variables)
    # The allocator fills memory, and checks the bytes behind a block when the block is freed.
    tunables = "glibc.malloc.check=3:glibc.malloc.perturb=165"
    return ForkServer("trial", {**variables, "LD_PRELOAD": checker, "GLIBC_TUNABLES": tunables})


@dataclass(frozen=True, slots=True)
class _Tried:
    """What a trial has shown: whether anything was compared, and how many zeros lost their sign."""

    compared: bool
    lost_signs: int


class CompileJobs:
    """Answers requests, one at a time.

    Args:
        vector_bits: See ``inductor_compat.prepare_worker``.
        scratch: The directory for temporary files that belong to no request.

    Attributes:
        work: The temporary directory of the request that is being answered.
        ending: Whether the parent is gone, so that an error says nothing about a key.
        lingers: Whether the parent is gone, or soon will be, and has asked us to finish.
    """

    def __init__(self, vector_bits: int, scratch: Path | None = None) -> None:
        self.work: Path | None = None
        self.scratch = scratch
        self._swept: set[Path] = set()
        self.ending = False
        self.lingers = False
        self._vector_bits = vector_bits
        self._trial = trial_server()
        self._measurer = ForkServer("measure")
        self._inductor_ready = False

    def answer_line(self, request: Request) -> str:
        """Return the reply to a request as a line of JSON, no longer than the reader's limit."""
        line = json.dumps(self.answer(request)) + "\n"
        if len(line) > LONGEST_ANSWER:
            message = f"the answer of the compile worker has {len(line)} bytes: it is not sent"
            line = json.dumps(_failure("compile_failed", message, "", False)) + "\n"
        return line

    def answer(self, request: Request) -> Answer:
        """Return the reply to a request; an error becomes a reply, too."""
        kinds: dict[str, Callable[[Request], Answer]] = {
            "compile": self._compile_into_work,
            "publish": self._publish,
            "measure": self._measure_stored,
            "parts": self._make_parts,
        }
        self._sweep(Path(request["toolchain"]).parent)
        try:
            return kinds[request["kind"]](request)
        except CompileError as error:
            return _failure(error.reason, str(error), error.log, is_remembered(error))
        except StoreError as error:
            return _failure("store_unwritable", str(error), "", False)
        except Exception as error:  # noqa: BLE001 - the answer is the reason; the worker lives on
            text = traceback.format_exc()
            return _failure("compile_failed", f"{type(error).__name__}: {error}", text, False)

    def _sweep(self, root: Path) -> None:
        """Remove the leftovers of killed processes in a store, once in this process."""
        if root not in self._swept:
            self._swept.add(root)
            with contextlib.suppress(StoreError):  # The store is read-only, or does not exist yet.
                Store(root, lock_timeout_s=_LOCK_TIMEOUT_S).remove_stale_work()

    # -- a library in the caller's directory --

    def _compile_into_work(self, request: Request) -> Answer:
        with self._working_in(Path(request["work"])):
            return self._compile(request, Path(request["work"]))

    # -- an entry in the store --

    def _publish(self, request: Request) -> Answer:
        """Return the path of the key's entry: found, or compiled and published here."""
        key = KernelKey.from_json(request["key"])
        place = request["store"]
        store = Store(Path(place["root"]), lock_timeout_s=_LOCK_TIMEOUT_S)
        environment = Environment(tuple(sorted(place["environment"].items())))
        try:
            with store.locked(key):
                found = None
                if request.get("dynamic") is None:
                    found = stored_entry(store, key, environment)
                if found is not None:
                    return {"entry": str(found.path)}
                with store.workspace() as work, self._working_in(work):
                    return self._compile_and_publish(request, key, store, environment, work)
        except LockTimeoutError:
            return {"busy": True}

    def _compile_and_publish(
        self, request: Request, key: KernelKey, store: Store, environment: Environment, work: Path
    ) -> Answer:
        target, requires = request["store"]["target"], frozenset(request["store"]["requires"])
        try:
            made = self._compile(request, work)
        except CompileError as error:
            if is_remembered(error) and not self.ending:
                dynamic = request.get("dynamic")
                entry = failed_entry(
                    key if dynamic is None else KernelKey.from_json(dynamic["pattern"]),
                    environment,
                    target,
                    requires,
                    reason=error.reason,
                    message=str(error),
                    remembered=met_now(compiler_identity()),
                    guards=None if dynamic is None else Guards.from_json(dynamic["guards"]),
                )
                store.publish(entry, work, None, error.log)
            raise
        pattern, guards = made["pattern"], made["guards"]
        entry = ready_entry(
            key if pattern is None else KernelKey.from_json(pattern),
            environment,
            target,
            requires,
            outputs=made["outputs"],
            calls_aten=made["calls_aten"],
            parallel=made["parallel"],
            compiler=made["compiler"],
            identity=made["identity"],
            lost_signs=made["lost_signs"],
            checked=False,
            guards=None if guards is None else Guards.from_json(guards),
        )
        if self.ending:
            raise CompileError("worker_died", "the process that asked is gone", remember=False)
        stored = store.publish(entry, work, Path(made["library"]), "", sha256=made["sha256"])
        if stored.entry.library is not None:
            verdict = Verdict(stored.entry.library.sha256, compared=made["compared"])
            verdict = verdict.with_times(
                path_times(made["times"]),
                request["threads"],
                None if guards is None else size_class(key),
                made["unmeasured"],
            )
            with contextlib.suppress(OSError):  # Without a verdict, the library is measured again.
                Verdicts(store.root).put(stored.entry.digest, verdict)
        return {"entry": str(stored.path), "compiled": True}

    # -- what all libraries have in common --

    def _make_parts(self, request: Request) -> Answer:
        """Make the parts that libraries of ops and of functions share; return if any was made."""
        self._import_inductor()
        from . import inductor_compat
        from .float_flags import contraction
        from .thin_codegen import compile_command
        from .thin_header import make_parts, stub_library

        root = Path(request["toolchain"]).parent
        plain = plain_path(root)
        headers = plain / "toolchain" / "headers"
        was_made = False
        store = Store(root, lock_timeout_s=_LOCK_TIMEOUT_S)
        with store.workspace() as work, self._working_in(work):
            written = plain / work.relative_to(root)
            use_directories(written, headers)
            for is_function in (False, True):
                options = {**contraction(is_function), **request["options"]}
                with inductor_compat.settings(options):
                    command = compile_command(written)
                was_made |= make_parts(command, headers, request["timeout_s"])
                stub_library(command[0], headers, written)
        return {"was_made": was_made}

    # -- a library that exists --

    def _measure_stored(self, request: Request) -> Answer:
        library = request["library"]
        self._measurer.start()  # It imports torch during the trial.
        # A library that was run on this model of processor before needs no second trial.
        compared = library["compared"] or self._try(request, library).compared
        (times,), unmeasured = self._measured(request, [library])
        if self.lingers:
            with contextlib.suppress(OSError):
                self._keep_verdict(request, times, compared, unmeasured)
        return {"times": times, "compared": compared, "unmeasured": unmeasured}

    def _keep_verdict(
        self, request: Request, times: Times, compared: bool, unmeasured: str
    ) -> None:
        """Write the verdict here: the script that asked has ended."""
        library = request["library"]
        verdicts = Verdicts(Path(request["toolchain"]).parent)
        verdict = verdicts.get(library["digest"], library["sha256"])
        verdict = replace(verdict, compared=verdict.compared or compared)
        verdict = verdict.with_times(
            path_times(times), request["threads"], library["size"], unmeasured
        )
        verdicts.put(library["digest"], verdict)

    # -- the parts --

    def _compile(self, request: Request, work: Path) -> Answer:
        """Return a library in ``work`` that has passed its trial, with its times.

        Raises:
            CompileError: No library can be made; the error has the reason.
        """
        log = work / "compile.log"
        try:
            with standard_error_in(log):
                return self._compile_best(request, work)
        except CompileError as error:
            error.log = error.log or _text(log)
            raise
        except OSError as error:
            raise CompileError("store_unwritable", str(error), remember=False) from error
        except AotiEagerError as error:
            raise CompileError(
                "compile_failed", str(error), log=_text(log), remember=False
            ) from error
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            text = _text(log) + traceback.format_exc()
            raise CompileError(
                "compile_failed", message, log=text, remember=is_compilers_own(error)
            ) from error

    def _compile_best(self, request: Request, work: Path) -> Answer:
        lowered, tried = self._tried(request, work, request["options"])
        made = [(lowered, tried)]
        times: list[Times] = [{}]
        unmeasured = ""
        if request["gate"]:
            times, unmeasured = self._measured(request, [_library(lowered)])
            if lowered.parallel and _may_lose_to_one_thread(times[0]):
                # Entering and leaving a parallel region costs a microsecond or two: too much for a
                # small kernel.
                serial = work / "serial"
                serial.mkdir()
                options = {**request["options"], "cpp.threads": 1}
                with contextlib.suppress(CompileError):  # Then the parallel library remains.
                    made.append(self._tried(request, serial, options))
                    both = [_library(one) for one, _ in made]
                    times, unmeasured = self._measured(request, both)
        best = min(range(len(made)), key=lambda i: _share(times[i]))
        lowered, tried = made[best]
        return {
            **_library(lowered),
            "library": str(lowered.library),
            # A serial library that won against parallel code is kept for this thread count only.
            "parallel": made[0][0].parallel,
            "compiler": lowered.compiler,
            "identity": compiler_identity(),
            "compared": tried.compared,
            "lost_signs": tried.lost_signs,
            "times": times[best],
            "unmeasured": unmeasured,
            "pattern": None if lowered.pattern is None else lowered.pattern.to_json(),
            "guards": None if lowered.guards is None else lowered.guards.to_json(),
        }

    def _tried(
        self, request: Request, work: Path, options: dict[str, Any]
    ) -> tuple[Lowered, _Tried]:
        """Return a library that has passed its trial, and the trial's findings."""
        self._import_inductor()
        from .._functions.call_target import call_target
        from .._keys.call_template import call_template
        from .lowering import lower

        key = KernelKey.from_json(request["key"])
        op, schema = call_target(key.op, request["function"], request["schema"])
        root = Path(request["toolchain"]).parent
        plain = plain_path(root)
        headers = plain / "toolchain" / "headers"
        written = plain / work.relative_to(root)
        use_directories(written, headers)
        use_context(dict(key.context))
        dynamic = request.get("dynamic")
        dims = None if dynamic is None else [tuple(place) for place in dynamic["dims"]]
        template = call_template(schema, key, request.get("numbers") or ())
        lowered = lower(op, template, written, headers, options, dims)
        # From here on by its own name: the other name is valid in this process alone.
        library = work / lowered.library.relative_to(written)
        lowered = replace(lowered, library=library)
        tried = self._try(request, _library(lowered))
        if lowered.pattern is not None and lowered.guards is not None:
            values = values_of_symbols(schema, key, lowered.pattern, lowered.guards)
            pattern, guards = lowered.pattern, lowered.guards
            for other in instances(pattern, guards, values, most_elements=_MOST_ELEMENTS):
                self._try({**request, "key": other.to_json()}, _library(lowered))
            guards = self._relaxed(request, lowered, values)
            lowered = replace(lowered, guards=guards)
        return lowered, tried

    def _relaxed(self, request: Request, lowered: Lowered, values: Mapping[str, int]) -> Guards:
        """Return the guards, extended by sizes of 1 where a trial found them right.

        The compiler assumes that no size is 1: broadcasting is another graph.
        """
        pattern, guards = lowered.pattern, lowered.guards
        assert pattern is not None
        assert guards is not None

        def is_right(names: Sequence[str]) -> bool:
            """Return whether the code was right with all of these symbols at 1."""
            ones = {**values, **dict.fromkeys(names, 1)}
            if len(names) > _MOST_ONES or not with_ones(guards, names).hold(ones):
                return False
            other = {**request, "key": with_values(pattern, ones).to_json(), "check": True}
            try:
                return self._try(other, _library(lowered)).compared
            except CompileError as error:
                if error.reason != "mismatch":
                    raise
                return False

        try:
            passed = [name for name in sorted(size_symbols(pattern)) if is_right([name])]
            # In eager, a tensor with two sizes of 1 may have other strides than one with a single
            # size of 1.
            wrong: list[tuple[str, ...]] = []
            for count in range(2, len(passed) + 1):
                for names in itertools.combinations(passed, count):
                    is_known = any(set(one) <= set(names) for one in wrong)
                    if not is_known and not is_right(names):
                        wrong.append(names)
        except CompileError:
            return guards  # A size of 1 may be out of bounds.
        return with_ones(guards, passed, wrong)

    def _try(self, request: Request, library: Mapping[str, Any]) -> _Tried:
        """Run a library for the first time; return the trial's findings.

        Raises:
            CompileError: The library must not be used; the error has the reason.
        """
        answer = self._trial.run(
            {
                "key": request["key"],
                "library": library["path"],
                "sha256": library["sha256"],
                "outputs": library["outputs"],
                "check": request["check"],
                "timeout_s": request["trial_timeout_s"],
                "function": request["function"],
                "schema": request["schema"],
                "numbers": request.get("numbers"),
            }
        )
        if "reason" in answer:
            raise CompileError(
                answer["reason"],
                answer["message"],
                log=answer.get("log", ""),
                remember=answer.get("remember", False),
            )
        return _Tried(bool(answer["compared"]), answer.get("lost_signs", 0))

    def _measured(
        self, request: Request, libraries: list[dict[str, Any]]
    ) -> tuple[list[Times], str]:
        """Return the times of each library by hit path, and why none could be taken, in words.

        The times are empty where none could be taken.
        """
        answer = self._measurer.run(
            {
                "key": request["key"],
                "function": request["function"],
                "schema": request["schema"],
                "toolchain": request["toolchain"],
                "native": request["native"],
                "is_native": request["is_native"],
                "threads": request["threads"],
                "libraries": libraries,
                "numbers": request.get("numbers"),
                "timeout_s": request["trial_timeout_s"],
            }
        )
        if "times" in answer:
            return answer["times"], ""
        problem = f"{answer['reason']}: {answer['message']}"
        return [{} for _ in libraries], shortened(problem, LONGEST_MESSAGE)

    def _import_inductor(self) -> None:
        if self._inductor_ready:
            return
        warnings.simplefilter("ignore")
        self._trial.start()  # It imports torch while this process does.
        from . import inductor_compat

        inductor_compat.prepare_worker(self._vector_bits)
        self._measurer.start()
        self._inductor_ready = True

    @contextlib.contextmanager
    def _working_in(self, work: Path) -> Iterator[None]:
        self.work = work
        try:
            yield
        finally:
            self.work = None
            if self.scratch is not None:
                os.environ["TMPDIR"] = str(self.scratch)
            tempfile.tempdir = None


def _library(lowered: Lowered) -> dict[str, Any]:
    return {
        "path": str(lowered.library),
        "sha256": lowered.sha256,
        "outputs": lowered.outputs,
        "calls_aten": lowered.calls_aten,
    }


def _share(times: Mapping[str, Mapping[str, float]]) -> float:
    """Return the kernel's time as a share of the original's; 1 where the times are not known."""
    best = times.get("native") or times.get("python")
    return best["kernel_us"] / best["original_us"] if best else 1.0


def _may_lose_to_one_thread(times: Mapping[str, Mapping[str, float]]) -> bool:
    best = times.get("native") or times.get("python")
    return best is None or _share(times) > 0.9 or best["kernel_us"] < _SERIAL_BELOW_US


def _text(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _failure(reason: str, message: str, log: str, remember: bool) -> Answer:
    message = shortened(message, LONGEST_MESSAGE)
    return {"reason": reason, "message": message, "log": log[-_LONGEST_LOG:], "remember": remember}
