"""Every setting of the package, where its value came from, and scopes.

A value is looked up in this order, and the first source that has one wins: the innermost scope, an
assignment (``aoti_eager.config.mode = "sync"``), an ``AOTI_EAGER_*`` variable, the config file, the
default. An assignment inside a scope that sets the same name changes that scope and ends with it.

The config file is TOML, at ``$AOTI_EAGER_CONFIG`` or ``config.toml`` in the platform's user config
directory for ``aoti_eager``; its keys are the names of the settings (``_base/settings.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ._base.settings import (
    SETTINGS,
    Setting,
    is_from_the_root,
    user_config_file,
)
from ._base.trusted_files import read_file
from ._base.warn_once import warn_once
from .errors import ConfigError, UntrustedFileError

_VARIABLES = [setting.variable for setting in SETTINGS.values()]

# Settings that decide which kernels serve: after a change of value, calls start with empty tables.
_TABLE_SETTINGS = ("cache_dir", "cpu_target", "tiers")


class Config:
    """The settings of this process, read and assigned as attributes.

    Raises:
        ConfigError: The name is unknown, or the value is not one the setting takes.

    More than 12 methods, because settings are attributes, and all of them share scopes and lock.
    """

    _scopes: list[dict[str, Any]]
    _tokens: dict[tuple[int, str], int]  # (id of a layer, a setting that the layer sets) -> token
    _table_tokens: dict[tuple[int, ...], int]  # tokens of _TABLE_SETTINGS -> token of the tables
    _next_token: itertools.count[int]
    _assigned: dict[str, Any]
    _observers: list[Callable[[], None]]
    _valid: Any  # the state of the settings that ``validate`` last found to be valid
    _file: tuple[dict[str, Any], Path | None] | None  # the config file's content and path
    _lock: threading.RLock

    def __init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "_scopes", [])
        set_(self, "_assigned", {})
        set_(self, "_tokens", {(id(self._assigned), name): 0 for name in _TABLE_SETTINGS})
        set_(self, "_table_tokens", {})
        set_(self, "_next_token", itertools.count(1))
        set_(self, "_observers", [])
        set_(self, "_file", None)
        set_(self, "_valid", None)
        set_(self, "_lock", threading.RLock())

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *SETTINGS])

    def __getattr__(self, name: str) -> Any:
        return self.lookup(name)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        setting = _setting(name)
        parsed = _parse(setting, value, f"config.{name}")
        with self._lock:
            layer = next((s for s in reversed(self._scopes) if name in s), self._assigned)
            if name in _TABLE_SETTINGS and not self._is_value(name, parsed):
                self._tokens[id(layer), name] = next(self._next_token)
            layer[name] = parsed
        self._notify()

    def lookup(self, name: str) -> tuple[Any, str]:
        """Return the value of the setting ``name`` and, in words, where it came from.

        Raises:
            ConfigError: There is no such setting, or a variable or the config file holds a value
                that the setting does not take.
        """
        setting = _setting(name)
        with self._lock:
            for depth, scope in reversed(list(enumerate(self._scopes, start=1))):
                if name in scope:
                    return scope[name], f"scope {depth}"
            if name in self._assigned:
                return self._assigned[name], "assignment"
        text = os.environ.get(setting.variable)
        if text is not None:
            origin = f"environment variable {setting.variable}"
            return _parse_stored(setting, text, origin), origin
        values, path = self._read_file()
        if name in values:
            origin = f"config file {path}"
            return _parse_stored(setting, values[name], origin), origin
        return setting.default, "default"

    def source(self, name: str) -> str:
        """Return where the value of the setting ``name`` came from, in words.

        Raises:
            ConfigError: As ``lookup``.
        """
        return self.lookup(name)[1]

    @contextlib.contextmanager
    def scope(self, **settings: Any) -> Iterator[Config]:
        """Set ``settings`` for the whole process until the ``with`` block ends; scopes nest.

        A scope with another ``cache_dir`` or ``cpu_target`` starts with empty tables; the previous
        tables come back when the scope ends. Every thread sees the scope, not only the thread that
        opened it.

        Args:
            settings: Values by the names of settings.

        Raises:
            ConfigError: A name is unknown, or a value is not one the setting takes.
        """
        layer = {
            name: _parse(_setting(name), value, f"config.scope({name}=...)")
            for name, value in settings.items()
        }
        with self._lock:
            for name in _TABLE_SETTINGS:
                if name in layer:
                    # Stored even if the value is the same as before: the outer scope may end first.
                    same = self._is_value(name, layer[name])
                    token = self._token(name) if same else next(self._next_token)
                    self._tokens[id(layer), name] = token
            self._scopes.append(layer)
        self._notify()
        try:
            yield self
        finally:
            with self._lock:
                # Compared by identity: equal scopes of two threads may end in any order.
                self._scopes[:] = [scope for scope in self._scopes if scope is not layer]
                for name in _TABLE_SETTINGS:
                    self._tokens.pop((id(layer), name), None)
            self._notify()

    @property
    def table_token(self) -> int:
        """Return the token of the in-memory tables; another cache or CPU target has another."""
        with self._lock:
            tokens = tuple(map(self._token, _TABLE_SETTINGS))
            if tokens not in self._table_tokens:
                self._table_tokens[tokens] = next(self._next_token)
            return self._table_tokens[tokens]

    @property
    def table_tokens(self) -> frozenset[int]:
        """Return the tokens of all tables that may still be used."""
        with self._lock:
            alive = set(self._tokens.values())
            for tokens in [one for one in self._table_tokens if not alive.issuperset(one)]:
                del self._table_tokens[tokens]
            return frozenset(self._table_tokens.values())

    def _token(self, name: str) -> int:
        layers = [self._assigned, *self._scopes]
        return next(
            self._tokens[id(layer), name]
            for layer in reversed(layers)
            if (id(layer), name) in self._tokens
        )

    def validate(self) -> None:
        """Read every setting once, so that a wrong value raises here and not inside a call.

        Raises:
            ConfigError: A variable or the config file holds a value that a setting does not take.
        """
        with self._lock:
            names = [*map(frozenset, self._scopes), frozenset(self._assigned)]
        looked_at = names, tuple(map(os.environ.get, _VARIABLES)), len(_checks)
        if looked_at == self._valid:
            return  # Values of scopes and assignments were checked when they were set.
        for name in SETTINGS:
            self.lookup(name)
        object.__setattr__(self, "_valid", looked_at)

    def on_change(self, observer: Callable[[], None]) -> None:
        """Call ``observer`` after every change that a scope or an assignment makes."""
        self._observers.append(observer)

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent process may have held."""
        object.__setattr__(self, "_lock", threading.RLock())

    def _is_value(self, name: str, value: Any) -> bool:
        try:
            return bool(value == self.lookup(name)[0])
        except ConfigError:
            return False  # A wrong variable or file; the new value overrules it.

    def _notify(self) -> None:
        for observer in self._observers:
            observer()

    def _read_file(self) -> tuple[dict[str, Any], Path | None]:
        if self._file is None:
            variable = os.environ.get("AOTI_EAGER_CONFIG")
            if variable and not is_from_the_root(variable):
                raise ConfigError(f"AOTI_EAGER_CONFIG: got {variable!r}; {_FROM_THE_ROOT}")
            path = Path(variable).expanduser() if variable else user_config_file()
            values = {} if path is None else _load_file(path, required=bool(variable))
            object.__setattr__(self, "_file", (values, path))
        assert self._file is not None
        return self._file


def _setting(name: str) -> Setting:
    try:
        return SETTINGS[name]
    except KeyError:
        # Private names are never settings; hasattr and copy need an AttributeError.
        if name.startswith("_"):
            raise AttributeError(name) from None
        known = ", ".join(SETTINGS)
        raise ConfigError(f"{name}: no such setting; the settings are {known}") from None


def add_check(name: str, check: Callable[[Any], object]) -> None:
    """Call ``check`` with every value of the setting ``name``; its ValueError becomes the message.

    Such checks are for what this module cannot know: whether this machine supports the value.
    """
    _checks[name] = check


_checks: dict[str, Callable[[Any], object]] = {}


def _parse(setting: Setting, value: Any, origin: str) -> Any:
    try:
        parsed = setting.parse(value)
        if setting.name in _checks:
            _checks[setting.name](parsed)
        return parsed
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{origin}: got {value!r}; {error}") from error


_FROM_THE_ROOT = (
    "wants a path from the root on (or from ~): a script may change its directory, and would read "
    "code from wherever it then is"
)


def _parse_stored(setting: Setting, value: Any, origin: str) -> Any:
    """Parse a value of an environment variable or the config file, which is read at each lookup."""
    if setting.is_path and isinstance(value, str) and value.strip() and not is_from_the_root(value):
        raise ConfigError(f"{origin}: got {value!r}; {_FROM_THE_ROOT}")
    return _parse(setting, value, origin)


# Most bytes that the config file may have.
_FILE_LIMIT = 1 << 20


def _load_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = read_file(path, _FILE_LIMIT).decode()
    except UntrustedFileError as error:
        if required:
            raise ConfigError(f"config file {path}: cannot be read: {error.problem}") from error
        warn_once("config", f"config file {error}; it is not read")
        return {}
    except OSError as error:
        if required:
            raise ConfigError(f"config file {path}: cannot be read: {error.strerror}") from error
        return {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path}: is not TOML: {error}") from error
    # Imported only here: most processes have no config file.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path}: is not TOML: {error}") from error
    for name in values:
        if name not in SETTINGS:
            raise ConfigError(
                f"config file {path}: {name!r} is no setting; they are {', '.join(SETTINGS)}"
            )
    return values


config = Config()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=config.after_fork)
