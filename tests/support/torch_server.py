"""A Python that has imported torch and nothing of ours, and forks a child for each request.

Run by path, by ``forked_python``. What a request asks for is run after everything else of this
file, by the interpreter's own main program: so a child ends as a process of its own does, with its
``atexit`` handlers, its threads waited for, its exit status and its traceback.

Source: the idea is multiprocessing's ``forkserver``.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import os
import runpy
import select
import socket
import sys
import types
import warnings
from typing import Any

FILTERS = warnings.filters[:]

import torch  # noqa: E402, F401 - all that a child is spared

Request = dict[str, Any]


def serve(requests: socket.socket) -> Request:
    """Fork a child for each request until the client is gone; return the request, in the child.

    With a request come the file that has it, a pipe for the child's number and its end, and the
    child's standard files.
    """
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # by descriptor: the process, and its pipe
    while True:
        for ready, _ in poll.poll():
            if ready != requests.fileno():
                child, pipe = children.pop(ready)
                _, status = os.waitpid(child, 0)
                _tell(pipe, status)
                poll.unregister(ready)
                os.close(ready)
                os.close(pipe)
                continue
            message, files, _, _ = socket.recv_fds(requests, 1, 5)
            if not message:
                os._exit(0)
            request, pipe, *standard = files
            with warnings.catch_warnings():
                # Of Python 3.12, about OpenBLAS's threads, which know of forks.
                warnings.simplefilter("ignore")
                child = os.fork()
            if child == 0:
                with open(request, encoding="utf-8") as file:
                    wanted: Request = json.load(file)
                for number, file_ in enumerate(standard):
                    os.dup2(file_, number)
                requests.detach()
                # All but the standard ones, as subprocess does.
                os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
                return wanted
            _tell(pipe, child)
            for file_ in (request, *standard):
                os.close(file_)
            watched = os.pidfd_open(child)
            children[watched] = child, pipe
            poll.register(watched, select.POLLIN)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # Nobody waits for it any more.
        os.write(pipe, b"%d\n" % number)


def become(request: Request) -> None:
    """Make this process what the request says: session, variables, directory, arguments."""
    if request["start_new_session"]:
        os.setsid()
    for name in os.environ.keys() - request["env"].keys():
        del os.environ[name]
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    sys.orig_argv[:] = request["command"]
    sys.argv[:] = request["argv"]
    kind, what = request["main"]
    places = {"code": "", "module": os.getcwd(), "script": os.path.dirname(os.path.realpath(what))}
    sys.path[0] = places[kind]
    # Those of ``-W`` come before Python's own, and after those that torch puts before all.
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    torchs = filters[: len(filters) - len(FILTERS)]
    sys.warnoptions[:] = request["warnings"]
    filters[:] = FILTERS
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    filters[:0] = torchs
    warnings._filters_mutated()  # type: ignore[attr-defined]
    if request["remember"] is not None:
        sys.meta_path.insert(0, _Remembering(*request["remember"]))


class _Remembering:
    """Has the package's compile service copy what the run has compiled, once it is imported."""

    _MODULE = "aoti_eager._compile_service.worker_pool"

    def __init__(self, source: str, directory: str) -> None:
        self._source = source
        self._directory = directory

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find that one module, and have more done once it is loaded."""
        if name != self._MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.meta_path.remove(self)
        load = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            load(module)
            runpy.run_path(self._source)["remember_here"](module, self._directory)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def run(request: Request) -> None:
    """Run a request's code, script or module as ``__main__``."""
    kind, what = request["main"]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if kind == "module":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]
        return
    main.__dict__["__builtins__"] = __builtins__
    name, text = "<string>", what
    if kind == "script":
        name = main.__file__ = os.path.abspath(what)
        with open(what, "rb") as file:
            text = file.read()
    exec(compile(text, name, "exec"), main.__dict__)  # noqa: S102 - the test's own


if __name__ == "__main__":
    server = socket.socket(fileno=int(sys.argv[1]))
    wanted = serve(server)
    become(wanted)
    run(wanted)
