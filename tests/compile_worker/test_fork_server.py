"""A server that the worker forks from itself: its descriptors, its signals, its end."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from ..support.processes import printed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks servers")

PROGRAM = """
import json
import os
import select
import signal
import sys
import threading
import types

from aoti_eager._compile_worker import fork_server

signal.signal(signal.SIGTERM, lambda *_: None)  # As the worker does.


def handler(request):
    if "leave" in request:
        os._exit(3)
    return {
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
        "server": os.getppid(),
        "group": os.getpgrp() == int(request["group"]),
        "terminates": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
    }


echo = types.ModuleType(fork_server.__name__.rpartition(".")[0] + ".echo")
echo.serve = lambda: fork_server.serve(handler)
sys.modules[echo.__name__] = echo
request = {"timeout_s": 60.0, "group": os.getpgrp()}
# What ends with the worker: its watcher and the locks of its directories wait for that.
mine, held = os.pipe()
server = fork_server.ForkServer("echo")
server.fork()
threading.Thread(target=lambda: None).start()
found = {"answer": server.run(request), "forked": server.start().pid}
os.close(held)
found["ends with the worker"] = bool(select.select([mine], [], [], 60)[0])
found["after a child's end"] = [server.run({**request, "leave": 1}), server.run(request)]
os.kill(server.start().pid, signal.SIGTERM)
found["after the server's end"] = server.run(request)
server.close()
lonely = fork_server.ForkServer("echo", {"LD_PRELOAD": ""})
lonely.fork()
found["with an environment"] = lonely._process is not None
refused = fork_server.ForkServer("echo")
os.fork = lambda: (_ for _ in ()).throw(BlockingIOError("no more processes"))
before = sorted(os.listdir("/proc/self/fd"))
refused.fork()
found["where the system refuses"] = refused._process is not None
found["descriptors left"] = len(os.listdir("/proc/self/fd")) - len(before)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What a process sees of the servers that it forks."""
    return printed(PROGRAM)


def test_a_forked_server_answers_as_a_program_does(found: dict[str, Any]) -> None:
    answer = found["answer"]
    assert answer["server"] == found["forked"]
    assert answer["group"], "the worker's end kills its group"
    assert answer["terminates"], "the worker's own handler would keep the server"


def test_a_forked_server_holds_nothing_of_the_worker(found: dict[str, Any]) -> None:
    assert found["ends with the worker"]


def test_a_child_that_dies_costs_no_server_and_a_dead_server_no_worker(
    found: dict[str, Any],
) -> None:
    died, after = found["after a child's end"]
    assert died["reason"] == "crashed"
    assert after["server"] == found["forked"]
    assert found["after the server's end"]["reason"] == "crashed"


def test_no_server_is_forked_where_the_system_refuses_or_an_environment_is_asked_for(
    found: dict[str, Any],
) -> None:
    """The server is started as a program of its own at its first request."""
    assert not found["with an environment"]
    assert not found["where the system refuses"]
    assert found["descriptors left"] == 0
