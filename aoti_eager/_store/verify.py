"""What ``verify`` finds besides entries: damaged parts of the toolchain, verdicts, leftovers.

Only names of the store's format are looked at, and no link is followed: a toolchain that lies
elsewhere is verified there. ``look`` changes nothing; ``mend`` removes what was found.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .._base.file_lock import is_locked
from .._base.recorded_files import check_recorded, read_record
from .._base.scratch_directory import PREFIX
from .._base.store_format import (
    HEADERS_LOCK,
    STUB_FILE,
    STUB_RECORD,
    WANTED_FILE,
    children,
    is_inductor_header,
    is_temporary,
)
from .._base.store_marker import is_marked
from .._base.store_removal import remove
from .._base.trusted_files import Directory, open_directory
from .._native.build import check_native
from ..errors import StoreError, StorePermissionError, UntrustedFileError
from .probes import PROBES_LIMIT, decode_probes
from .self_tests import decode_answer
from .verdict import (
    FORMAT_VERSION,
    NOT_A_VERDICT,
    VERDICT_LIMIT,
    decode_verdict,
)
from .wanted_calls import (
    LARGEST_FILE,
    decode,
)

Place = tuple[str, ...]

# A file that is being written is renamed within moments.
_TEMPORARY_AGE_S = 3600.0

# Errors that say nothing about a file that cannot be read.
_PASSING_ERRORS = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE),
    *(errno.EIO, errno.EACCES, errno.EPERM, errno.EINTR, errno.EAGAIN),
}


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding.

    Attributes:
        place: The names that lead from the store's root to the damaged part.
        problem: What is wrong with the part.
        removed: What ``mend`` removes: the part, with parts that are of no use without it.
    """

    place: Place
    problem: str
    removed: tuple[Place, ...]


@dataclass(slots=True)
class Findings:
    """What is damaged, and what dead processes have left: names from the root."""

    damaged: list[Damage] = field(default_factory=list)
    leftovers: list[Place] = field(default_factory=list)


def look(root: Path) -> Findings:
    """Return what is wrong in a store's toolchain and among its verdicts; nothing is changed.

    Raises:
        StoreError: The store cannot be read, or others can write to it.
    """
    search = _Search()
    try:
        with open_directory(root) as store:
            search.leftovers(store)
            search.wanted(store)
            with search.inside(store, "toolchain") as toolchain:
                if toolchain is not None:
                    search.toolchain(toolchain)
            with search.inside(store, "verdicts") as verdicts:
                if verdicts is not None:
                    for processor in children(verdicts, "verdicts"):
                        search.verdicts(verdicts, processor)
    except (FileNotFoundError, NotADirectoryError):
        pass  # There is no store, or a part of the store was removed meanwhile.
    except UntrustedFileError as error:
        raise StorePermissionError(str(error)) from error
    except OSError as error:
        raise StoreError(error.errno, f"{root}: cannot be read: {error.strerror}") from error
    return search.findings


def mend(root: Path, findings: Findings) -> None:
    """Remove what was found, as far as its names are of the format.

    Raises:
        StoreError: The store cannot be written, or has no marker.
    """
    places = [place for damage in findings.damaged for place in damage.removed]
    places += findings.leftovers
    if not places:
        return
    try:
        with open_directory(root) as store:
            if not is_marked(store):
                raise StoreError(f"{root}: has no marker of aoti_eager, so nothing is removed")
            for place in places:
                remove(store, *place)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(error.errno, f"{root}: cannot be written: {error.strerror}") from error


class _Search:
    """Looks into directories of a store, and notes what it finds."""

    def __init__(self) -> None:
        self.findings = Findings()

    @contextlib.contextmanager
    def inside(self, parent: Directory, *place: str) -> Iterator[Directory | None]:
        """Give the directory at ``place`` in the root; ``None`` if there is nothing to look at."""
        directory = None
        try:
            directory = parent.directory(place[-1])
        except (FileNotFoundError, NotADirectoryError):
            pass
        except UntrustedFileError as error:
            # A link is the user's own way to another place.
            if not parent.is_link(place[-1]):
                self.damage(place, error.problem)
        if directory is None:
            yield None
            return
        with directory:
            yield directory

    def damage(self, place: Sequence[str], problem: str, *removed: Place) -> None:
        """Note one finding; if ``removed`` is empty, ``mend`` removes ``place`` itself."""
        self.findings.damaged.append(Damage(tuple(place), problem, removed or (tuple(place),)))

    def leftovers(self, directory: Directory, *place: str) -> None:
        """Note the temporary files and directories of dead processes."""
        for name in children(directory, *place):
            if is_temporary(name):
                is_left = _age_s(directory, name) > _TEMPORARY_AGE_S
            elif name.startswith(PREFIX):
                # One process at a time builds, and holds the lock; no name is used again.
                digest = name.removeprefix(PREFIX).partition("-")[0]
                stem = f"thin-{digest}" if place[-1] == "headers" else digest
                is_left = _held(directory, f"{stem}.lock") is False
            else:
                is_left = name.endswith(".tmp") and _age_s(directory, name) > _TEMPORARY_AGE_S
            if is_left:
                self.findings.leftovers.append((*place, name))

    def wanted(self, store: Directory) -> None:
        """Look at the kept queue: one damaged line costs the whole file, which is only advice."""
        try:
            found, damaged = decode(store.read(WANTED_FILE, LARGEST_FILE))
        except FileNotFoundError:
            return
        except UntrustedFileError as error:
            self.damage((WANTED_FILE,), error.problem)
            return
        except OSError as error:
            if error.errno not in _PASSING_ERRORS:
                self.damage((WANTED_FILE,), error.strerror or "cannot be read")
            return
        damaged += sum(not one.is_call() for one in found.values())
        if damaged:
            self.damage((WANTED_FILE,), f"has {damaged} lines that are no wanted keys")

    def toolchain(self, toolchain: Directory) -> None:
        """Look at headers, the stub, probes, answers of self-tests and the C++ hit path."""
        with self.inside(toolchain, "toolchain", "headers") as headers:
            if headers is not None:
                self.headers(headers)
        for name, check in (("probes", decode_probes), ("self_tests", decode_answer)):
            with self.inside(toolchain, "toolchain", name) as documents:
                if documents is not None:
                    self.documents(documents, name, check)
        with self.inside(toolchain, "toolchain", "native") as native:
            if native is not None:
                for version in children(native, "toolchain", "native"):
                    self.native(native, version)

    def headers(self, headers: Directory) -> None:
        """Look at parts of thin libraries, Inductor's own headers and the stub."""
        place = ("toolchain", "headers")
        self.leftovers(headers, *place)
        names = list(children(headers, *place))
        thin = {n.partition(".")[0] for n in names if n.startswith("thin-") and n[-5:] != ".lock"}
        for stem in sorted(thin):
            if not _held(headers, f"{stem}.lock"):  # While it is held, the parts are being made.
                parts = [f"{stem}.h", f"{stem}.h.gch", f"{stem}.o"]
                self.recorded(headers, place, f"{stem}.json", parts)
        with self.inside(headers, *place, "locks") as locks:
            is_busy = locks is not None and _held(locks, HEADERS_LOCK)
        if not is_busy:
            for stem in sorted({n.partition(".")[0] for n in names if is_inductor_header(n)}):
                parts = [f"{stem}.h", f"{stem}.h.gch"]
                self.recorded(headers, place, f"{stem}.h.gch.json", parts)
        with self.inside(headers, *place, "stub") as stub:
            if stub is not None:
                self.leftovers(stub, *place, "stub")
                if {STUB_FILE, STUB_RECORD} & set(stub.names()):
                    self.recorded(stub, (*place, "stub"), STUB_RECORD, [STUB_FILE])

    def recorded(
        self, directory: Directory, place: Place, record_name: str, parts: Sequence[str]
    ) -> None:
        """Look at files that are used together, and only while they match their record."""
        everything = tuple((*place, name) for name in (record_name, *parts))
        try:
            record = read_record(directory, record_name)
        except FileNotFoundError:
            record = {}
        except OSError as error:
            self.damage((*place, record_name), _problem(error), *everything)
            return
        for name in parts:
            try:
                check_recorded(directory, name, record, remembered=False)
            except FileNotFoundError:
                if record:
                    self.damage((*place, name), "is missing", *everything)
            except OSError as error:
                self.damage((*place, name), _problem(error), *everything)

    def documents(self, files: Directory, kind: str, check: Callable[[bytes], object]) -> None:
        """Look at files of which each is for one machine; ``check`` raises if one is damaged."""
        place = ("toolchain", kind)
        self.leftovers(files, *place)
        for name in children(files, *place):
            if name.endswith(".json") and not is_temporary(name):
                try:
                    check(files.read(name, PROBES_LIMIT))
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self.damage((*place, name), _problem(error))
                except ValueError:
                    self.damage((*place, name), f"is no document of {kind}")

    def native(self, native: Directory, version: str) -> None:
        """Look at the libraries of each compiler."""
        place = ("toolchain", "native", version)
        with self.inside(native, *place) as directory:
            if directory is None:
                return
            self.leftovers(directory, *place)
            for name in children(directory, *place):
                if name.startswith(PREFIX) or name.endswith(".lock"):
                    continue
                with self.inside(directory, *place, name) as found:
                    if found is not None:
                        self.built(found, (*place, name))

    def built(self, found: Directory, place: Place) -> None:
        """Look at one library of the C++ hit path."""
        try:
            check_native(found)
        except FileNotFoundError:
            self.damage(place, "has no library, or no record of it")
        except OSError as error:
            self.damage(place, _problem(error))

    def verdicts(self, verdicts: Directory, processor: str) -> None:
        """Look at what was measured on one model of processor."""
        place = ("verdicts", processor)
        with self.inside(verdicts, *place) as directory:
            if directory is None:
                return
            self.leftovers(directory, *place)
            for name in children(directory, *place):
                if is_temporary(name):
                    continue
                try:
                    document = directory.read(name, VERDICT_LIMIT)
                    decode_verdict(document)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self.damage((*place, name), _problem(error))
                except NOT_A_VERDICT:
                    if not _is_newer(document):
                        self.damage((*place, name), "is no verdict")


def _is_newer(document: bytes) -> bool:
    """Return whether a verdict has a newer format; such a verdict is left alone."""
    try:
        return int(json.loads(document)["format"]) > FORMAT_VERSION
    except NOT_A_VERDICT:
        return False


def _held(directory: Directory, lock_name: str) -> bool | None:
    """Return whether a process holds a lock file; ``None`` if the file system has no locks."""
    try:
        fd = directory.open(lock_name)
    except OSError:
        return False  # Nobody has made the file, or it is no lock of ours.
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def _age_s(directory: Directory, name: str) -> float:
    try:
        return time.time() - directory.status(name).st_mtime
    except OSError:
        return 0.0  # The file's writer has just renamed it.


def _problem(error: OSError) -> str:
    """Return in words why a file is not used.

    Raises:
        OSError: The error says nothing about the file.
    """
    if isinstance(error, UntrustedFileError):
        return error.problem
    if error.errno in _PASSING_ERRORS:
        raise error
    return f"cannot be read: {error.strerror or error}"
