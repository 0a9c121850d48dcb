"""The settings that calls of regions read, as plain attributes: a look-up costs microseconds."""

from __future__ import annotations

import contextlib

from ..config import config
from ..errors import ConfigError


class CurrentSettings:
    """The present values, read again after each change of a setting, and by ``fuse``.

    Attributes:
        is_off: Whether the mode is ``off``.
        gate: The setting ``gate``.
        rerecord: The setting ``rerecord``.
        region_cap: The setting ``region_cap``.
        strict: The setting ``strict``.
    """

    __slots__ = ("gate", "is_off", "region_cap", "rerecord", "strict")

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the settings.

        Raises:
            ConfigError: A variable or the config file holds a value that a setting does not take.
        """
        self.is_off = config.mode == "off"
        self.gate = bool(config.gate)
        self.rerecord = bool(config.rerecord)
        self.region_cap = int(config.region_cap)
        self.strict = bool(config.strict)


def _changed() -> None:
    # The next ``fuse`` says what is wrong with a variable or the config file.
    with contextlib.suppress(ConfigError):
        settings.refresh()


settings = CurrentSettings()
config.on_change(_changed)
