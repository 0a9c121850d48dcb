"""A tape: a function as data, the op calls of one eager call with their arguments and wiring.

A tape stands beside a user's Python function: the op of a region runs a tape. The compile worker
rebuilds the function from the tape's document, and the tape's digest is in the key. Pure: no files,
no compiler. Replays and listings are imported when somebody asks for one, because a call whose
library is in the store needs neither. ``tape_call`` says how one call is spelled, ``tape_rules``
which tapes no library may serve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._base.data_class import dataclass
from .._base.digest import Component, json_digest
from .._base.late_import import importing
from .._base.op_names import TAPE_NAMESPACE
from .._keys.schema import Kind
from ..errors import TapeError
from .description import Description, PythonFunction
from .tape_call import (
    TapeCall,
    call_from_document,
    check_source,
    schema_of,
    tensor_arguments,
    without_defaults,
)

if TYPE_CHECKING:
    from .tape_replay import Replay

# A region beyond these is refused: its compile would take minutes.
MOST_CALLS, MOST_INPUTS, MOST_OUTPUTS = 20_000, 10_000, 1_000

# The namespace of regions' ops, and the schema of each.
NAMESPACE = TAPE_NAMESPACE
SCHEMA = "(Tensor[] inputs) -> Tensor[]"
_DIGITS = 24


@dataclass(frozen=True, slots=True)
class Tape:
    """The op calls of one eager call of a region.

    Two recordings of the same calls are equal: ``Tape.of`` leaves out arguments that equal their
    defaults, and names a tensor that an op has written to by where the tensor came from.

    Attributes:
        inputs: The number of inputs: the arguments that the tape reads, then captured tensors.
        calls: The calls in order.
        outputs: The sources of the distinct results, in order.
    """

    inputs: int
    calls: tuple[TapeCall, ...]
    outputs: tuple[Component, ...]

    @classmethod
    def of(cls, inputs: int, calls: Sequence[TapeCall], outputs: Sequence[Component]) -> Tape:
        """Return the canonical tape of these calls.

        Raises:
            TapeError: A source does not lie before its use, or the tape is too long.
        """
        for what, count, most in (
            ("inputs", inputs, MOST_INPUTS),
            ("calls", len(calls), MOST_CALLS),
            ("results", len(outputs), MOST_OUTPUTS),
        ):
            if count > most:
                raise TapeError(f"the tape has {count} {what}; at most {most} are possible")
        known: list[TapeCall] = []
        for number, call in enumerate(calls):
            for name, source in call.sources():
                where = f"call {number} of the tape, {call.op}, argument {name!r}"
                check_source(source, where, number, inputs)
                _check_place(source, known, where)
            known.append(without_defaults(call.with_sources(lambda one: _origin(one, known))))
        wanted = []
        for place, source in enumerate(outputs):
            where = f"result {place} of the tape"
            check_source(source, where, len(calls), inputs)
            if "input" not in source and "result" not in source:
                raise TapeError(f"{where} is a constant")
            _check_place(source, known, where)
            wanted.append(_origin(source, known))
        return cls(inputs, tuple(known), tuple(wanted))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the document, 64 hexadecimal digits."""
        return json_digest(self.document())

    def document(self) -> dict[str, Any]:
        """Return the tape as JSON values."""
        calls = [[call.op, [list(pair) for pair in call.arguments]] for call in self.calls]
        return {"tape": {"inputs": self.inputs, "calls": calls, "outputs": list(self.outputs)}}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Tape:
        """Return the tape that ``document`` wrote; others may have written the document.

        Raises:
            TapeError: The document is no tape, or calls an op that this process does not have.
        """
        values = document.get("tape") if isinstance(document, Mapping) else None
        if not isinstance(values, dict) or values.keys() != {"inputs", "calls", "outputs"}:
            raise TapeError("the document of a tape has not inputs, calls and outputs")
        inputs, calls, outputs = values["inputs"], values["calls"], values["outputs"]
        if type(inputs) is not int or not 0 <= inputs <= MOST_INPUTS:
            raise TapeError(f"a tape has 0 to {MOST_INPUTS} inputs")
        if not isinstance(calls, list) or not isinstance(outputs, list):
            raise TapeError("the calls and the outputs of a tape are lists")
        if len(calls) > MOST_CALLS:
            raise TapeError(f"the tape has {len(calls)} calls; at most {MOST_CALLS} are possible")
        read = [call_from_document(one, number, inputs) for number, one in enumerate(calls)]
        tape = cls.of(inputs, read, outputs)
        if json.dumps(tape.document(), sort_keys=True) != json.dumps(document, sort_keys=True):
            raise TapeError("the document of a tape is not in its canonical form")
        return tape

    def numbers(self) -> Iterator[Component]:
        """Give the numbers among the calls' arguments, and in place of tensors, as components."""
        for call in self.calls:
            tensors = tensor_arguments(call.op)
            yield from (component for name, component in call.arguments if name not in tensors)
            yield from (source["number"] for _, source in call.sources() if "number" in source)

    def replay_function(self, instead: Mapping[str, Callable[..., Any]] | None = None) -> Replay:
        """Return the tape as a function of its inputs, for many replays.

        Args:
            instead: Functions to call instead of ops, by the ops' qualified names.

        Raises:
            TapeError: This process lacks one of the ops.
        """
        with importing():
            from .tape_replay import replay_function

        return replay_function(self.inputs, self.calls, self.outputs, instead)

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the tape's results for ``inputs``, computed by its ops in eager mode."""
        return self.replay_function()(inputs)

    def listing(self, inputs: Sequence[Component] | None = None) -> str:
        """Return the tape as text, a line for each input and each call.

        Args:
            inputs: The metadata of the inputs, as keys spell it; with them, the lines have the
                results' dtypes and sizes.
        """
        with importing():
            from .tape_listing import listing

        return listing(self.inputs, self.calls, self.outputs, inputs)


def op_name(tape: Tape, *holds_for: Component) -> str:
    """Return the qualified name of the op that runs a tape, in each process.

    Args:
        tape: The tape.
        holds_for: What else the op depends on: the metadata of its inputs, settings of torch's.
    """
    return f"{NAMESPACE}::t_{json_digest([tape.digest, *holds_for])[:_DIGITS]}"


def _check_place(source: Component, calls: Sequence[TapeCall], where: str) -> None:
    """Refuse a result that its call does not have."""
    if "result" not in source:
        return
    call, place = source["result"]
    returns = schema_of(calls[call].op).returns
    if any(one.kind is Kind.TENSORS for one in returns):
        return
    if place >= len(returns) or returns[place].kind is not Kind.TENSOR:
        raise TapeError(f"{where}: {calls[call].op} has no tensor as its result {place}")


def _origin(source: Component, calls: Sequence[TapeCall]) -> Component:
    """Return where a tensor came from before an op has written to it and returned it."""
    while "result" in source:
        call, place = source["result"]
        schema = schema_of(calls[call].op)
        if place >= len(schema.returns) or schema.returns[place].argument is None:
            break
        given = dict(calls[call].arguments).get(schema.returns[place].argument)
        if not isinstance(given, dict):
            break
        source = given
    return source


class TapeDescription(Description):
    """A tape at any moment: a tape has no constants, and never changes."""

    __slots__ = ()

    def context(self) -> tuple[tuple[str, Component], ...]:
        """Return the component that the tape adds to the context of a kernel's key."""
        return (("function", json_digest(self.document)),)


class TapeFunction(PythonFunction):
    """The tape behind a region's op, for keys.

    Args:
        tape: The tape.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._state = tape.digest
        self._replay: Replay | None = None

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the tape's results, by its ops in eager mode."""
        if self._replay is None:
            self._replay = self.tape.replay_function()
        return self._replay(inputs)

    @property
    def is_constant(self) -> bool:
        """Return true: a tape is the same in each call."""
        return True

    @property
    def is_refused(self) -> bool:
        """Return false: a tape can always be sent to a worker."""
        return False

    @property
    def refusal(self) -> str | None:
        """Return ``None``: a tape can always be sent to a worker."""
        return None

    def snapshot(self) -> tuple[Any, list[Tensor]]:
        """Return a constant state, and no tensors; see ``PythonFunction``."""
        return self._state, []

    def describe(self) -> tuple[Description, list[Tensor]]:
        """Return the tape as data; see ``PythonFunction``."""
        return TapeDescription(self.tape.document(), ()), []
