"""Verdicts: what was measured and checked of a library on one model of processor.

An entry is immutable and may be shipped anywhere; how fast its library is depends on the machine.
So verdicts are kept apart from entries: one small file for each key and processor, replaced as a
whole::

    verdicts/<processor>/<key's digest>.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .._base.data_class import dataclass, field
from .._base.digest import json_digest
from .._base.store_format import children
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from ..errors import UntrustedFileError

FORMAT_VERSION = 1
# Most bytes that are read of a verdict: it is not checked yet.
VERDICT_LIMIT = 1 << 20

CPUINFO = Path("/proc/cpuinfo")

# Errors that ``decode_verdict`` raises for a document that is no verdict.
NOT_A_VERDICT = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)

# A kernel must save at least this share of the original's time, and more than the rounds differed
# by: a kernel within noise of the original is not worth the risk of a busier moment.
LEAST_GAIN = 0.05
# Rounds of a calm moment do not differ by more than this share.
_CALM_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class PathTime:
    """One hit path's times in microseconds per call: medians over alternating rounds.

    Attributes:
        kernel_us: A served call.
        original_us: The same call with nothing registered.
        passed_us: The same call declined: on its way to the original through our hit path.
        spread: By how much the rounds that count differ among themselves, as a share.
        quiet: Whether there was a core for each thread; else the times say nothing about other
            moments.
    """

    kernel_us: float
    original_us: float
    passed_us: float
    spread: float
    quiet: bool

    @property
    def wins(self) -> bool:
        """Return whether a call is to be served: the bare original is slower by more than noise.

        The time of a declined call does not count: its way to the original costs next to nothing,
        and an op whose calls all lose is not registered.
        """
        return self._wins_by(max(LEAST_GAIN, self.spread))

    @property
    def is_doubtful(self) -> bool:
        """Return whether the kernel loses by noise alone: in a calmer moment it may win."""
        return self.spread > _CALM_SPREAD and not self.wins and self._wins_by(LEAST_GAIN)

    @property
    def saves_us(self) -> float:
        """Return what a served call saves, in microseconds."""
        return max(0.0, self.original_us - self.kernel_us)

    def _wins_by(self, margin: float) -> bool:
        return self.kernel_us <= (1 - margin) * self.original_us

    def __str__(self) -> str:
        return (
            f"{self.kernel_us:.2f} us, the original {self.original_us:.2f} us "
            f"(+- {100 * self.spread:.0f} %)"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one model of processor has measured and checked of one library.

    Attributes:
        library: The library's SHA-256; times of another library say nothing.
        checked: Whether results were compared on a call's own arguments, on this processor.
        checked_sizes: For a dynamic specialisation, the size classes in which results were
            compared.
        compared: Whether a first run in another process compared anything, on made-up data.
        times: Times by hit path and thread count, ``"native/2"``; for a dynamic specialisation by
            size class, too: ``"native/2/7"``.
        unmeasured: Why the last measurement has taken no times; empty if it has taken some.
    """

    library: str
    checked: bool = False
    compared: bool = False
    times: Mapping[str, PathTime] = field(default_factory=dict)
    checked_sizes: frozenset[int] = frozenset()
    unmeasured: str = ""

    def is_checked(self, size: int | None = None) -> bool:
        """Return whether results were compared; for a kernel of many sizes, in class ``size``."""
        return self.checked if size is None else size in self.checked_sizes

    def with_check(self, size: int | None = None) -> Verdict:
        """Return the verdict after results were compared and were right."""
        if size is None:
            return replace(self, checked=True)
        return replace(self, checked_sizes=self.checked_sizes | {size})

    def time(self, path: str, threads: int, size: int | None = None) -> PathTime | None:
        """Return what was measured for one hit path, thread count and size class, if anything."""
        return self.times.get(_label(path, threads, size))

    def with_times(
        self,
        times: Mapping[str, PathTime],
        threads: int,
        size: int | None = None,
        unmeasured: str = "",
    ) -> Verdict:
        """Return the verdict after a measurement.

        Args:
            times: The times by hit path; empty if none could be taken.
            threads: The thread count of the measurement.
            size: The call's size class, for a dynamic specialisation.
            unmeasured: Why there are no times.
        """
        added = {_label(path, threads, size): time for path, time in times.items()}
        return replace(self, times={**self.times, **added}, unmeasured=unmeasured)


def _label(path: str, threads: int, size: int | None) -> str:
    return f"{path}/{threads}" if size is None else f"{path}/{threads}/{size}"


def path_times(document: Mapping[str, Mapping[str, Any]]) -> dict[str, PathTime]:
    """Return the times that a worker has sent, or a verdict keeps, by hit path."""
    return {
        path: PathTime(
            float(time["kernel_us"]),
            float(time["original_us"]),
            float(time["passed_us"]),
            float(time["spread"]),
            bool(time["quiet"]),
        )
        for path, time in document.items()
    }


@functools.cache
def processor() -> str:
    """Return the name of this machine's model of processor, fit for a directory."""
    described: dict[str, str] = {}
    with (
        contextlib.suppress(OSError),
        CPUINFO.open(encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if not line.strip():
                break  # One core is enough: a call may wait, and hundreds of cores take long.
            label, _, value = line.partition(":")
            described.setdefault(label.strip().lower(), value.strip())
    labels = ("model name", "cpu part", "cpu")
    name = next((described[label] for label in labels if described.get(label)), None)
    if name is None:  # Only then: on Linux, ``platform`` starts a process for its answer.
        name = platform.processor() or platform.machine()
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    # With the stepping: some hypervisors leave no other difference between models.
    exact = [described.get(k, "") for k in ("vendor_id", "cpu family", "model", "stepping")]
    return "-".join([*words[:8], json_digest([name, *exact])[:8]])


class Verdicts:
    """The verdicts of this processor in the store at ``root``.

    Verdicts are advice. A verdict that cannot be read, or that others could have written, counts as
    missing. If two processes write at once, one of the two verdicts may be lost, and is measured
    again.

    Attributes:
        directory: Where the verdicts lie.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names = ("verdicts", processor())
        self.directory = root.joinpath(*self._names)

    def get(self, digest: str, library: str) -> Verdict:
        """Return the verdict on the entry of a key's ``digest``; an empty one if there is none.

        Args:
            digest: The digest of the entry's key.
            library: SHA-256 of the entry's library.
        """
        found = self.read(digest)
        return found if found is not None and found.library == library else Verdict(library)

    def read(self, digest: str) -> Verdict | None:
        """Return the verdict, whichever library it is on; ``None`` if none can be read."""
        try:
            with open_directory(self._root) as root, root.descend(*self._names) as directory:
                return decode_verdict(directory.read(f"{digest}.json", VERDICT_LIMIT))
        except (OSError, *NOT_A_VERDICT):
            return None

    def put(self, digest: str, verdict: Verdict) -> None:
        """Write a verdict; replace the one that is there.

        Raises:
            OSError: The store cannot be written.
        """
        with (
            open_directory(self._root, create=True) as root,
            root.descend(*self._names, create=True) as directory,
        ):
            directory.write(f"{digest}.json", encode_verdict(verdict).encode())

    def remove(self, digest: str) -> None:
        """Forget one verdict; one that is not there is no error.

        Raises:
            OSError: The store cannot be written.
        """
        with contextlib.suppress(FileNotFoundError), open_directory(self._root) as root:
            remove(root, *self._names, f"{digest}.json")

    def digests(self) -> list[str]:
        """Return the digests of the keys that have a verdict, sorted."""
        try:
            with open_directory(self._root) as root, root.descend(*self._names) as directory:
                found = children(directory, *self._names)
                return [name.removesuffix(".json") for name in found if name.endswith(".json")]
        except OSError:
            return []


def clear_verdicts(root: Directory) -> None:
    """Remove the verdicts of every processor from an open store; files of others stay.

    Raises:
        OSError: The store cannot be written.
    """
    try:
        with root.directory("verdicts", trusted=False) as directory:
            processors = list(children(directory, "verdicts"))
    except (FileNotFoundError, NotADirectoryError, UntrustedFileError):
        return
    for name in processors:
        remove(root, "verdicts", name)


def encode_verdict(verdict: Verdict) -> str:
    """Return the document of ``verdict``."""
    # Times of a busy moment are not written: only the process that took them uses them.
    lasting = {
        name: time
        for name, time in sorted(verdict.times.items())
        if time.quiet and not time.is_doubtful
    }
    document = {
        "format": FORMAT_VERSION,
        "library": verdict.library,
        "checked": verdict.checked,
        "checked_sizes": sorted(verdict.checked_sizes),
        "compared": verdict.compared,
        "times": {name: asdict(time) for name, time in lasting.items()},
    }
    if verdict.unmeasured:
        document["unmeasured"] = verdict.unmeasured
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def decode_verdict(document: bytes | str) -> Verdict:
    """Return the verdict that ``encode_verdict`` wrote.

    Raises:
        NOT_A_VERDICT: The document is something else.
    """
    values = json.loads(document)
    if values["format"] != FORMAT_VERSION:
        raise ValueError(f"format {values['format']}")
    times = path_times(values["times"])
    return Verdict(
        str(values["library"]),
        bool(values["checked"]),
        bool(values["compared"]),
        {name: time for name, time in times.items() if not time.is_doubtful},
        frozenset(int(size) for size in values.get("checked_sizes", ())),
        str(values.get("unmeasured", "")),
    )
