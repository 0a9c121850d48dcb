"""``enable``, ``disable`` and ``use``: the op set serves a whole script, until it is switched off.

Kernels go into the dispatcher once, at the first ``enable`` or ``use`` that wants them. From then
on only flags in these kernels change, which is safe while other threads call: what the innermost
``use`` block wants is served, outside of all blocks what ``enable`` wants. ``disable`` takes the
kernels out of the dispatcher if no other thread of Python's can be calling an op.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator

from .._base.at_exit import at_exit
from .._base.data_class import dataclass
from .._base.torch_compat.dispatcher import OpOverload
from .._base.warn_once import log
from .._dispatch.counters import OpStats
from .._keys.schema import qualified_name
from .._registration import registry
from .._registration.registry import Registration
from ..config import config
from . import script_runs
from .chosen import Wanted, chosen
from .op_set import DEFAULT_PRESET


@dataclass(frozen=True, slots=True)
class _Choice:
    """What one ``enable`` or ``use`` wants.

    Attributes:
        ops: Qualified names of the overloads that are served.
        regions: Whether modules are fused.
        children: Whether forked children go on with it.
    """

    ops: frozenset[str]
    regions: bool
    children: bool


class _Switch:
    """What is in the dispatcher for whole scripts, and what of that is served."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.registrations: list[Registration] = []
        self.enabled: _Choice | None = None
        self.used: list[_Choice] = []
        # Beside all other choices; by ``fuse_script``.
        self.fused: _Choice | None = None
        # Whether modules may be fused for a choice of these.
        self.fuses = False

    @property
    def in_force(self) -> _Choice | None:
        """Return the innermost choice."""
        return self.used[-1] if self.used else self.enabled

    @property
    def fusing(self) -> list[_Choice]:
        """Return the choices that have modules fused: all of them, not the innermost alone."""
        choices = (self.fused, self.enabled, *self.used)
        return [one for one in choices if one is not None and one.regions]

    @property
    def fuses_children(self) -> bool:
        """Return whether modules that are fused stay so in forked children."""
        return any(one.children for one in self.fusing)

    @property
    def held(self) -> set[str]:
        """Return the names of the ops whose kernels are in the dispatcher."""
        return {name for one in self.registrations for name in one.ops}

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Undo what the block has changed, if the block raises."""
        enabled, used, fused = self.enabled, list(self.used), self.fused
        held = list(self.registrations)
        try:
            yield
        except BaseException:
            self.enabled, self.used[:], self.fused = enabled, used, fused
            new = [one for one in self.registrations if one not in held]
            self.registrations[:] = held
            for one in new:
                one.unregister()
            self.apply()
            raise

    def install(self, ops: Iterable[OpOverload]) -> None:
        """Put the kernels of ``ops`` into the dispatcher that are not there yet; none serves."""
        held = self.held
        wanted = [op for op in ops if qualified_name(op) not in held]
        if wanted:
            registration = registry.register(wanted)
            if registration.ops:  # None where no call can be served at all.
                self.registrations.append(registration)
                registration.disable()

    def uninstall(self) -> None:
        """Take all kernels out of the dispatcher; no thread may be calling an op."""
        registrations, self.registrations = self.registrations, []
        for one in registrations:
            one.unregister()

    def apply(self, begun: _Choice | None = None, *, again: bool = False) -> None:
        """Serve what the innermost choice wants, and nothing else.

        Args:
            begun: The choice that begins with this. Only then modules begin to be looked for: a
                block ends while other threads call, and the dispatcher stays as it is.
            again: Whether to look for modules once more, if the search has ended by itself.
        """
        choice = self.in_force
        for registration in self.registrations:
            registration.select(frozenset() if choice is None else choice.ops)
        begins = begun is not None and begun.regions
        if not begins and not self.fuses:
            return
        # Not at the top: who serves single ops has no use for regions.
        from .._regions import whole_script

        if not self.fusing:
            whole_script.disable()
            self.fuses = False
        elif begins and (again or not whole_script.is_begun()):
            # Asked again by the next choice if nothing can be served: a self-test may be running.
            self.fuses = whole_script.enable(children=self.fuses_children) or self.fuses
        else:
            whole_script.keep_in_children(self.fuses_children)

    @property
    def served(self) -> int:
        """Return how many ops are served: those of the innermost choice that have kernels."""
        choice = self.in_force
        return 0 if choice is None or config.mode == "off" else len(self.held & choice.ops)


_switch = _Switch()


def enable(
    preset: str = DEFAULT_PRESET,
    *,
    include: Wanted | Iterable[Wanted] | None = None,
    exclude: Wanted | Iterable[Wanted] = (),
    regions: bool = False,
    children: bool = False,
) -> None:
    """Serve a whole script by kernel libraries: the ops that were measured to win over ATen.

    A second call replaces the first one's choice. Ops that are registered by ``register`` stay
    served, whatever is chosen here. From the second run of the same script on, an op all of whose
    kernels lose on this processor is left out of a preset.

    Call this before other threads call ops: PyTorch's dispatcher is not safe against changes.

    Args:
        preset: ``"inference"``, the ops that can win, without those of gradients; ``"training"``,
            the ops that can win; ``"all"``, all ops that were measured, whichever won.
        include: What to serve in place of the preset: ops as ``register`` takes them, globs
            (``"aten::*softmax*"``, of the ops that were measured), and paths of files
            (``os.PathLike``) with one of these a line.
        exclude: What of that is not served, as in ``include``.
        regions: Whether the modules that the script calls are fused, too: a module whose call is
            the outermost one on its thread is fused (``fuse``) when it is called for the second
            time. The search for such modules pauses after 20,000 calls of modules without a new
            one, goes on when a module is built, and ends when ``torch.compile`` is used. ``fuse``
            may be called for any of these modules, and takes it over.
        children: Whether forked children are served, too; otherwise they run the originals.

    Raises:
        ConfigError: There is no such preset, a file cannot be read, or a setting holds a value
            that it does not take.
        UnknownOpError: There is no op of a name that was given.
        RegistrationError: An op that was given cannot be registered.
    """
    script = None if include is not None else script_runs.main_script()
    enable_script(
        script, preset, include=include, exclude=exclude, regions=regions, children=children
    )


def enable_script(
    script: script_runs.Script | None,
    preset: str = DEFAULT_PRESET,
    *,
    include: Wanted | Iterable[Wanted] | None = None,
    exclude: Wanted | Iterable[Wanted] = (),
    regions: bool = False,
    children: bool = False,
) -> None:
    """Serve ``script``: see ``enable``; ``None`` if no op is left out.

    Raises:
        AotiEagerError: See ``enable``.
    """
    found, run = chosen(preset, include, exclude), None
    if script is not None:
        found, run = script_runs.without_losing(found, script)
    with _switch.lock, _switch.begun():
        _switch.install(found.values())
        names = frozenset(map(qualified_name, found.values()))
        _switch.enabled = _Choice(names, regions, children)
        _switch.apply(_switch.enabled, again=True)
        script_runs.count_at_end(run)
        served = _switch.served
    log.info("enabled: %d ops are served, of %d that were chosen", served, len(found))


def fuse_script() -> None:
    """Have the modules fused that the script calls, in forked children, too, until ``disable``.

    The verb ``run`` calls this before the script, whose own ``enable`` and ``use`` stand beside it.

    Raises:
        ConfigError: A setting holds a value that it does not take.
    """
    with _switch.lock, _switch.begun():
        _switch.fused = _Choice(frozenset(), regions=True, children=True)
        _switch.apply(_switch.fused)


def disable() -> None:
    """Switch off what ``enable`` and ``use`` have switched on, and give everything back.

    All calls run their originals from now on, those inside of a ``use`` block as well; modules get
    their forwards back. The kernels leave the dispatcher, unless another thread runs Python, which
    may be calling an op: then they stay and pass calls through. What ``register`` and ``fuse`` were
    called for stays served.
    """
    say_what_fell_back()
    with _switch.lock:
        _switch.enabled = _switch.fused = None
        _switch.used.clear()
        _switch.apply()
        if _is_alone():
            _switch.uninstall()


@contextlib.contextmanager
def use(
    preset: str = DEFAULT_PRESET,
    *,
    include: Wanted | Iterable[Wanted] | None = None,
    exclude: Wanted | Iterable[Wanted] = (),
    regions: bool = False,
    children: bool = False,
) -> Iterator[None]:
    """Serve a block as ``enable`` serves a script; for the whole process, in place of ``enable``.

    Blocks nest, and blocks of several threads may end in any order: the one that began last and has
    not ended is in force. The kernels of its ops stay in the dispatcher after the block and pass
    calls through, until ``disable``; so the next block that wants them only switches flags.

    Args:
        preset: As for ``enable``.
        include: As for ``enable``.
        exclude: As for ``enable``.
        regions: As for ``enable``; a block undoes nothing that ``enable`` has had fused.
        children: As for ``enable``.

    Raises:
        AotiEagerError: As for ``enable``.
    """
    found = chosen(preset, include, exclude)
    choice = _Choice(frozenset(map(qualified_name, found.values())), regions, children)
    try:
        with _switch.lock, _switch.begun():
            _switch.install(found.values())
            _switch.used.append(choice)
            _switch.apply(choice)
        yield
    finally:
        with _switch.lock:
            # Compared by identity: equal blocks of two threads may end in any order.
            _switch.used[:] = [one for one in _switch.used if one is not choice]
            _switch.apply()


def is_serving() -> bool:
    """Return whether ``enable`` or ``use`` is in force."""
    return _switch.in_force is not None


def say_what_fell_back() -> None:
    """Log, at level info, how many calls of the enabled ops were served, and why others were not.

    ``stats`` has the same numbers by op.
    """
    held = _switch.held
    if not held or not log.isEnabledFor(20):
        return
    total = sum((one for op, one in registry.stats().items() if op in held), OpStats())
    reasons = sorted(total.declined.items(), key=lambda item: (-item[1], item[0]))
    declined = "; ".join(f"{reason} {count}" for reason, count in reasons) or "none"
    log.info(
        "enabled: %d ops; of %d calls, %d were served and %d had no kernel yet; declined: %s",
        *(len(held), total.calls, total.hits, total.misses, declined),
    )


def _is_alone() -> bool:
    """Return whether no thread but this one, and ours, runs Python."""
    ours = {one.ident for one in threading.enumerate() if one.name.startswith("aoti_eager")}
    return not set(sys._current_frames()) - ours - {threading.get_ident()}


def _after_fork() -> None:
    """Let a forked child run the originals, unless its parent asked for more."""
    _switch.lock = threading.RLock()
    # Otherwise ``whole_script`` has given all modules their forwards back.
    _switch.fuses = _switch.fuses and _switch.fuses_children
    choice = _switch.in_force
    if choice is not None and not choice.children:
        _switch.enabled = None
        _switch.used.clear()
        for registration in _switch.registrations:
            registration.disable()


at_exit(say_what_fell_back)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
