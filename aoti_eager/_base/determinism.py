"""Decides whether an error says something about the compiled code or only about the moment. Pure.

A machine without enough memory, descriptors or disk makes every compile fail, and the next process
may have enough. Such a failure must not be remembered as the key's own fault. In doubt, an error
counts as the moment's: a compile that is tried again costs seconds, a kernel that is never tried
again is lost.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator

# Signals caused by wrong code. A scheduler, a person or the system sends every other signal.
FATAL_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"})

# Errors for what an operating system refuses at one time and grants at another. Errors that a
# computation can cause by itself are left out: "Invalid argument", "Numerical result out of range".
_ERRNOS = (
    *(errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT),
    *(errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM),
    *(errno.ENOLCK, errno.ENOSYS, errno.EINTR, errno.EBUSY, errno.ETXTBSY, errno.EPIPE),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV),
    *(errno.EXDEV, errno.EDEADLK, errno.EOPNOTSUPP, errno.ECHILD, errno.ENOTCONN, errno.EHOSTDOWN),
)

# The same causes as Python's exceptions, C++ and the compilers spell them; case is ignored.
_WORDS = (
    r"\[Errno \d+\]",
    r"\b(?:OS|Memory|IO|Environment|Import|ModuleNotFound|Permission|BlockingIO|BrokenPipe)Error\b",
    r"\b(?:ChildProcess|Connection\w*|Interrupted|ProcessLookup|Timeout|CalledProcess)Error\b",
    r"\b(?:FileNotFound|FileExists|IsADirectory|NotADirectory|Subprocess)Error\b",
    r"\b(?:TimeoutExpired|KeyboardInterrupt|SystemExit|BrokenProcessPool|BrokenExecutor)\b",
    r"\bbad_alloc\b",
    r"\bout of memory\b",
    r"\bmemory exhausted\b",
    r"\bnot enough memory\b",
    r"\b(?:can't|cannot|could not|couldn't|can not|unable to|failed to) allocate\b",
    r"\bmemory allocation (?:of .{0,40})?failed\b",
    r"\b(?:can't|cannot|could not|unable to|failed to) (?:start|create) (?:a )?(?:new )?thread",
    r"\bthread creation failed\b",
    r"\bpthread_create\b",
    r"\bfailed to map segment\b",
    r"\bcannot open shared object file\b",
    r"\bcannot create temporary file\b",
    # A lock library on a file system without locks raises NotImplementedError and not OSError.
    r"\bnot (?:appear to )?support flock\b|\bSoftFileLock\b",
    # g++'s message when one of its own parts was killed.
    r"\b(?:killed|terminated|bus error|hangup|interrupt|exceeded) (?:signal terminated|\(program)",
)

# glibc's messages in English, and the messages of this process's C library.
_TEXTS = {
    *("Resource temporarily unavailable", "Too many open files", "Cannot allocate memory"),
    *("No space left on device", "Disk quota exceeded", "File too large", "Input/output error"),
    *("Read-only file system", "Stale file handle", "No such file or directory"),
    *("Permission denied", "Operation not permitted", "No locks available"),
    *("Function not implemented", "Interrupted system call", "Device or resource busy"),
    *(os.strerror(number) for number in _ERRNOS),
}

_PASSING = "|".join([*_WORDS, *(rf"\b{re.escape(text)}\b" for text in sorted(_TEXTS))])

# Exceptions that the system or somebody else causes, and not the computation.
_KINDS = (OSError, MemoryError, ImportError, EOFError, subprocess.SubprocessError)

# Exceptions that a compiler written in Python raises where it cannot do something: its own, by name
# (importing them takes seconds), and Python's for wrong code inside of the compiler.
_COMPILERS_OWN = frozenset(
    """
    InductorError BackendCompilerFailed LoweringException SubgraphLoweringException
    MissingOperatorWithDecomp MissingOperatorWithoutDecomp CppWrapperCodegenError
    Unsupported InternalTorchDynamoError GuardOnDataDependentSymNode DataDependentOutputException
    DynamicOutputShapeException UnsupportedOperatorException UnsupportedFakeTensorException
    PropagateUnbackedSymInts UserError ConstraintViolationError TorchRuntimeError NotThinError
    AssertionError AttributeError IndexError KeyError NameError NotImplementedError
    RecursionError RuntimeError TypeError UnboundLocalError ValueError ZeroDivisionError
    OverflowError
    """.split()  # noqa: SIM905 - a list of names to read, not to parse
)


def is_passing_text(text: str) -> bool:
    """Return whether a message, a log or a process's error output names a fault of the system.

    Such a fault is a lack of memory, descriptors, threads, disk or permission, in the words of
    Python, C++, the C library or a compiler.
    """
    return re.search(_PASSING, text, re.IGNORECASE) is not None


def is_deterministic(error: BaseException) -> bool:
    """Return whether the same call would raise ``error`` in any process on any day.

    The answer is no if ``error``, or an error that it was raised from or during, is about the
    operating system, memory, an import or another process, by its type or by its message.
    """
    return not any(
        not isinstance(one, Exception) or isinstance(one, _KINDS) or is_passing_text(str(one))
        for one in error_chain(error)
    )


def is_compilers_own(error: BaseException) -> bool:
    """Return whether ``error`` is Inductor's own error for a graph that it cannot compile.

    Every error of the chain must be of a known kind; the failure of a C++ compiler is of none.
    """
    return is_deterministic(error) and all(
        type(one).__name__ in _COMPILERS_OWN for one in error_chain(error)
    )


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Give an exception and all exceptions that it was raised from or during, each once."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        # Inductor's exception holds the one that it wraps.
        inner = getattr(one, "inner_exception", None)
        left += [one.__context__, one.__cause__]
        left += [inner] if isinstance(inner, BaseException) else []
        left += getattr(one, "exceptions", ())  # The members of an exception group.
