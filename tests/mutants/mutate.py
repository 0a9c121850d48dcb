"""One fault in a kernel's source: an operator, constant, bound, accumulation or special value.

A mutant is a line of the kernel that was changed; a source's mutants are always the same.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed line.

    Attributes:
        kind: What was changed.
        line: Its number in the source, from 0.
        before: The line as it was.
        after: The line as it is.
    """

    kind: str
    line: int
    before: str
    after: str

    def source(self, text: str) -> str:
        """Return the source with the fault."""
        lines = text.split("\n")
        assert lines[self.line] == self.before
        lines[self.line] = self.after
        return "\n".join(lines)


# Each pair once, at its first place in a line that assigns a value.
_OPERATORS = [
    (r"(\w\)?) \+ (tmp|\()", r"\1 - \2"),
    (r"(\w\)?) - (tmp|\()", r"\1 + \2"),
    (r"(\w\)?) \* (tmp|\()", r"\1 + \2"),
    (r"(\w\)?) \* (tmp|\()", r"\1 / \2"),
    (r"(\w\)?) / (tmp|\()", r"\1 * \2"),
    (r"(tmp\d+) < (tmp)", r"\1 <= \2"),
    (r"(tmp\d+) > (tmp)", r"\1 >= \2"),
    (r"(tmp\d+) <= (tmp)", r"\1 < \2"),
    (r"(tmp\d+) >= (tmp)", r"\1 > \2"),
    (r"(tmp\d+) < (tmp)", r"\1 > \2"),
    (r"(tmp\d+) == (tmp)", r"\1 != \2"),
    (r"(tmp\d+) & (tmp)", r"\1 | \2"),
    (r"(tmp\d+) \^ (tmp)", r"\1 | \2"),
    (r"(tmp\d+) << (tmp)", r"\1 >> \2"),
    (r"(tmp\d+) >> (tmp)", r"\1 << \2"),
    (r"vec::maximum\(", "vec::minimum("),
    (r"vec::minimum\(", "vec::maximum("),
    (r"\.abs\(\)", ".neg()"),
    (r"\.neg\(\)", ".abs()"),
    (r"\.sqrt\(\)", ".rsqrt()"),
    (r"\.rsqrt\(\)", ".sqrt()"),
    (r"\.exp_u20\(\)|\.exp\(\)", ".expm1()"),
    (r"\.tanh\(\)", ".atan()"),
    (r"\.log1p\(\)", ".log()"),
    (r"\.log\(\)", ".log1p()"),
    (r"\.sin\(\)", ".tanh()"),
    (r"\.floor\(\)", ".trunc()"),
    (r"\.trunc\(\)", ".floor()"),
    (r"\.round\(\)", ".floor()"),
    (r"\.ceil\(\)", ".round()"),
    (r"std::sqrt\(", "std::cbrt("),
    (r"std::exp\(", "std::exp2("),
    (r"std::log\(", "std::log1p("),
]
_NUMBER = re.compile(
    r"static_cast<(float|double|int64_t|int32_t|int8_t)>\((-?[\d.]+(?:e[+-]?\d+)?)\)"
)
_ADDED = re.compile(r"(tmp_acc\d+_vec) = \1 \+ (tmp\d+);")
_STORED = re.compile(r"^(\s*)(tmp\d+)\.store\((out_ptr\d+)")
_CONVERTED = re.compile(
    r"(auto tmp\d+ = at::vec::convert<at::(?:BFloat16|Half),1,float,2>\()(tmp\d+)(\);)"
)


def mutants(text: str) -> list[Mutant]:
    """Return the mutants of a source, in its lines' order."""
    found: list[Mutant] = []
    for number, line in _kernel_lines(text):
        found += [
            Mutant(kind, number, line, after) for kind, after in _changed(line) if after != line
        ]
    return list(dict.fromkeys(found))


def drawn(texts: Sequence[str], count: int, seed: int = 0) -> list[tuple[int, Mutant]]:
    """Return ``count`` mutants, each with its source's place, evenly of sources and kinds."""
    by_place: dict[tuple[int, str], list[Mutant]] = defaultdict(list)
    for place, text in enumerate(texts):
        for mutant in mutants(text):
            by_place[place, mutant.kind].append(mutant)
    choose = random.Random(seed)
    for found in by_place.values():
        choose.shuffle(found)
    groups = sorted(by_place)
    choose.shuffle(groups)
    chosen: list[tuple[int, Mutant]] = []
    while len(chosen) < count and any(by_place.values()):
        for group in groups:
            if by_place[group] and len(chosen) < count:
                chosen.append((group[0], by_place[group].pop()))
    return chosen


def _kernel_lines(text: str) -> Iterator[tuple[int, str]]:
    """Give the lines of the kernels' bodies, with their numbers."""
    inside = False
    for number, line in enumerate(text.split("\n")):
        if line == "{":
            inside = True
        elif line == "}":
            inside = False
        elif inside and "inductor_cpu" not in line and "omp" not in line:
            yield number, line


def _changed(line: str) -> Iterator[tuple[str, str]]:
    if re.search(r"tmp\w* = ", line) and "loadu" not in line and "[](" not in line:
        for pattern, by in _OPERATORS:
            yield "operator", re.sub(pattern, by, line, count=1)
        if "blendv(" in line:
            swap = r"blendv\(([^,]+), ([^,]+), "
            yield "special value", re.sub(swap, r"blendv(\2, \1, ", line, count=1)
    for match in _NUMBER.finditer(line):
        if "for(" in line or "C10_" in line or "store" in line or "loadu" in line:
            continue
        for value in _others(match[1], match[2]):
            text = f"static_cast<{match[1]}>({value})"
            yield "constant", line[: match.start()] + text + line[match.end() :]
    yield from _bounds(line)
    if match := _ADDED.search(line):
        total, term = match[1], match[2]
        if "VectorizedN" not in line:
            half = f"at::vec::convert<at::BFloat16,1,float,1>({total} + {term})"
            yield (
                "accumulation",
                line[: match.start()]
                + (f"{total} = at::vec::convert<float,1,at::BFloat16,1>({half});"),
            )
        yield (
            "accumulation",
            line[: match.start()] + f"{total} = {total} + {term} + {term} - {total};",
        )
        yield "accumulation", line[: match.start()] + f"{total} = {term};"
    if match := re.search(r"float (tmp_acc\d+) = 0;", line):
        yield "accumulation", line.replace("float", "at::BFloat16")
        yield "accumulation", line.replace("= 0;", "= 1e-3;")
    if match := re.search(r"double (tmp_acc\d+) = ", line):
        yield "accumulation", line.replace("double", "float", 1)
    if "infinity()" in line:
        yield "special value", line.replace("std::numeric_limits<float>::infinity()", "1e4f")
        yield "special value", line.replace("-std::numeric", "std::numeric")
        yield "special value", line.replace("-std::numeric_limits<float>::infinity()", "0")
    if "max_propagate_nan(" in line:
        yield "special value", line.replace("max_propagate_nan(", "std::max<float>(", 1)
    yield from _specials(line)


def _specials(line: str) -> Iterator[tuple[str, str]]:
    """Give lines that lose a NaN, an infinity or a denormal number where a result is stored."""
    match = _STORED.search(line)
    value = None
    if match:
        value, rest = match[2], line[match.end(2) :]
        start = match[1]
    elif converted := _CONVERTED.search(line):
        value, start, rest = converted[2], line[: converted.start(2)], line[converted.end(2) :]
    if value is None:
        return
    kind = f"decltype({value})"
    zero = f"{kind}(0)"
    yield "special value", f"{start}{kind}::blendv({value}, {zero}, {value} != {value}){rest}"
    yield "special value", f"{start}at::vec::minimum({value}, {kind}(3e38)){rest}"
    yield "special value", f"{start}at::vec::maximum({value}, {kind}(-3e38)){rest}"
    tiny = f"{value}.abs() < {kind}(1.17e-38)"
    yield "special value", f"{start}{kind}::blendv({value}, {zero}, {tiny}){rest}"


def _bounds(line: str) -> Iterator[tuple[str, str]]:
    match = re.search(
        r"for\(int64_t (x\d)=static_cast<int64_t>\(0L\); \1<static_cast<int64_t>\((\d+)L\)", line
    )
    if match:
        step = re.search(r"\+=static_cast<int64_t>\((\d+)L\)", line)
        by = int(step[1]) if step else 1
        limit = int(match[2])
        if limit > by:
            yield (
                "bound",
                line.replace(
                    f"<static_cast<int64_t>({limit}L)", f"<static_cast<int64_t>({limit - by}L)"
                ),
            )
            yield (
                "bound",
                line.replace("=static_cast<int64_t>(0L)", f"=static_cast<int64_t>({by}L)", 1),
            )
        yield (
            "bound",
            line.replace(
                f"<static_cast<int64_t>({limit}L)", f"<static_cast<int64_t>({limit + by}L)"
            ),
        )
    stride = re.search(r"(\d+)L\*x(\d)", line)
    if stride and int(stride[1]) > 1:
        yield "bound", line.replace(stride[0], f"{int(stride[1]) - 1}L*x{stride[2]}", 1)


def _others(kind: str, number: str) -> Iterator[str]:
    value = float(number)
    if kind.startswith("int"):
        yield str(int(value) + 1)
        yield str(int(value) - 1)
    else:
        yield repr(value * 1.001) if value else "0.001"
        yield repr(-value) if value else "1.0"
        yield repr(value + 1.0)
        if value:
            yield "0.0"
            yield repr(value * (1 - 3e-5))
