"""The exception tree: everything that aoti_eager raises or warns with, and nothing else.

Expected absence is ``None``, never an exception. Each class also derives from the builtin exception
that a caller would have caught anyway.
"""

from __future__ import annotations

from pathlib import Path


class AotiEagerError(Exception):
    """Base of every exception of this package."""


class AotiEagerWarning(UserWarning):
    """Something went wrong and originals run instead; warned once per cause and process."""


class ConfigError(AotiEagerError, ValueError):
    """There is no setting of that name, or the setting does not take the value."""


class UnsupportedTorchError(AotiEagerError, AttributeError):
    """A name of the package cannot be had with this torch, which lacks what the name needs.

    As for any missing attribute, ``hasattr`` is false.
    """


class RegistrationError(AotiEagerError, RuntimeError):
    """An op cannot be registered at all, or not in this way."""


class UnknownOpError(RegistrationError, LookupError):
    """No op has the given name.

    Attributes:
        name: The name that was asked for.
        suggestions: Similar names of registered ops, best first.
    """

    def __init__(self, name: str, suggestions: tuple[str, ...]) -> None:
        hint = f"; did you mean {', '.join(suggestions)}?" if suggestions else ""
        super().__init__(f"{name}: no such op is registered with PyTorch{hint}")
        self.name = name
        self.suggestions = suggestions


class CompositeImplicitOpError(RegistrationError):
    """The op gets its gradients by decomposition; a backend kernel would break the gradients."""


class CustomOpError(RegistrationError, ValueError):
    """A function cannot be made an operator under that name."""


class CustomOpResultError(AotiEagerError, RuntimeError, TypeError):
    """The function behind an operator has returned something that an operator cannot return."""


class FuseError(AotiEagerError, TypeError):
    """``fuse`` was given something that is no module and no function, or matched nothing."""


class RegionStoppedError(AotiEagerError, RuntimeError):
    """A region of ``fuse(..., strict=True)`` cannot be served.

    Attributes:
        reason: One of the reasons in docs/regions.md, or a decline reason.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CallTextError(AotiEagerError, ValueError):
    """A call on the command line has an argument that is none, or that the op does not take."""


class RemoteTierError(AotiEagerError, OSError):
    """A remote tier gave no answer, or an answer that is an error."""


class BundleError(AotiEagerError, ValueError):
    """A file is no bundle, is damaged or past a limit, or no bundle can be made."""


class UntrustedBundleError(BundleError):
    """A bundle was made by nobody whom this user trusts."""


class SigningError(AotiEagerError, RuntimeError):
    """A key cannot be made or used, or the package ``cryptography`` is missing."""


class OriginalKernelError(AotiEagerError, RuntimeError):
    """The kernel that was registered before ours is gone, so a call cannot reach it."""


class UnsupportedArgumentError(AotiEagerError, TypeError):
    """An argument has a type that no key can hold; the call declines.

    Attributes:
        reason: The decline reason under which the call is counted.
    """

    def __init__(self, message: str, *, reason: str = "unsupported_argument_type") -> None:
        super().__init__(message)
        self.reason = reason


class UnsupportedFunctionError(AotiEagerError, TypeError):
    """A function of the user's uses something that no key can hold; calls of its op decline."""


class TapeError(AotiEagerError, ValueError):
    """A document is no tape, or a call cannot be written on one; the message says where."""


class CompileError(AotiEagerError, RuntimeError):
    """No usable kernel library came out of a compile.

    Attributes:
        reason: The decline reason, one of docs/declines.md.
        log: The compiler's output, possibly empty.
        remember: Whether the next process would fail in the same way, so that the store keeps the
            failure. False for failures that the operating system, a signal, a lock or a time-out
            caused. Failures with some reasons are never kept (docs/declines.md).
    """

    def __init__(self, reason: str, message: str, *, log: str = "", remember: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.log = log
        self.remember = remember


class RunnerError(AotiEagerError, RuntimeError):
    """A kernel library cannot be loaded, or its run failed."""


class LibraryLoadError(RunnerError, OSError):
    """A file cannot be loaded as a kernel library.

    Attributes:
        path: The file.
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = str(path)


class MissingSymbolError(LibraryLoadError):
    """A shared object lacks functions that every kernel library has.

    Attributes:
        symbols: Their names.
    """

    def __init__(self, path: object, symbols: tuple[str, ...], problem: str) -> None:
        super().__init__(path, problem)
        self.symbols = symbols


class InputError(RunnerError, ValueError):
    """The inputs of a run do not fit the inputs that the library was compiled for; nothing ran."""


class InputTypeError(InputError, TypeError):
    """An input of a run is no tensor."""


class LibraryRunError(RunnerError):
    """A kernel library reported an error.

    Attributes:
        library_message: The library's own message.
    """

    def __init__(self, message: str, library_message: str) -> None:
        super().__init__(message)
        self.library_message = library_message


class ConstantError(RunnerError, ValueError):
    """A constant does not fit the library: its dtype, shape, device or state is wrong.

    Attributes:
        names: The constants.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class UnknownConstantError(ConstantError, LookupError):
    """The library has no constant of the given name."""


class MissingConstantsError(ConstantError, LookupError):
    """Constants that the library needs were not given."""


class BackendRegistrationError(RegistrationError):
    """A device's runner or compile backend cannot be registered."""


class StoreError(AotiEagerError, OSError):
    """The store cannot be read or written."""


class StorePermissionError(StoreError, PermissionError):
    """The store's directory belongs to someone else, or others can write to it."""


class EntryDamagedError(StoreError):
    """An entry's files are not what was published: garbled, truncated, or missing a part."""


class CacheFormatError(StoreError):
    """An entry was written by a newer format than this version reads."""


class LockTimeoutError(StoreError, TimeoutError):
    """Another process held a key's lock for longer than ``lock_timeout_s`` seconds."""


class WorkloadError(AotiEagerError, ValueError):
    """A file is no workload, or a line of it is wrong."""


class OutputFileError(AotiEagerError, OSError):
    """A file that was asked for cannot be written."""


class NativePathError(AotiEagerError, RuntimeError):
    """The C++ hit path cannot be built, loaded or registered; the Python path serves instead."""


class UntrustedFileError(AotiEagerError, PermissionError):
    """A file or directory is not used: others could have written it, or it is of the wrong kind.

    Attributes:
        path: The file.
        problem: What is wrong with the file, in words.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem
