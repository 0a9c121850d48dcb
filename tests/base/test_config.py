"""Settings: which value wins, where it came from, what is refused, and scopes."""

from __future__ import annotations

import copy
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import platformdirs
import pytest

import aoti_eager
from aoti_eager._base import warn_once
from aoti_eager._base.accepted_values import CPU_TARGETS, MODES
from aoti_eager._base.settings import SETTINGS
from aoti_eager.config import Config, _checks
from aoti_eager.errors import AotiEagerWarning, ConfigError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither this machine's variables nor its config file count."""
    for name in list(os.environ):
        if name.startswith("AOTI_EAGER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))


@pytest.fixture
def config(no_variables: None) -> Config:
    """New settings, with nothing assigned."""
    return Config()


def write_file(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("AOTI_EAGER_CONFIG", str(path))
    return path


# --- which value wins ----------------------------------------------------------------------------


def test_each_source_wins_over_the_next(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[Any, str]] = []

    def look() -> None:
        assert config.workers == config.lookup("workers")[0]
        assert config.source("workers") == config.lookup("workers")[1]
        seen.append(config.lookup("workers"))

    look()
    path = write_file(monkeypatch, tmp_path / "settings.toml", "workers = 2")
    config = Config()  # A file is read once.
    look()
    monkeypatch.setenv("AOTI_EAGER_WORKERS", "3")
    look()
    config.workers = 4
    look()
    with config.scope(workers=5):
        look()
        with config.scope(workers=6):
            look()
        look()
    look()
    assert seen == [
        (1, "default"),
        (2, f"config file {path}"),
        (3, "environment variable AOTI_EAGER_WORKERS"),
        (4, "assignment"),
        (5, "scope 1"),
        (6, "scope 2"),
        (5, "scope 1"),
        (4, "assignment"),
    ]


def test_the_defaults_are_documented_ones(config: Config) -> None:
    values = {name: config.lookup(name) for name in SETTINGS}
    assert values == {name: (setting.default, "default") for name, setting in SETTINGS.items()}
    assert config.mode in MODES
    assert config.cpu_target in CPU_TARGETS
    assert config.cache_dir.is_absolute()
    assert config.cache_dir.name == "aoti_eager"
    for name, setting in SETTINGS.items():
        assert setting.variable == f"AOTI_EAGER_{name.upper()}"
        assert setting.doc
        assert setting.parse(setting.default) == setting.default


def test_variables_are_read_at_the_moment_of_the_look_up(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_EAGER_MODE", "off")
    assert config.mode == "off"
    monkeypatch.setenv("AOTI_EAGER_MODE", "cache_only")
    assert config.mode == "cache_only"


def test_a_file_in_the_user_config_directory_is_read(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(platformdirs.user_config_dir("aoti_eager")) / "config.toml"
    assert tmp_path in path.parents
    path.parent.mkdir(parents=True)
    path.write_text('mode = "off"\ncheck = false\nlock_timeout_s = 5\n', encoding="utf-8")
    assert config.lookup("mode") == ("off", f"config file {path}")
    assert config.check is False
    assert config.lock_timeout_s == 5.0
    # An empty variable names no file.
    monkeypatch.setenv("AOTI_EAGER_CONFIG", "")
    assert Config().lookup("mode") == ("off", f"config file {path}")


def test_an_empty_variable_for_the_file_is_none_at_all(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_EAGER_CONFIG", "")
    assert config.lookup("mode") == (SETTINGS["mode"].default, "default")


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("mode", "off", "off"),
        ("cache_dir", "/somewhere", Path("/somewhere")),
        ("cache_dir", Path("/somewhere"), Path("/somewhere")),
        ("cpu_target", "native", "native"),
        ("check", "yes", True),
        ("check", " ON ", True),
        ("check", "0", False),
        ("check", "False", False),
        ("check", 1, True),
        ("workers", "12", 12),
        ("workers", 12, 12),
        ("compile_timeout_s", "1.5", 1.5),
        ("compile_timeout_s", 2, 2.0),
    ],
)
def test_values_are_taken_in_their_usual_spellings(
    config: Config, name: str, given: Any, value: Any
) -> None:
    setattr(config, name, given)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


def test_a_directory_is_made_absolute_when_it_is_set(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config.cache_dir = "relative"
    monkeypatch.chdir("/")
    assert config.cache_dir == tmp_path / "relative"
    config.cache_dir = "~/cache"
    assert config.cache_dir == tmp_path / "home" / "cache"


@pytest.mark.parametrize("text", ["cache", "./cache", "../cache", "a/b"])
def test_a_variable_that_depends_on_the_current_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """A script that goes into a cloned repository would run the code of its cache."""
    for variable in ("AOTI_EAGER_CACHE_DIR", "AOTI_EAGER_CONFIG"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, text)
            with pytest.raises(ConfigError, match=f"{variable}.*wants a path from the root on"):
                Config().validate()
    path = tmp_path / "settings.toml"
    path.write_text(f'cache_dir = "{text}"')
    monkeypatch.setenv("AOTI_EAGER_CONFIG", str(path))
    with pytest.raises(ConfigError, match="config file .*wants a path from the root on"):
        Config().validate()


def test_a_config_file_that_others_can_write_to_is_not_read(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('mode = "off"')
    path.chmod(0o666)
    with monkeypatch.context() as patched:
        patched.setenv("AOTI_EAGER_CONFIG", str(path))
        with pytest.raises(ConfigError, match="others can write to it"):
            config.validate()
    # One that nobody has named is passed over: a script must start.
    monkeypatch.setattr(sys.modules[Config.__module__], "user_config_file", lambda: path)
    with pytest.warns(AotiEagerWarning, match="others can write to it.*is not read"):
        config.validate()
    assert config.lookup("mode") == ("background", "default")


@pytest.mark.parametrize("given", ["~/.cache/aoti_eager", ".cache/aoti_eager", RuntimeError("no")])
def test_without_a_home_there_is_no_directory_and_nothing_raises(
    config: Config, monkeypatch: pytest.MonkeyPatch, given: str | Exception
) -> None:
    """What platformdirs does then depends on its version."""

    def answer(name: str) -> str:
        if isinstance(given, Exception):
            raise given
        return given

    for name in ("user_cache_dir", "user_config_dir"):
        monkeypatch.setattr("platformdirs." + name, answer)
    assert config.cache_dir is None
    config.validate()


WRONG = [
    ("mode", "fast", "wants one of 'background', 'sync', 'cache_only', 'recache', 'off'"),
    ("cpu_target", "avx2", "wants one of 'auto', 'native', 'x86-64-v2', 'x86-64-v3', 'x86-64-v4'"),
    ("mode", None, "wants one of"),
    ("mode", ["sync"], "wants one of"),
    ("cache_dir", "", "wants the path of a directory"),
    ("cache_dir", " ", "wants the path of a directory"),
    ("cache_dir", 5, "wants the path of a directory"),
    ("cache_dir", None, "wants the path of a directory"),
    ("cache_dir", b"/tmp", "wants the path of a directory"),
    ("cache_dir", "~nobody-of-that-name/cache", "wants the path of a directory"),
    ("check", "maybe", "wants true or false"),
    ("check", 2, "wants true or false"),
    ("check", None, "wants true or false"),
    ("gate", [], "wants true or false"),
    ("strict", 1.0, "wants true or false"),
    ("workers", 0, "wants a whole number of at least 1"),
    ("workers", -1, "wants a whole number of at least 1"),
    ("workers", "many", "wants a whole number of at least 1"),
    ("workers", "", "wants a whole number of at least 1"),
    ("workers", 1.0, "wants a whole number of at least 1"),
    ("workers", True, "wants a whole number of at least 1"),
    ("static_cap", None, "wants a whole number of at least 1"),
    ("compile_timeout_s", 0, "wants a number of seconds above 0"),
    ("compile_timeout_s", -1.0, "wants a number of seconds above 0"),
    ("compile_timeout_s", "soon", "wants a number of seconds above 0"),
    ("compile_timeout_s", "nan", "wants a number of seconds above 0"),
    ("compile_timeout_s", math.nan, "wants a number of seconds above 0"),
    ("compile_timeout_s", math.inf, "wants a number of seconds above 0"),
    ("max_size", "5X", "wants bytes, or text such as 500M or 5G, above 0; or 'none' for no limit"),
    ("max_size", "", "wants bytes, or text such as 500M or 5G"),
    ("max_size", 0, "wants bytes, or text such as 500M or 5G, above 0"),
    ("max_size", "-1", "wants bytes, or text such as 500M or 5G"),
    ("max_size", True, "wants bytes, or text such as 500M or 5G"),
    ("max_size", 1.5, "wants bytes, or text such as 500M or 5G"),
    ("max_entries", 0, "wants a whole number of at least 1, or 'none' for no limit"),
    ("max_entries", "many", "wants a whole number of at least 1, or 'none' for no limit"),
    ("linger_s", -1, "wants a number of seconds, or 0"),
    ("linger_s", "soon", "wants a number of seconds, or 0"),
    ("linger_s", True, "wants a number of seconds, or 0"),
    ("linger_s", float("nan"), "wants a number of seconds, or 0"),
    ("lock_timeout_s", 10**400, "wants a number of seconds above 0"),
    ("lock_timeout_s", True, "wants a number of seconds above 0"),
    ("lock_timeout_s", None, "wants a number of seconds above 0"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_a_wrong_value_is_refused_by_name_with_what_is_wanted(
    config: Config, name: str, value: Any, wanted: str
) -> None:
    before = config.lookup(name)
    with pytest.raises(ConfigError) as assigned:
        setattr(config, name, value)
    with pytest.raises(ConfigError) as scoped, config.scope(**{name: value}):
        raise AssertionError("the scope was entered")
    for origin, caught in ((f"config.{name}: ", assigned), (f"config.scope({name}=...): ", scoped)):
        message = str(caught.value)
        assert message.startswith(origin)
        assert f"got {value!r}" in message
        assert wanted in message
        assert isinstance(caught.value, ValueError)
    assert config.lookup(name) == before


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (name, value, wanted)
        for name, value, wanted in WRONG
        if isinstance(value, str) and (name != "check" or value)
    ],
)
def test_a_wrong_variable_is_refused_by_its_own_name(
    config: Config, monkeypatch: pytest.MonkeyPatch, name: str, text: str, wanted: str
) -> None:
    monkeypatch.setenv(SETTINGS[name].variable, text)
    with pytest.raises(ConfigError) as caught:
        getattr(config, name)
    assert str(caught.value).startswith(f"environment variable AOTI_EAGER_{name.upper()}: got ")
    assert wanted in str(caught.value)
    with pytest.raises(ConfigError):
        config.validate()
    setattr(config, name, SETTINGS[name].default)  # What wins need not look at the variable.
    config.validate()


def test_an_unknown_name_is_refused_with_the_known_ones(config: Config) -> None:
    uses = [
        lambda: config.cash_dir,
        lambda: setattr(config, "cash_dir", "/somewhere"),
        lambda: config.scope(cash_dir="/somewhere").__enter__(),
        lambda: config.source("cash_dir"),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="cash_dir: no such setting; the settings are") as e:
            use()
        assert all(name in str(e.value) for name in SETTINGS)
    with pytest.raises(ConfigError):
        config.table_token = 5  # type: ignore[misc]


def test_private_names_are_no_settings(config: Config) -> None:
    assert not hasattr(config, "_anything")
    with pytest.raises(AttributeError):
        config._anything = 1
    assert isinstance(copy.copy(config), Config)
    assert set(SETTINGS) < set(dir(config))


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mode = ", "is not TOML"),
        ('mode = "off"\nmode = "sync"', "is not TOML"),
        ('made = "off"', "'made' is no setting; they are mode, cache_dir"),
        ("[mode]\nname = 1", "wants one of"),
        ('mode = "fast"', "got 'fast'; wants one of"),
        ("workers = 0", "got 0; wants a whole number"),
        ("cache_dir = 3", "got 3; wants the path of a directory"),
    ],
)
def test_a_wrong_file_is_refused_by_its_path(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    path = write_file(monkeypatch, tmp_path / "settings.toml", text)
    with pytest.raises(ConfigError) as caught:
        config.validate()
    assert str(caught.value).startswith(f"config file {path}: ")
    assert message in str(caught.value)


def test_a_file_that_is_no_text_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'mode = "\xff\xfe"')
    monkeypatch.setenv("AOTI_EAGER_CONFIG", str(path))
    with pytest.raises(ConfigError, match="is not TOML"):
        config.validate()


def test_a_named_file_must_be_there(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AOTI_EAGER_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.validate()
    monkeypatch.setenv("AOTI_EAGER_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read: is no regular file"):
        config.validate()


# --- scopes --------------------------------------------------------------------------------------


def test_a_scope_ends_after_an_error_too(config: Config) -> None:
    def leave() -> None:
        with config.scope(mode="off") as inside:
            assert inside is config
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert config.source("mode") == "default"


def test_an_inner_scope_leaves_what_it_does_not_name(config: Config) -> None:
    with config.scope(mode="off", workers=3), config.scope(workers=4):
        assert (config.mode, config.workers) == ("off", 4)


def test_an_assignment_changes_the_scope_that_sets_the_name_and_ends_with_it(
    config: Config,
) -> None:
    config.workers = 2
    with config.scope(workers=3), config.scope(mode="off"):
        config.workers = 4
        config.static_cap = 5
        assert config.lookup("workers") == (4, "scope 1")
        assert config.lookup("static_cap") == (5, "assignment")
    assert (config.workers, config.static_cap) == (2, 5)


def test_scopes_of_two_threads_may_end_in_any_order(config: Config) -> None:
    """A scope is process-wide: equal ones of two threads are two all the same."""
    first, second, third = (config.scope(workers=n) for n in (3, 4, 3))
    for scope in (first, second, third):
        scope.__enter__()
    assert config.workers == 3
    first.__exit__(None, None, None)
    assert config.lookup("workers") == (3, "scope 2")
    third.__exit__(None, None, None)
    assert config.lookup("workers") == (4, "scope 1")
    second.__exit__(None, None, None)
    assert config.lookup("workers") == (1, "default")


def test_every_thread_sees_a_scope(config: Config) -> None:
    seen: list[str] = []
    with config.scope(mode="off"):
        thread = threading.Thread(target=lambda: seen.append(config.mode))
        thread.start()
        thread.join()
    assert seen == ["off"]


def test_observers_hear_of_every_scope_and_assignment(config: Config) -> None:
    heard: list[str] = []
    config.on_change(lambda: heard.append(config.mode))
    with config.scope(mode="off"):
        config.mode = "cache_only"
    with pytest.raises(ConfigError):
        config.mode = "fast"
    assert heard == ["off", "cache_only", SETTINGS["mode"].default]


# --- tables --------------------------------------------------------------------------------------


def test_a_scope_with_another_cache_directory_has_tables_of_its_own(
    config: Config, tmp_path: Path
) -> None:
    outer = config.table_token
    with config.scope(cache_dir=tmp_path):
        inner = config.table_token
        assert inner != outer
        assert config.table_tokens == {outer, inner}
        with config.scope(mode="off"):
            assert config.table_token == inner
    assert config.table_token == outer
    assert config.table_tokens == {outer}


def test_a_second_scope_with_the_same_directory_starts_empty_again(
    config: Config, tmp_path: Path
) -> None:
    tokens = []
    for _ in range(2):
        with config.scope(cache_dir=tmp_path):
            tokens.append(config.table_token)
    assert len({*tokens, config.table_token}) == 3


def test_a_scope_with_the_directory_of_before_keeps_the_tables(
    config: Config, tmp_path: Path
) -> None:
    before = config.table_token
    with config.scope(cache_dir=config.cache_dir):
        assert config.table_token == before
    config.cache_dir = tmp_path
    changed = config.table_token
    assert changed != before
    config.cache_dir = tmp_path
    assert config.table_token == changed


def test_an_assignment_in_a_scope_ends_with_its_tables(config: Config, tmp_path: Path) -> None:
    before = config.table_token
    with config.scope(cache_dir=tmp_path / "a"):
        first = config.table_token
        config.cache_dir = tmp_path / "b"
        assert config.table_token not in (before, first)
        assert config.table_tokens == {before, config.table_token}
    assert config.table_token == before


def test_tables_belong_to_the_directory_in_whatever_order_scopes_end(
    config: Config, tmp_path: Path
) -> None:
    """Kernels of one directory must not be served while another one is set."""
    default = config.table_token
    first, second = (config.scope(cache_dir=tmp_path) for _ in range(2))
    first.__enter__()
    token = config.table_token
    second.__enter__()
    assert config.table_token == token
    first.__exit__(None, None, None)
    assert config.cache_dir == tmp_path
    assert config.table_token == token != default
    assert token in config.table_tokens
    second.__exit__(None, None, None)
    assert config.table_token == default
    assert config.table_tokens == {default}


def test_tables_belong_to_the_directory_and_the_target_in_whatever_order_scopes_end(
    config: Config, tmp_path: Path
) -> None:
    """Kernels of one instruction set must not be served while another one is set."""
    default = config.table_token
    directory, target = config.scope(cache_dir=tmp_path), config.scope(cpu_target="native")
    directory.__enter__()
    other_directory = config.table_token
    target.__enter__()
    both = config.table_token
    directory.__exit__(None, None, None)
    other_target = config.table_token
    assert len({default, other_directory, both, other_target}) == 4
    assert config.table_tokens == {default, other_target}
    target.__exit__(None, None, None)
    assert config.table_token == default
    assert config.table_tokens == {default}


def test_a_value_that_this_machine_cannot_do_is_refused_wherever_it_comes_from(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(value: str) -> None:
        if value == "x86-64-v4":
            raise ValueError("this CPU lacks avx512f")

    monkeypatch.setitem(_checks, "cpu_target", check)
    with pytest.raises(ConfigError, match="cpu_target: got 'x86-64-v4'; this CPU lacks avx512f"):
        config.cpu_target = "x86-64-v4"
    scope = config.scope(cpu_target="x86-64-v4")
    with pytest.raises(ConfigError, match="this CPU lacks avx512f"):
        scope.__enter__()
    assert config.cpu_target == "auto"
    monkeypatch.setenv("AOTI_EAGER_CPU_TARGET", "x86-64-v4")
    with pytest.raises(ConfigError, match="AOTI_EAGER_CPU_TARGET: got 'x86-64-v4'; this CPU lacks"):
        config.validate()


def test_the_package_has_one_config(cache_dir: Path) -> None:
    assert isinstance(aoti_eager.config, Config)
    assert aoti_eager.config.cache_dir == cache_dir
    assert aoti_eager.config.source("cache_dir") == "scope 1"


def test_a_forked_child_reads_settings_and_warns_whatever_threads_held() -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with aoti_eager.config._lock, warn_once._lock:
            held.set()
            go.wait(60.0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60.0)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        _ = aoti_eager.config.mode
        warn_once.forget_warnings()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    thread.join()


def test_what_hides_a_wrong_variable_hides_it_for_as_long_as_it_is_there(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.validate()
    monkeypatch.setenv("AOTI_EAGER_WORKERS", "none")
    with config.scope(workers=1):
        config.validate()
    with pytest.raises(ConfigError, match="AOTI_EAGER_WORKERS"):
        config.validate()
    config.workers = 1
    config.validate()


def test_a_check_that_is_added_later_is_asked(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[Config.__module__]
    monkeypatch.setattr(module, "_checks", {})
    monkeypatch.setenv("AOTI_EAGER_WORKERS", "3")
    config.validate()

    def check(value: int) -> None:
        raise ValueError("not here")

    module.add_check("workers", check)
    with pytest.raises(ConfigError, match="not here"):
        config.validate()
