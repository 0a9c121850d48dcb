"""What a request to a compile worker is about: a call, code for it, a library that exists."""

from __future__ import annotations

from pathlib import Path

from .._base.data_class import dataclass, field
from .._base.digest import Component
from .._keys.dynamic_plan import Plan
from .._keys.kernel_key import KernelKey
from .._native import library as native_library
from .._store.environment import Environment
from .messages import Document, Fields, document, flag, kernel_key, many, number, path, text

# The first run of one small kernel takes milliseconds; a child that takes this long hangs.
TRIAL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class RequestedCall:
    """The call that a request is about.

    Attributes:
        key: The call; its thread count is the one that code may use, or is timed with.
        root: The root of the store.
        check: Whether a trial compares results.
        timeout_s: Seconds that the worker has before it is killed; waits for a core do not count.
        function: The user's function behind the op, as data (``Description.document``): the op need
            not exist in the worker then. ``None`` for an op that a worker has.
        schema: The op's schema in words, if there is a function.
        native: Path and digest of the C++ hit path that the script has loaded, if it has; by
            default of the one that this process has loaded.
        is_native: Whether the C++ hit path serves the op: then only this path is timed.
        trial_timeout_s: Seconds that one run in a child may take.
    """

    key: KernelKey
    root: Path
    check: bool
    timeout_s: float
    function: Document | None = None
    schema: str = ""
    native: tuple[Path, str] | None = field(default_factory=native_library.loaded)
    is_native: bool = False
    trial_timeout_s: float = TRIAL_TIMEOUT_S

    @property
    def threads(self) -> int:
        """Return the thread count that code may use, or is timed with."""
        return int(dict(self.key.context)["threads"])

    @property
    def toolchain(self) -> Path:
        """Return the directory of what is kept between compiles: headers, the C++ hit path."""
        return self.root / "toolchain"

    def to_json(self) -> Document:
        """Return the call as a JSON object."""
        return {
            "key": self.key.to_json(),
            "root": str(self.root),
            "check": self.check,
            "timeout_s": self.timeout_s,
            "function": self.function,
            "schema": self.schema,
            "native": None if self.native is None else [str(self.native[0]), self.native[1]],
            "is_native": self.is_native,
            "trial_timeout_s": self.trial_timeout_s,
        }

    @classmethod
    def from_json(cls, values: object) -> RequestedCall:
        """Return the call that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form.
        """
        fields = Fields(values, "the call")
        return cls(
            key=fields.read("key", kernel_key),
            root=fields.read("root", path),
            check=fields.read("check", flag),
            timeout_s=fields.read("timeout_s", number),
            function=fields.optional("function", document),
            schema=fields.read("schema", text),
            native=fields.optional("native", _native),
            is_native=fields.read("is_native", flag),
            trial_timeout_s=fields.read("trial_timeout_s", number),
        )


def _native(value: object) -> tuple[Path, str]:
    file, digest = many(text)(value)
    return Path(file), digest


@dataclass(frozen=True, slots=True)
class RequestedCode:
    """The code that is wanted for a call.

    Attributes:
        call: The call.
        gate: Whether the library is timed against the original, too.
        plan: For a dynamic specialisation.
        options: Inductor's settings by dotted name. ``CompileService`` fills them in, because they
            depend on the instruction set that its workers compile for.
    """

    call: RequestedCall
    gate: bool = False
    plan: Plan | None = None
    options: Document = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Return the number arguments that are inputs of the kernel."""
        return () if self.plan is None else self.plan.numbers

    def to_json(self) -> Document:
        """Return the code as a JSON object."""
        return {
            "call": self.call.to_json(),
            "gate": self.gate,
            "plan": None if self.plan is None else self.plan.to_json(),
            "options": self.options,
        }

    @classmethod
    def from_json(cls, values: object) -> RequestedCode:
        """Return the code that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form.
        """
        fields = Fields(values, "the code")
        return cls(
            call=fields.read("call", RequestedCall.from_json),
            gate=fields.read("gate", flag),
            plan=fields.optional("plan", Plan.from_json),
            options=fields.read("options", document),
        )


@dataclass(frozen=True, slots=True)
class EntryOrigin:
    """What an entry says of where it was made.

    Attributes:
        environment: Everything besides the call that affects the code.
        target: Name of the instruction set.
        requires: The CPU features that the code needs.
    """

    environment: Environment
    target: str
    requires: frozenset[str]

    def to_json(self) -> Document:
        """Return the origin as a JSON object."""
        return {
            "environment": dict(self.environment.components),
            "target": self.target,
            "requires": sorted(self.requires),
        }

    @classmethod
    def from_json(cls, values: object) -> EntryOrigin:
        """Return the origin that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form.
        """
        fields = Fields(values, "the entry's origin")
        components: dict[str, Component] = fields.read("environment", document)
        return cls(
            environment=Environment(tuple(sorted(components.items()))),
            target=fields.read("target", text),
            requires=frozenset(fields.read("requires", many(text))),
        )


@dataclass(frozen=True, slots=True)
class BuiltLibrary:
    """A library's file, and what a process must know to run it.

    Attributes:
        path: The file.
        sha256: The digest of its bytes: no other bytes may be run.
        outputs: Where each result of the op comes from; see ``Entry.outputs``.
        calls_aten: Whether the library calls ATen for a part of its work.
    """

    path: Path
    sha256: str
    outputs: tuple[Document, ...]
    calls_aten: bool

    def to_json(self) -> Document:
        """Return the library as a JSON object."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "outputs": list(self.outputs),
            "calls_aten": self.calls_aten,
        }

    @classmethod
    def from_json(cls, values: object) -> BuiltLibrary:
        """Return the library that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form.
        """
        fields = Fields(values, "the library")
        return cls(
            path=fields.read("path", path),
            sha256=fields.read("sha256", text),
            outputs=fields.read("outputs", many(document)),
            calls_aten=fields.read("calls_aten", flag),
        )
