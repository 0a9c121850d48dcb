"""A library's runs in a trial, beside the original's on the same made-up data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._dispatch.closeness import (
    is_step,
    own_error,
    suspicious,
    typical,
)
from .._dispatch.compare import truth_of, values_problem
from .._dispatch.double_run import (
    is_double,
    to_single,
)
from .._dispatch.reference import RUNS, Reference
from .._dispatch.tensor_copies import copy_mutated, copy_tensor
from .._dispatch.tensor_pairs import Pair, compared_pairs
from .input_ranges import InputRanges
from .made_up_data import ALWAYS, SPARSE, DataSet, data_sets
from .original_runs import Original
from .slot_filler import POSITIVE, SMALL, WIDE

# So many elements of one result, in all runs together, are enough to judge how exact it is.
_MOST_JUDGED = 1 << 16
# A second thread does not help with fewer elements, and would wait for a core.
_SERIAL_BELOW = 1 << 16
# The core time that a trial may spend on data that are not always tried.
_MOST_CPU_S = 0.3
# In a function's last binades, what overflows depends on the order of its steps.
_REACH = 2.0**12
# For a region: as many data as fit in the time of so many calls in eager mode, if that is more.
_MOST_EAGER_CALLS = 20
# Runs on ordinary data, to find out how exact the original is; a region's runs are long.
_RUNS_JUDGED, _REGION_RUNS_JUDGED = 8, 2
# With so many runs with errors of each kind.
_REGION_SPREAD = 2
# The data sets with which a trial begins, and which show how exact the original is.
_FIRST, _SECOND = ALWAYS[:2]

Run = Callable[[list[Tensor]], list[Tensor]]
# A run's inputs, the inputs after the original's run, and the original's results.
_Made = tuple[list[Tensor], list[Tensor], list[Tensor]]


class LibraryRaised(RuntimeError):
    """A library has raised; the library's error is the cause."""


class Trial:
    """A library's runs beside the original's.

    Args:
        original: The call.
        run: The library.
        own: The call's own numbers.
        ranges: The values that the inputs may have.

    Attributes:
        compared: In how many data sets something was compared.
        lost_signs: Elements of pointwise results that are zero in both runs, of different signs.

    More than 12 methods, because each question about a run is one of its own.
    """

    def __init__(
        self,
        original: Original,
        run: Run,
        own: Sequence[float],
        ranges: InputRanges | None = None,
    ) -> None:
        self._ranges = InputRanges() if ranges is None else ranges
        self._most_cpu_s = _MOST_CPU_S
        self.compared = 0
        self.lost_signs = 0
        self._original = original
        self._run = run
        self._own = own
        self._kind = WIDE
        self._at = ""  # The name of the data that are being tried.
        # A compiler may reorder the steps of a function; an op of PyTorch's is one step.
        self._reach = _REACH if original.is_function else 1.0
        self._rules: dict[tuple[bool, int], tuple[float, bool]] = {}
        # Of a region: runs on ordinary data that are needed twice, by the data's name. Those of the
        # first data are kept while the first data are tried, those of the second until then.
        self._shared: dict[str, tuple[_Made, Reference]] = {}

    def problem(self) -> str | None:
        """Return what differs, and on which data; ``None`` if nothing does.

        Raises:
            LibraryRaised: The library raised; its error is the cause.
        """
        start = 0.0
        for data in self._data_sets():
            if data.name in ALWAYS:
                # The time of this thread alone: a parallel region's other threads count as busy
                # while they wait.
                start = time.thread_time()
            # A function that also takes long in eager is tried on fewer data.
            elif time.thread_time() - start > self._most_cpu_s:
                break
            self._at = data.name
            found = self._differences(data)
            self._shared.pop(data.name, None)
            self.compared += found is not None
            if found:
                return f"on {data.name} data: {'; '.join(found)}"
        return self._unrefused()

    def _unrefused(self) -> str | None:
        """Return which integers the library takes although the original refuses them, if any."""
        template = self._original.template
        for place, most in self._ranges.most.items():
            ordinary = self._normal.make(0, SMALL)
            limits = torch.iinfo(ordinary[place].dtype)
            for number in (most + 1, -1, limits.max, limits.min):
                if not limits.min <= number <= limits.max:
                    continue
                for one in self._with_number(ordinary[place], number):
                    inputs = [*ordinary[:place], one, *ordinary[place + 1 :]]
                    if self._original.results(copy_mutated(template, inputs)) is not None:
                        continue
                    try:
                        self._run([copy_tensor(tensor) for tensor in inputs])
                    except Exception:  # noqa: BLE001 - it refuses, as the original does
                        continue
                    name = template.slots[place].name
                    return f"takes {number} in {name!r}, which the original refuses"
        return None

    def _with_number(self, ordinary: Tensor, number: int) -> Iterator[Tensor]:
        """Give tensors that have a number everywhere, in the first place, and in the last place.

        The first place is in a vector loop, the last one in the loop behind it.
        """
        yield torch.full_like(ordinary, number)
        # A region may need some places only.
        if self._ranges.is_region or ordinary.numel() < 2:
            return
        for end in (0, -1):
            one = copy_tensor(ordinary)
            one[(end,) * one.dim()] = number
            yield one

    def _data_sets(self) -> Iterable[DataSet]:
        template = self._original.template
        slots = template.slots
        ranges = self._ranges
        self._normal = next(iter(data_sets(slots, self._own, mixes=True, ranges=ranges)))
        first = self._normal.make(0, SMALL)
        if max((one.numel() for one in first), default=0) < _SERIAL_BELOW:
            torch.set_num_threads(1)
        self._mixes = self._original.mixes(first)
        start = time.thread_time()
        results = self._original.results([copy_tensor(one) for one in first]) or ()
        if ranges.is_region:
            eager_s = time.thread_time() - start
            self._most_cpu_s = max(_MOST_CPU_S, _MOST_EAGER_CALLS * eager_s)
        self._largest = max((one.numel() for one in results), default=0)
        return data_sets(slots, self._own, mixes=self._mixes, largest=self._largest, ranges=ranges)

    def _differences(self, data: DataSet) -> list[str] | None:
        """Return what differs in some runs; ``None`` where the original refuses all of the data."""
        lines: list[str] = []
        by_result: dict[tuple[bool, int], list[tuple[Pair, list[Tensor]]]] = {}
        references: dict[int, Reference] = {}  # By the identity of their inputs.
        refused = 0
        for number in range(data.runs):
            made, reference = self._run_of(data, number)
            if made is None:
                refused += 1
                if refused > 3 and not by_result:
                    break
                continue
            inputs, theirs, expected = made
            references[id(inputs)] = reference or self._original.reference(inputs)
            if data.name == _FIRST and number == 0 and self._ranges.is_region:
                self._shared[data.name] = made, references[id(inputs)]
            mine = [copy_tensor(tensor) for tensor in inputs]
            try:
                got = self._run(mine)
            except Exception as error:
                raise LibraryRaised from error
            found, pairs = compared_pairs(
                *(self._original.template, expected, got, theirs, mine),
                aliasing=number == 0,  # Aliasing does not depend on values.
            )
            lines += [line for line in found if line not in lines]
            for pair in pairs:
                by_result.setdefault((pair.of_inputs, pair.index), []).append((pair, inputs))
        if not by_result and not lines:
            return None
        sums = data.name == SPARSE and all(
            self._sums_rows(runs[0][0].want, runs[0][1]) for runs in by_result.values()
        )
        for runs in by_result.values():
            whole = [(pair, references[id(inputs)]) for pair, inputs in runs]
            problem = self._values(whole, sums=sums)
            if problem is not None:
                lines.append(f"{runs[0][0].where}: {problem}")
        return lines

    def _run_of(self, data: DataSet, number: int) -> tuple[_Made | None, Reference | None]:
        """Return a run as ``_accepted`` does, and the references that were made of it."""
        shared = self._shared.pop(data.name, None) if number == 0 else None
        return shared or (self._accepted(data, number), None)

    def _accepted(self, data: DataSet, number: int) -> _Made | None:
        """Return a run's inputs, the inputs after the original's run, and its results."""
        while True:
            inputs = data.make(number, self._kind)
            theirs = copy_mutated(self._original.template, inputs)
            expected = self._original.results(theirs)
            if expected is not None:
                return inputs, theirs, expected
            if self._kind == SMALL or not self._has_integers():
                return None
            self._kind = POSITIVE if self._kind == WIDE else SMALL

    def _has_integers(self) -> bool:
        return any(
            not (one.component.get("dtype", "float").startswith(("float", "bfloat", "complex")))
            for one in self._original.template.slots
            if not one.number_kind
        )

    def _values(self, runs: list[tuple[Pair, Reference]], *, sums: bool) -> str | None:
        pairs = [pair for pair, _ in runs]
        if len(pairs) > 1:
            # Compare many small results at once.
            together = replace(
                pairs[0],
                want=torch.stack([pair.want for pair in pairs]),
                have=torch.stack([pair.have for pair in pairs]),
            )
            self._count_signs(together)
            if suspicious(together.want, together.have) is None:
                return None
        else:
            self._count_signs(pairs[0])
        references = [reference for _, reference in runs]
        return values_problem(
            *(pairs, references, self._rule),
            mixes=self._mixes,
            any_odd=self._mixes and not sums,
            reach=self._reach,
        )

    def _sums_rows(self, result: Tensor, inputs: Sequence[Tensor]) -> bool:
        """Return whether each element depends on one row of one argument, and nothing else.

        With one infinity among finite numbers in the row, such an element is NaN or infinite,
        whatever the infinity's place in the row. With a second argument, or weights of zero, the
        order of steps decides.
        """
        slots = self._original.template.slots
        floats = [
            one
            for one, slot in zip(inputs, slots, strict=True)
            if one.is_floating_point() and not slot.number_kind
        ]
        if len(floats) != 1:
            return False
        (row,) = floats
        both = zip(result.shape, row.shape, strict=False)
        return result.dim() < row.dim() or any(mine == 1 < theirs for mine, theirs in both)

    def _count_signs(self, pair: Pair) -> None:
        if self._mixes or not pair.want.is_floating_point():
            return
        both = (pair.want == 0) & (pair.have == 0)
        self.lost_signs += int((both & (pair.want.signbit() != pair.have.signbit())).sum())

    def _rule(self, pair: Pair) -> tuple[float, bool]:
        """Return how far the original usually is off in a result, and whether the result has steps.

        No dtype is wider than double: in double, an algorithm is assumed to be as far off as in
        single precision, in units of the last place. A sum that single precision keeps in double is
        a sum of doubles in double, too: all that is known of such a sum is that it is as good as
        its inputs.
        """
        name = pair.of_inputs, pair.index
        if name not in self._rules:
            self._judge_original()
        least = 1.0 if self._mixes and pair.want.dtype in (torch.float64, torch.complex128) else 0.0
        own, steps = self._rules.get(name, (least, False))
        return max(own, least), steps

    def _single(self, made: _Made | None) -> _Made | None:
        """Return a run of the original with doubles rounded to single precision."""
        if made is None or not any(map(is_double, made[0])):
            return made
        inputs = [to_single(tensor) for tensor in made[0]]
        theirs = [copy_tensor(tensor) for tensor in inputs]
        expected = self._original.results(theirs)
        return None if expected is None else (inputs, theirs, expected)

    def _judge_original(self) -> None:
        template = self._original.template
        shares: dict[tuple[bool, int], list[Tensor]] = {}
        steps: dict[tuple[bool, int], list[bool]] = {}
        elements = 0
        is_region = self._ranges.is_region
        most = _REGION_RUNS_JUDGED if is_region else _RUNS_JUDGED
        for data in data_sets(template.slots, self._own, mixes=True, ranges=self._ranges):
            for number in range(min(data.runs, 1 if is_region else 2)):
                accepted, reference = self._run_of(data, number)
                made = self._single(accepted)
                if made is None:
                    continue
                inputs, theirs, expected = made
                if reference is None or made is not accepted:
                    reference = self._original.reference(inputs)
                is_next = self._at == _FIRST and data.name == _SECOND
                if is_region and is_next and made is accepted:
                    self._shared[data.name] = made, reference
                _, pairs = compared_pairs(template, expected, expected, theirs, theirs)
                for pair in pairs:
                    known = truth_of(pair, reference, runs=_REGION_SPREAD if is_region else RUNS)
                    if known is None:
                        continue
                    name = pair.of_inputs, pair.index
                    shares.setdefault(name, []).append(own_error(pair.want, known).reshape(-1))
                    if data.ordinary:
                        steps.setdefault(name, []).append(is_step(known.exact))
                    elements += pair.want.numel()
            if elements > _MOST_JUDGED or sum(map(len, shares.values())) >= most * len(shares):
                break
        for name, found in shares.items():
            whole = steps.get(name, [])
            self._rules[name] = typical(torch.cat(found)), bool(whole) and all(whole)
