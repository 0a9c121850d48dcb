"""The settings that calls of regions read, as plain attributes: a look-up costs microseconds."""

from __future__ import annotations

import contextlib

from .._compile_service import this_torch
from ..config import config
from ..errors import ConfigError
from .waiting import end_all


class CurrentSettings:
    """The present values, read again after each change of a setting, and by ``fuse``.

    Attributes:
        is_off: Whether all calls run as they are.
        why_off: Why they do, in words: ``in mode off``.
        is_refused: Whether that is as this torch was not checked, and no self-test has passed.
        gate: The setting ``gate``.
        rerecord: The setting ``rerecord``.
        region_cap: The setting ``region_cap``.
        strict: The setting ``strict``.
    """

    __slots__ = ("gate", "is_off", "is_refused", "region_cap", "rerecord", "strict", "why_off")

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the settings.

        Raises:
            ConfigError: A variable or the config file holds a value that a setting does not take.
        """
        is_off = config.mode == "off"
        self.is_refused = not is_off and this_torch.is_refused()
        self.why_off = "in mode off" if is_off else "with a torch that was not checked"
        self.is_off = is_off or self.is_refused
        self.gate = bool(config.gate)
        self.rerecord = bool(config.rerecord)
        self.region_cap = int(config.region_cap)
        self.strict = bool(config.strict)


def _changed() -> None:
    # The next ``fuse`` says what is wrong with a variable or the config file.
    with contextlib.suppress(ConfigError):
        settings.refresh()
    end_all()


settings = CurrentSettings()
config.on_change(_changed)
this_torch.on_change(_changed)
