"""One remote place: its requests, each bounded in time, and what they have come to.

fsspec speaks to the place, with the credentials and settings that the user has given to fsspec.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from .._base.tier_names import TierName
from .._base.warn_once import log, warn_once
from ..errors import RemoteTierError
from .breaker import Breaker
from .packed import OBJECT_LIMIT

T = TypeVar("T")

# The most seconds for one request, and for each further MiB of a request that sends bytes.
TIMEOUT_S = 2.0
# The most further seconds for the first request of a process: clients read megabytes of
# descriptions of their service before they connect, and a busy machine takes long for that.
FIRST_S = 8.0
# Objects are read in pieces of so many bytes, each a request.
_PIECE = 1 << 20


class RemoteStore:
    """The objects behind one URL.

    Args:
        name: The tier.
        timeout_s: The most seconds for one request.
        clock: Gives seconds.

    Attributes:
        name: The tier.
        breaker: Whether requests are made at present.
        counts: What requests have come to: ``requests``, ``hits``, ``misses``, ``given``,
            ``refused`` (objects that nothing is taken from), ``errors``, ``bytes``.
        last_error: The last error in words; empty if there was none.
    """

    def __init__(
        self,
        name: TierName,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.breaker = Breaker(clock)
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._timeout_s = timeout_s
        self._opened: tuple[Any, str] | None = None
        self._is_imported = self._has_answered = False
        self._hung: threading.Thread | None = None

    def objects(self, path: str) -> dict[str, int]:
        """Return the objects below a directory: their names relative to the URL, and their bytes.

        Args:
            path: The directory, relative to the URL.

        Raises:
            RemoteTierError: The place gives no answer.
        """

        def listed() -> dict[str, int]:
            files, root = self._files()
            found = files.find(f"{root}/{path}", detail=True)
            return {
                name[len(root) + 1 :]: int(about.get("size") or 0) for name, about in found.items()
            }

        return self._request(f"{path}: cannot be listed", listed, {})

    def read(self, path: str, size: int) -> bytes | None:
        """Return an object's bytes; ``None`` if it is gone, or has other than ``size`` bytes.

        Args:
            path: The object, relative to the URL.
            size: Its bytes, as ``objects`` gives them.

        Raises:
            RemoteTierError: The place gives no answer, or the object is larger than an entry is.
        """
        if not 0 < size <= OBJECT_LIMIT:
            self.refused("size", f"{path}: has {size} bytes; an object has at most {OBJECT_LIMIT}")
            return None
        pieces = []
        for start in range(0, size, _PIECE):
            end = min(start + _PIECE, size)
            piece = self._request(
                f"{path}: cannot be read",
                lambda start=start, end=end: self._piece(path, start, end),  # type: ignore[misc]
                None,
            )
            if piece is None or len(piece) != end - start:
                return None  # Written at this moment, or removed.
            pieces.append(piece)
        self.counts["bytes"] += size
        return b"".join(pieces)

    def write(self, path: str, content: bytes) -> None:
        """Write an object; readers see all of it or none.

        Raises:
            RemoteTierError: The object was not written, as far as is known.
        """

        def written() -> bool:
            files, root = self._files()
            whole = f"{root}/{path}"
            if "file" in _protocols(files):  # Elsewhere an object appears when it is whole.
                part = f"{whole}.{os.urandom(4).hex()}.part"
                files.pipe_file(part, content)
                files.mv(part, whole)
            else:
                files.pipe_file(whole, content)
            return True

        longer_s = self._timeout_s * (len(content) >> 20)
        self._request(f"{path}: cannot be written", written, False, longer_s)
        self.counts["given"] += 1
        self.counts["bytes"] += len(content)

    def refused(self, cause: str, message: str) -> None:
        """Count an object that nothing is taken from, and warn of the first of its kind."""
        self.counts["refused"] += 1
        self.last_error = message
        warn_once(
            f"remote:{self.name.text}:{cause}", f"tier {self.name.text}: {message}; it is not used"
        )

    def _piece(self, path: str, start: int, end: int) -> bytes:
        files, root = self._files()
        content: bytes = files.cat_file(f"{root}/{path}", start=start, end=end)
        return content

    def _files(self) -> tuple[Any, str]:
        """Return fsspec's file system, and the place in it; in a request, as this may take long."""
        if self._opened is None:
            import fsspec

            protocol = self.name.place.partition("://")[0]
            # Listings that fsspec remembers would hide what others write.
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if protocol == "file":
                options["auto_mkdir"] = True
            if protocol in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get(
                protocol, {}
            ):
                options["config_kwargs"] = {
                    "connect_timeout": self._timeout_s,
                    "read_timeout": self._timeout_s,
                    "retries": {"max_attempts": 1},
                }
            files, root = fsspec.core.url_to_fs(self.name.place, **options)
            self._opened = files, root.rstrip("/")
        return self._opened

    def _request(self, what: str, call: Callable[[], T], missing: T, longer_s: float = 0.0) -> T:
        """Return what ``call`` returns; ``missing`` if there is no such object.

        Raises:
            RemoteTierError: No answer in time, an error, or no request is made at present.
        """
        if self._hung is not None and self._hung.is_alive():
            raise RemoteTierError(f"{what}: an earlier request has not ended yet")
        if not self.breaker.allows():
            raise RemoteTierError(f"{what}: requests rest after {self.last_error}")
        self._import(what)
        self.counts["requests"] += 1
        outcome: list[tuple[T | None, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((call(), None))
            except BaseException as error:  # noqa: BLE001 - the caller's
                outcome.append((None, error))

        # A thread for each request: a library may wait for a server for longer than it says.
        thread = threading.Thread(target=run, name="aoti_eager-request", daemon=True)
        thread.start()
        timeout_s = self._timeout_s + longer_s + (0.0 if self._has_answered else FIRST_S)
        thread.join(timeout_s)
        if not outcome:
            self._hung = thread
            raise self._failed(what, f"no answer within {timeout_s:g} s", "timeout")
        self._has_answered = True
        result, error = outcome[0]
        if isinstance(error, FileNotFoundError):
            result, error = missing, None
        if error is not None:
            text = " ".join(str(error).split())[:300]
            raise self._failed(what, f"{type(error).__name__}: {text}", type(error).__name__)
        self.breaker.succeeded()
        return result  # type: ignore[return-value]

    def _import(self, what: str) -> None:
        """Import what speaks to the place, once; this takes seconds, and is no request.

        Raises:
            RemoteTierError: There is no such package, or no such protocol.
        """
        if self._is_imported:
            return
        try:
            import fsspec

            fsspec.get_filesystem_class(self.name.place.partition("://")[0])
        except Exception as error:
            raise self._failed(what, f"{error}", "import") from error
        self._is_imported = True

    def _failed(self, what: str, why: str, cause: str) -> RemoteTierError:
        self.breaker.failed()
        self.counts["errors"] += 1
        self.last_error = f"{what}: {why}"
        message = f"tier {self.name.text}: {self.last_error}"
        warn_once(
            f"remote:{self.name.text}",
            f"{message}; the tier is passed over, and asked again now and then",
        )
        log.info("%s (%s)", message, cause)
        return RemoteTierError(self.last_error)


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
