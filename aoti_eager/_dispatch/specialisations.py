"""Which calls of an op share a kernel: the dynamic specialisations of one table, and their rules.

The first call of a family gets a static kernel, unless other sizes are expected to come. When the
family comes back with other sizes, one more kernel is compiled, with symbols for the sizes that
changed. If that kernel is not enough, the next one has symbols for the sizes that have changed by
then; the last one, for all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .._base.data_class import dataclass
from .._keys.dynamic_plan import Plan, plan_of
from .._keys.kernel_key import ANY_THREADS, KernelKey
from .._keys.pattern import Family, family_of, varied
from .._keys.schema import OpSchema
from .._keys.size_arguments import size_arguments
from .._store.entry import Status
from .._store.stored_pattern import serves
from ..config import config
from .dynamic_kernels import DynamicKernels
from .dynamic_marks import marked
from .family_history import Group, History, TableKey
from .static_calls import StaticCalls

# How many families are remembered: a script may have any number.
_FAMILIES = 1024
# How many calls of a family may wait for its kernel, each with a decline in the table.
_WAITING = 2048
# After so many kernels a family is taken to be static: its sizes shape the code.
_MOST_KERNELS = 3
# Calls with the same ranks and dtypes, of any family, get static kernels for so many sizes. After
# that, the first call of a new family gets a kernel for all sizes.
_MOST_SURPRISES = 2
# How many static kernels calls with the same ranks and dtypes get, if their sizes change and they
# can have no dynamic kernel: the sizes go on changing, and each would take a compile.
_MOST_STATIC = 4


@dataclass(frozen=True, slots=True)
class _Next:
    """A family's next dynamic kernel.

    Attributes:
        plan: The plan to compile; ``None`` for no dynamic kernel.
        refused: Whether the family can have no more dynamic kernels.
        failed: Digest of the plan that has failed before, in any process.
    """

    plan: Plan | None = None
    refused: bool = False
    failed: str | None = None


class Specialisations:
    """Which calls of one op get which kernel, in one table.

    Attributes:
        kernels: The dynamic kernels that there are.
        static_calls: The calls that got a static kernel each.

    More than 12 methods, because each is one step under the lock of the families.
    """

    def __init__(self) -> None:
        self.kernels = DynamicKernels()
        self._families: dict[str, History] = {}
        self._groups: dict[str, Group] = {}
        # Patterns of kernels that were planned for a family at its first call.
        self._expected: set[str] = set()
        self.static_calls = StaticCalls()
        self._lock = threading.RLock()

    def plan(self, schema: OpSchema, key: KernelKey) -> tuple[Plan | None, bool]:
        """Return what to compile for a call that no specialisation serves, and whether it passes.

        A plan of ``None`` stands for a static kernel; or, if the call passes, for no kernel until
        its key comes again. A call passes if its plan has failed in another process: the call there
        got no kernel, so the call here gets none either. Otherwise each process would have one
        kernel more than the process before.
        """
        if config.dynamic is False:
            return None, False
        family = family_of(schema, key)
        if not family.values:
            return None, False
        with self._lock:
            history = self._history(family.pattern.digest)
            group = self._groups.setdefault(_rank_digest(key, family), Group())
            found = self._next(schema, key, family, history, group)
            if family.values not in history.calls:
                history.calls.append(family.values)
            if len(group.sizes) <= _MOST_SURPRISES:
                group.sizes |= {_sizes(key)}
            passes = found.failed is not None and found.failed not in history.tried
            if found.failed is not None:
                history.tried.add(found.failed)
            group.refused |= found.refused
        return found.plan, passes

    def start_static(self, schema: OpSchema, key: KernelKey) -> None:
        """Count a static kernel: the compiler is asked for it now."""
        self.static_calls.add(key)
        if config.dynamic is not False:
            family = family_of(schema, key)
            if family.values:
                with self._lock:
                    self._groups.setdefault(_rank_digest(key, family), Group()).static += 1

    def seen(self, schema: OpSchema, key: KernelKey) -> History | None:
        """Return the family of a rare call, and remember the call; ``None`` if it can have none."""
        if config.dynamic is False:
            return None
        family = family_of(schema, key)
        if not family.values:
            return None
        with self._lock:
            history = self._history(family.pattern.digest)
            if family.values not in history.calls:
                history.calls.append(family.values)
        return history

    def _next(
        self,
        schema: OpSchema,
        key: KernelKey,
        family: Family,
        history: History,
        group: Group,
    ) -> _Next:
        if history.kernels >= _MOST_KERNELS or self.kernels.count >= config.dynamic_cap:
            return _Next(refused=True)
        is_expected = False
        if config.dynamic is True or history.kernels == _MOST_KERNELS - 1:
            names = set(family.values)
        elif is_expected := not history.calls and self._varies(group, key):
            names = {name for name in family.values if not name.startswith("v")}
        else:
            names = varied([*history.calls, family.values])
        marks = marked(schema.op, family)
        names = {name for name in family.values if marks.get(name, name in names)}
        plan = plan_of(family.pattern.digest, family, names) if names else None
        if plan is not None and is_expected:
            self._expected.add(plan.pattern.with_threads(ANY_THREADS).digest)
        return _Next() if plan is None else self._with_failed(schema, key, plan)

    def refusal(self, schema: OpSchema, key: KernelKey, static: int) -> str | None:
        """Return why a call that ``plan`` gave no plan for gets no static kernel either, in words.

        Args:
            schema: The op's schema.
            key: The call.
            static: How many static kernels the op has.
        """
        with self._lock:
            group = self._groups.get(_rank_digest(key, family_of(schema, key)), Group())
        return self._refusal(schema, key, static, group)

    def foreseen_refusal(self, schema: OpSchema, key: KernelKey, static: int) -> str | None:
        """Return why a call that was not made would get no kernel; arguments as for ``refusal``."""
        family = family_of(schema, key)
        with self._lock:
            group = self._groups.get(_rank_digest(key, family), Group())
            if config.dynamic is not False and family.values:
                history = self._families.get(family.pattern.digest, History())
                found = self._next(schema, key, family, history, group)
                if found.plan is not None or history.is_compiling:
                    return None
                group = Group(group.static, group.refused or found.refused, group.sizes)
        return self._refusal(schema, key, static, group)

    def _refusal(self, schema: OpSchema, key: KernelKey, static: int, group: Group) -> str | None:
        if config.dynamic is not False and group.refused and group.static >= _MOST_STATIC:
            message = "several sizes cannot share a kernel here, and it has enough static ones"
        elif static >= config.static_cap:
            message = f"has {config.static_cap} static specialisations"
        else:
            return None
        changing = self.changing(schema, key) or self.static_calls.changing(key)
        what = f"; what kept changing: {', '.join(changing)}" if changing else ""
        return f"{schema.op}: {message}{what}"

    def start(self, plan: Plan) -> None:
        """Count ``plan`` among its family's kernels: the compiler is asked for it now."""
        with self._lock:
            history = self._history(plan.family)
            history.kernels += 1
            history.tried.add(plan.pattern.digest)

    def note(self, schema: OpSchema, key: KernelKey) -> None:
        """Remember a call that a stored static kernel serves; the kernel counts as made here."""
        if config.dynamic is False:
            return
        family = family_of(schema, key)
        if not family.values:
            return
        with self._lock:
            calls = self._history(family.pattern.digest).calls
            if family.values not in calls:
                calls.append(family.values)
                self._groups.setdefault(_rank_digest(key, family), Group()).static += 1

    def wait_for(
        self,
        schema: OpSchema,
        key: KernelKey,
        table_key: TableKey,
        decline: Callable[[], object],
        forget: Callable[[TableKey], None],
    ) -> bool:
        """Return whether a dynamic kernel that may serve a call is being made; the call then waits.

        Args:
            schema: The op's schema.
            key: The call.
            table_key: The call's key in the table.
            decline: Keeps the original for this key, until ``end``; called before ``end`` can run.
            forget: Takes the decline of a key back. If too many keys wait, it is called for the key
                that has waited the longest, whose next call asks again.
        """
        if config.dynamic is False:
            return False
        family = family_of(schema, key)
        with self._lock:
            history = self._families.get(family.pattern.digest)
            if history is None or not history.is_compiling:
                return False
            if family.values not in history.calls:
                history.calls.append(family.values)
            if len(history.waiting) >= _WAITING:
                forget(history.waiting.popleft())
            history.waiting.append(table_key)
            decline()  # Under the lock, so that ``end`` cannot come first.
            return True

    def begin(self, plan: Plan) -> None:
        """Note that ``plan`` is being compiled beside the script."""
        with self._lock:
            self.start(plan)
            self._history(plan.family).is_compiling = True

    def end(self, plan: Plan, forget: Callable[[TableKey], None]) -> None:
        """Note that ``plan`` has been compiled, and let the waiting calls be decided on."""
        with self._lock:
            history = self._history(plan.family)
            history.is_compiling = False
            waiting, history.waiting = history.waiting, deque()
        for key in waiting:
            forget(key)

    def changing(self, schema: OpSchema, key: KernelKey) -> list[str]:
        """Return what differs among the calls of the family of ``key``, in words."""
        family = family_of(schema, key)
        with self._lock:
            history = self._families.get(family.pattern.digest)
            names = varied([*history.calls, family.values]) if history is not None else set()
        return sorted(family.meanings[name] for name in names)

    def after_fork(self) -> None:
        """Drop a lock that a thread of the parent may have held, and what was waited for."""
        self._lock = threading.RLock()
        self.kernels.after_fork()
        for history in self._families.values():
            history.is_compiling, history.waiting = False, deque()

    def _varies(self, group: Group, key: KernelKey) -> bool:
        """Return whether a new family's sizes are expected to vary: those of its group do.

        In the background, a kernel is asked for after some calls of its family, which show whether
        the sizes vary. If a kernel for such a family could not be made, none is expected for
        further families.
        """
        if config.mode != "sync" or len(group.sizes | {_sizes(key)}) <= _MOST_SURPRISES:
            return False
        unusable = self.kernels.unusable()
        failed = {one.entry.key.with_threads(ANY_THREADS).digest for one in unusable}
        return not failed & self._expected

    def _with_failed(self, schema: OpSchema, key: KernelKey, plan: Plan) -> _Next:
        """Return ``plan``, unless it has failed before, or a kernel was wrong for such calls."""
        wanted = plan.pattern.with_threads(ANY_THREADS)
        unusable = self.kernels.unusable()
        same = [one.entry for one in unusable if one.entry.key.with_threads(ANY_THREADS) == wanted]
        if any(one.status is not Status.READY for one in same):
            return _Next(refused=True, failed=plan.pattern.digest)
        wrong = [one for one in unusable if one.entry.status is not Status.DECLINED]
        if same or any(serves(schema, one, key) for one in wrong):
            return _Next(refused=True)
        return _Next(plan)

    def _history(self, digest: str) -> History:
        if len(self._families) >= _FAMILIES and digest not in self._families:
            self._groups.clear()
            self._expected.clear()
            self._families.clear()  # Bounds memory: families are found out again.
        return self._families.setdefault(digest, History())


def _rank_digest(key: KernelKey, family: Family) -> str:
    """Return a digest of ``key`` without the values of its sizes and strides."""
    repeated = size_arguments(family.pattern.arguments)

    def without_sizes(component: Any) -> Any:
        if isinstance(component, list):
            return [without_sizes(one) for one in component]
        if isinstance(component, dict) and "sizes" in component:
            return {**component, "sizes": len(component["sizes"]), "strides": None}
        return component

    arguments = tuple(
        (name, None if name in repeated else without_sizes(one)) for name, one in key.arguments
    )
    return KernelKey(key.op, key.dispatch_key, arguments, key.context).digest


def _sizes(key: KernelKey) -> str:
    """Return the sizes of all tensors of a call, as text."""
    found: list[Any] = []

    def add(component: Any) -> None:
        if isinstance(component, list):
            for one in component:
                add(one)
        elif isinstance(component, dict) and "sizes" in component:
            found.append(component["sizes"])

    for _, component in key.arguments:
        add(component)
    return str(found)
