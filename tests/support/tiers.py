"""Which tests and cases the fast and the full tier run."""

from __future__ import annotations

import compileall
import signal
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

import aoti_eager


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests marked ``both_paths`` on Python's hit path and on C++'s.

    Costly ones, which start processes and compilers, run on C++'s alone without ``--full``.
    """
    marker = metafunc.definition.get_closest_marker("both_paths")
    if marker is not None:
        both = metafunc.config.getoption("--full") or not marker.kwargs.get("costly", False)
        metafunc.parametrize(
            "hit_path", ["python", "native"] if both else ["native"], indirect=True
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the full tier."""
    parser.addoption(
        "--full",
        action="store_true",
        help="all tests with all cases, costly ones on both hit paths",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the full tier runs: tests marked ``full``, and most cases of a ``share``.

    Who names files or tests has all that is marked ``full``. What the fast tier has depends on
    nothing but the tests' names.
    """
    if config.getoption("--full"):
        return
    shares: dict[object, list[pytest.Item]] = {}
    left_out = set()
    for item in items:
        if item.get_closest_marker("full") is not None and config.option.whole_suite:
            left_out.add(item)
        elif item.get_closest_marker("share") is not None:
            shares.setdefault(getattr(item, "function", item), []).append(item)
    for cases in shares.values():
        cases.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for number, item in enumerate(cases):
            marker = item.get_closest_marker("share")
            assert marker is not None
            if number % marker.kwargs["of"]:
                left_out.add(item)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    """Find out whether the whole suite runs, or what somebody has named; compile the package."""
    # Where pytest runs in the background of a shell, it ignores the interrupts that tests send to
    # their children, and they inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput"):
        config.option.whole_suite = config.workerinput["whole_suite"]
        return
    # As on a user's machine, also where PYTHONDONTWRITEBYTECODE is set: else each of some hundred
    # children compiles the package's modules, for a third of a second.
    sys.dont_write_bytecode = False
    compileall.compile_dir(Path(aoti_eager.__file__).parent, quiet=2)
    chosen = ("keyword", "markexpr", "lf", "failedfirst")
    config.option.whole_suite = config.args_source is not pytest.Config.ArgsSource.ARGS and not any(
        getattr(config.option, name, None) for name in chosen
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Have a worker of xdist run the same tier."""
    node.workerinput["whole_suite"] = node.config.option.whole_suite


def pytest_report_header(config: pytest.Config) -> str:
    """Say which tier runs."""
    return "the full tier" if config.getoption("--full") else "the fast tier (the other: --full)"
