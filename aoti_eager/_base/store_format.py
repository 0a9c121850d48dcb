"""The names that a cache directory may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .data_class import dataclass, field
from .trusted_files import Directory

ENTRY_FILE = "entry.json"
LIBRARY_FILE = "library.so"
LOG_FILE = "log"
MARKER_FILE = "CACHEDIR.TAG"
TOTALS_FILE = "totals.json"
WANTED_FILE = "wanted"
RUNS_FILE = "runs"
RUN_LOG_FILE = "run_log"
USAGE_FILE = "usage"
# The lock around all of Inductor's own precompiled headers; Inductor locks each by itself only.
HEADERS_LOCK = "headers.lock"
STUB_FILE = "libtorch_cpu.so"
STUB_RECORD = "libtorch_cpu.json"


@dataclass(frozen=True, slots=True)
class File:
    """A file, which may be removed unless it is kept."""

    kept: bool = False


@dataclass(frozen=True, slots=True)
class Scratch:
    """A directory that is removed with everything in it, whatever the names."""


@dataclass(frozen=True, slots=True)
class Names:
    """A directory; ``inside`` maps patterns that match a whole name to what has that name."""

    inside: Mapping[str, File | Scratch | Names] = field(default_factory=dict)

    def find(self, name: str) -> File | Scratch | Names | None:
        found = self.inside.get(name)
        # Most patterns are plain names and need not be compiled.
        if found is not None and name.isalnum():
            return found
        for pattern, what in self.inside.items():
            if not pattern.isalnum() and re.fullmatch(pattern, name):
                return what
        return None


_FILE, KEPT, _SCRATCH = File(), File(kept=True), Scratch()
_HEX = "[0-9a-f]"
WORK_NAME = rf"[^/]+-[0-9]{{1,10}}-{_HEX}{{12}}"
_TEMPORARY = rf"\.[^/]{{1,16}}\.{_HEX}{{8}}"

_INDUCTOR_HEADER = r"[a-z0-9]{20,80}\.h(\.gch(\.json)?)?"

_ENTRY = Names({re.escape(name): _FILE for name in (ENTRY_FILE, LIBRARY_FILE, LOG_FILE)})
_OP = Names({"static|dynamic": Names({rf"{_HEX}{{64}}": Names({r"\w[\w.+-]*": _ENTRY})})})
_HEADERS = Names(
    {
        rf"thin-{_HEX}{{24}}\.(h|o|h\.gch|json|[0-9]+\.tmp)": _FILE,
        rf"thin-{_HEX}{{24}}\.lock": KEPT,
        rf"\.build-{_HEX}{{24}}-\w+": _SCRATCH,
        # Inductor's own headers, for libraries that are not thin.
        rf"{_INDUCTOR_HEADER}|\.[0-9]+\.[0-9]+\.tmp": _FILE,
        "locks": Names({rf"[a-z0-9]{{20,80}}\.lock|{re.escape(HEADERS_LOCK)}": KEPT}),
        "stub": Names({r"libtorch_cpu(\.so|\.json|\.[0-9]+\.tmp)": _FILE, _TEMPORARY: _FILE}),
        _TEMPORARY: _FILE,
    }
)
_NATIVE = Names(
    {
        rf"{_HEX}{{16}}": Names({r"native\.(so|json)": _FILE}),
        rf"{_HEX}{{16}}\.lock": KEPT,
        rf"\.build-{_HEX}{{16}}-\w+": _SCRATCH,
    }
)
TOOLCHAIN = Names(
    {
        "headers": _HEADERS,
        "probes": Names({rf"{_HEX}{{24}}\.(json|[0-9]+\.tmp)": _FILE, _TEMPORARY: _FILE}),
        "self_tests": Names({rf"{_HEX}{{24}}\.json": _FILE, _TEMPORARY: _FILE}),
        "native": Names({rf"{_HEX}{{24}}": _NATIVE}),
    }
)
STORE = Names(
    {
        re.escape(MARKER_FILE): KEPT,
        rf"{re.escape(TOTALS_FILE)}|{WANTED_FILE}|{RUNS_FILE}|{RUN_LOG_FILE}|{USAGE_FILE}": _FILE,
        _TEMPORARY: _FILE,
        "v1": Names({rf"{_HEX}{{16}}": Names({rf"\w[\w.]*(-{_HEX}{{16}})?": _OP})}),
        "tmp": Names({WORK_NAME: _SCRATCH}),
        "locks": Names({rf"{_HEX}{{2}}|totals|wanted|runs|usage|evict": KEPT}),
        "toolchain": TOOLCHAIN,
        "verdicts": Names({r"[\w-]+": Names({rf"{_HEX}{{64}}\.json|{_TEMPORARY}": _FILE})}),
    }
)


def names_at(*path: str) -> Names:
    """Return the names that the directory at ``path`` in a cache directory may hold.

    Raises:
        ValueError: The format has no such directory.
    """
    found = lookup(path)
    if not isinstance(found, Names):
        raise ValueError(f"{'/'.join(path)}: is no directory of the cache's format")
    return found


def is_entry(path: Sequence[str]) -> bool:
    """Return whether ``path`` leads from a cache directory to an entry's directory."""
    return lookup(path) is _ENTRY


def is_inductor_header(name: str) -> bool:
    """Return whether a name in ``headers`` is an Inductor header's or its companion file's."""
    return re.fullmatch(_INDUCTOR_HEADER, name) is not None


def is_temporary(name: str) -> bool:
    """Return whether ``name`` is that of a file that ``Directory.write`` has not renamed yet."""
    return re.fullmatch(_TEMPORARY, name) is not None


def children(directory: Directory, *path: str) -> Iterator[str]:
    """Give the names in ``directory`` that the format allows at ``path``, sorted."""
    names = names_at(*path)
    for name in sorted(directory.names()):
        if names.find(name) is not None:
            yield name


def lookup(path: Sequence[str]) -> File | Scratch | Names | None:
    """Return what has the name at ``path`` in a cache directory; ``None`` if nothing has."""
    found: File | Scratch | Names | None = STORE
    for name in path:
        found = found.find(name) if isinstance(found, Names) else None
    return found
