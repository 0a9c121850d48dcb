"""Which step of a job a worker is in: a message of its own, on the way to the reply.

A step is only a word for reports. A message about a step that is lost, or that has another form,
changes nothing else: the job and its reply are what they are without the message.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from .._base.data_class import dataclass
from .messages import Document, Fields, MessageError, text, version, whole

IMPORTING = "importing Inductor"
TRACING = "tracing"
GENERATING = "generating code"
COMPILING = "compiling C++"
TRYING = "trying"
MEASURING = "measuring"

# Most steps of one job that are told: a script that does not read for a while holds up no worker,
# because a pipe holds more than so many lines.
MOST_STEPS = 64
# Most characters of a step's name, and the highest number of a step.
_LONGEST_NAME, _HIGHEST = 40, 999
# The beginning of a line with such a message, in whatever form the rest is.
_BEGINNING = b'{"kind": "step"'


@dataclass(frozen=True, slots=True)
class Step:
    """The step that a job has come to.

    Attributes:
        name: What the worker does, in words.
        number: The number of the step; the first one is 1.
        count: How many steps the job has, as far as is known.
    """

    name: str
    number: int
    count: int
    kind = "step"

    def __str__(self) -> str:
        return f"step {self.number} of {self.count}, {self.name}"

    def to_json(self) -> Document:
        """Return the message as a JSON object."""
        return {
            "kind": self.kind,  # First: the line is known by its beginning.
            "version": version(),
            "name": self.name,
            "number": self.number,
            "count": self.count,
        }

    @classmethod
    def from_json(cls, values: object) -> Step:
        """Return the message that ``to_json`` wrote.

        Raises:
            MessageError: ``values`` have another form, or come from another version.
        """
        fields = Fields.of_message(values, "the step")
        if fields.read("kind", text) != cls.kind:
            raise MessageError("the message is no step")
        step = cls(
            fields.read("name", text), fields.read("number", whole), fields.read("count", whole)
        )
        if not (step.name.isprintable() and 0 < len(step.name) <= _LONGEST_NAME):
            raise MessageError("the step has no name, or a long one")
        if not 1 <= step.number <= step.count <= _HIGHEST:
            raise MessageError(f"the step has no such number: {step.number} of {step.count}")
        return step


class StepReader:
    """Takes the steps of one job out of what its worker writes.

    Args:
        on_step: Is told each step; ``None`` if nobody wants to know.
    """

    def __init__(self, on_step: Callable[[Step], None] | None) -> None:
        self._on_step = on_step
        self._told = 0

    def rest(self, written: bytes) -> bytes:
        """Tell of the steps that ``written`` begins with; return what comes after them."""
        while written.startswith(_BEGINNING) and b"\n" in written:
            line, _, written = written.partition(b"\n")
            self._told += 1
            if self._on_step is not None and self._told <= MOST_STEPS:
                step = _step(line)
                if step is not None:
                    self._on_step(step)
        return written


def _step(line: bytes) -> Step | None:
    """Return the step in a line; ``None`` if the line has another form."""
    try:
        return Step.from_json(json.loads(line))
    except (ValueError, RecursionError):
        return None
