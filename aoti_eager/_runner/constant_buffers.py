"""The two buffers of constants of a loaded library: update, fold, swap, free.

A container does not keep its caller from what gives wrong results or crashes: updating constants
that runs are reading, running with or swapping to constants that have no values, going on after
folding failed. ``ConstantBuffers`` does: one lock guards everything that changes constants, and the
pool keeps runs away from changes that they must not see.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..errors import (
    LibraryRunError,
    MissingConstantsError,
    RunnerError,
)
from . import constants as library_constants
from .constants import ConstantKind
from .constants_file import constants_of_file, tensors_in_file
from .container import Container
from .devices import Stream, synchronize
from .instance_pool import InstancePool


class _Buffer:
    """The state of one of the two buffers."""

    __slots__ = ("folded", "given", "has_folded", "loaded", "user_managed")

    def __init__(self, loaded: set[str]) -> None:
        self.loaded = loaded  # names of constants that have a value
        self.given: set[str] = set()  # names of constants that the user gave
        self.folded = False
        # Whether the container has folded constants of this buffer, valid or not.
        self.has_folded = False
        # Tensors that are kept alive as long as the library points into them.
        self.user_managed: dict[str, Tensor] = {}


class ConstantBuffers:
    """The active and the inactive buffer of one container.

    Args:
        container: The loaded library.
        pool: The container's instances; a thread that changes what runs read holds all of them.
        name: The library's name, for messages.
        device: The device that the library runs on.

    More than 12 methods, because all of them change the same two buffers under the same lock.
    """

    def __init__(
        self, container: Container, pool: InstancePool, name: str, device: torch.device
    ) -> None:
        self._opened: Container | None = container
        self._pool = pool
        self._name = name
        self._device = device
        self._active = _Buffer(set(container.extract(inactive=False)))
        self._inactive = _Buffer(set())
        # Held around everything that changes constants; taken before the pool.
        self._lock = threading.RLock()
        _all_buffers.add(self)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other threads from changing constants during a block.

        Raises:
            RunnerError: This thread is inside of a run: the holder of the lock may wait for that
                run.
        """
        self._pool.refuse_inside_of_a_run()
        with self._lock:
            yield

    @property
    def _container(self) -> Container:
        """Return the container; only inside of ``changing``, because ``close`` is called there."""
        if self._opened is None:
            raise RunnerError(f"{self._name}: the runner is closed")
        return self._opened

    def close(self) -> None:
        """Drop the container and the user-managed constants; only inside of ``changing``."""
        self._opened = None
        self._active, self._inactive = _Buffer(set()), _Buffer(set())

    @property
    def ready(self) -> bool:
        """Return whether the active buffer is complete and folded, so that it can be run."""
        return self._active.folded

    def prepare(self, stream: Stream) -> None:
        """Make the active buffer ready, once, whichever thread comes first.

        Raises:
            MissingConstantsError: Constants have no values yet.
            LibraryRunError: Folding failed; the next run tries again.
        """
        with self.changing(), self._pool.all_instances():
            if self._active.folded:
                return
            absent = self._absent(self._active)
            if absent:
                raise MissingConstantsError(
                    f"{self._name}: {len(absent)} constants have no values: "
                    f"{', '.join(absent[:8])}; give them with update_constant_buffer",
                    absent,
                )
            self._container.fold(False, stream)
            self._active.folded = self._active.has_folded = True

    def extract(self, use_inactive: bool) -> dict[str, Tensor]:
        """Return copies of the constants of a buffer by their names in the exported program."""
        with self.changing():
            known = self._buffer(use_inactive).loaded
            fqns = {c.name: c.fqn for c in self._container.constants}
            found = self._container.extract(use_inactive)
            return {fqns[name]: t.clone() for name, t in found.items() if name in known}

    def update(
        self,
        constants: Mapping[str, Tensor],
        use_inactive: bool,
        validate_full_update: bool,
        user_managed: bool,
    ) -> None:
        """Put new constants into a buffer; see ``ModelContainerRunner.update_constant_buffer``."""
        with self.changing():
            name, all_constants = self._name, self._container.constants
            given = library_constants.resolve(name, all_constants, constants)
            if validate_full_update:
                library_constants.check_full_update(name, all_constants, given)
            by_name = {c.name: c for c in all_constants}
            if user_managed:
                for one, tensor in given.items():
                    library_constants.check_user_managed(name, by_name[one], tensor)
                tensors = {one: tensor.detach() for one, tensor in given.items()}
            else:
                tensors = {
                    one: library_constants.fitted(name, by_name[one], tensor)
                    for one, tensor in given.items()
                }
            if use_inactive:
                tensors |= self._kept(tensors)
                self._update(self._inactive, tensors, set(given), user_managed)
            else:
                with self._pool.all_instances():
                    synchronize(self._device)  # Launched kernels still read the constants.
                    self._update(self._active, tensors, set(given), user_managed)

    def update_from_blob(self, path: str | os.PathLike[str], use_inactive: bool) -> None:
        """Load all constants from AOTInductor's constants file.

        Raises:
            ConstantError: The file has another size, or the library has no such file.
            OSError: The file cannot be read.
        """
        with self.changing():
            container, wanted, size = constants_of_file(self._name, self._container, path)
            if not wanted:
                return
            if use_inactive or self._active.loaded:
                tensors = tensors_in_file(self._name, path, size, wanted)
                self.update(tensors, use_inactive, validate_full_update=True, user_managed=False)
                return
            # The first load uses the library's own function, which knows every layout.
            with open(path, "rb") as file, self._pool.all_instances():
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                container.load_blob(ctypes.addressof(ctypes.c_char.from_buffer(mapped)))
                self._active = _Buffer(set(container.extract(inactive=False)))

    def fold(self, use_inactive: bool, stream: Stream) -> None:
        """Compute the folded constants of a buffer now.

        Raises:
            MissingConstantsError: Constants of the buffer have no values.
            LibraryRunError: The library raised.
        """
        with self.changing():
            if not use_inactive:
                with self._pool.all_instances():
                    self._active.folded = False
                self.prepare(stream)
                return
            self._require_inactive()
            kinds = {c.name: c.kind for c in self._container.constants}
            given = self._inactive.given | self._active.given
            if any(kinds[name] is ConstantKind.TENSOR_CONSTANT for name in given):
                # Before the swap, the container would use the active buffer's tensor constants in
                # place of the inactive buffer's. So folding is left to the first run after the
                # swap.
                return
            # Folding uses one of the container's instances without asking the pool. If folding
            # fails, that instance stays on the inactive buffer, and no run may get it.
            with self._pool.all_instances():
                try:
                    self._container.fold(True, stream)
                except LibraryRunError:
                    # Two swaps set all instances to the active buffer.
                    self._container.swap()
                    self._container.swap()
                    raise
                self._inactive.folded = self._inactive.has_folded = True

    def swap(self) -> None:
        """Exchange the buffers; waits for running calls.

        Raises:
            MissingConstantsError: Constants of the inactive buffer have no values.
        """
        with self.changing():
            self._require_inactive()
            if not self._inactive.loaded:
                return  # There are no constants; the library would not run on the other buffer.
            with self._pool.all_instances():
                synchronize(self._device)  # Launched kernels still read the constants.
                folded, self._active.folded = self._active.folded, False  # if it fails halfway
                self._container.swap()
                self._active.folded = folded
                self._active, self._inactive = self._inactive, self._active

    def free_inactive(self) -> None:
        """Free the inactive buffer's memory, except that of its folded constants.

        Raises:
            MissingConstantsError: The inactive buffer was folded, and constants of the active
                buffer have no values.
            LibraryRunError: The inactive buffer was folded, and the active buffer cannot be folded.
                Nothing is freed.
        """
        with self.changing():
            if self._inactive.has_folded and any(c.folded for c in self._container.constants):
                self._free_folded()
            else:
                self._container.free_inactive()
                self._inactive = _Buffer(set())

    def _free_folded(self) -> None:
        """Free a folded inactive buffer so that it can take an update again.

        The container keeps freed constants in its map, and its next update reads the freed folded
        constants. So the map is pointed to the active buffer's constants, and folded once more
        from these.
        """
        container = self._container
        self.prepare(None)
        with self._pool.all_instances():
            container.update(container.extract(inactive=False), True, True)
            container.free_inactive()
            self._inactive = _Buffer(set())
            self._inactive.has_folded = True
            self._inactive.user_managed = dict(self._active.user_managed)
            container.fold(True, None)

    def _buffer(self, use_inactive: bool) -> _Buffer:
        return self._inactive if use_inactive else self._active

    def _absent(self, buffer: _Buffer) -> tuple[str, ...]:
        constants = self._container.constants
        return tuple(c.fqn for c in constants if not c.folded and c.name not in buffer.loaded)

    def _require_inactive(self) -> None:
        absent = self._absent(self._inactive)
        if absent:
            raise MissingConstantsError(
                f"{self._name}: the inactive buffer lacks {', '.join(absent[:8])}; update it with "
                "update_inactive_constant_buffer first",
                absent,
            )

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the optional constants that an update of the inactive buffer leaves out.

        Left alone, the container copies these constants from the active buffer over those of an
        earlier update, and reads past its tables where the active buffer has none.
        """
        constants = self._container.constants
        optional = [
            c for c in constants if not c.folded and c.may_be_missing and c.name not in tensors
        ]
        if not optional:
            return {}
        own = self._container.extract(inactive=True)
        active = self._container.extract(inactive=False)
        kept = {}
        for constant in optional:
            source = own if constant.name in self._inactive.loaded else active
            if constant.name not in source:
                raise MissingConstantsError(
                    f"{self._name}: constant {constant.fqn!r} has no value in either buffer; give "
                    "it too",
                    (constant.fqn,),
                )
            kept[constant.name] = source[constant.name].clone()
        return kept

    def _update(
        self,
        buffer: _Buffer,
        tensors: Mapping[str, Tensor],
        given: set[str],
        user_managed: bool,
    ) -> None:
        if not tensors:
            return
        buffer.folded = False
        self._container.update(tensors, buffer is self._inactive, user_managed)
        buffer.loaded |= set(tensors)
        buffer.given |= given
        for name in tensors:
            buffer.user_managed.pop(name, None)
        if user_managed:
            buffer.user_managed.update(tensors)


_all_buffers: weakref.WeakSet[ConstantBuffers] = weakref.WeakSet()


def _after_fork() -> None:
    for buffers in list(_all_buffers):
        if buffers._lock.acquire(blocking=False):
            buffers._lock.release()
        else:
            # A thread that is not in this process was about to change constants.
            buffers._lock = threading.RLock()
            has_folded, buffers._inactive = buffers._inactive.has_folded, _Buffer(set())
            buffers._inactive.has_folded = has_folded


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
