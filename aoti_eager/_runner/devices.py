"""Devices for runners: resolve the index, make a device current, find its stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import RunnerError

# The address of the driver's stream; ``None`` on CPU.
Stream = int | None

# Device types that ``ModelContainerRunner`` runs; other types need a factory (``register_runner``).
DEVICE_TYPES = frozenset({"cpu", "cuda", "xpu"})


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make ``device`` current during a block, then restore the device that was current before.

    A container sets the current device when it is made, and does not restore it.
    """
    if device.type == "cpu":
        yield
    else:
        with torch.get_device_module(device).device(device.index):
            yield


def synchronize(device: torch.device) -> None:
    """Wait for the kernels that were launched on ``device``; on CPU, none are running."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return ``device`` with an index where its type has several.

    Raises:
        ValueError: ``device`` is no device that this runner supports, or none that is here.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; 'cpu', 'cuda:0' or 'xpu' are wanted") from error
    if found.type not in DEVICE_TYPES:
        raise ValueError(
            f"device is {str(found)!r}; ModelContainerRunner runs on "
            f"{', '.join(sorted(DEVICE_TYPES))}, other devices' libraries are loaded by what "
            "register_runner was given (load_runner)"
        )
    if found.type == "cpu":
        return torch.device("cpu")
    module = torch.get_device_module(found)
    if not module.is_available():
        raise ValueError(f"device is {str(found)!r}; no {found.type} device is available here")
    index = module.current_device() if found.index is None else found.index
    if index >= module.device_count():
        raise ValueError(f"device is {str(found)!r}; there are {module.device_count()} here")
    return torch.device(found.type, index)


def stream_address(name: str, device: torch.device, stream: Any) -> Stream:
    """Return the driver's address of ``stream``; for ``None``, of the device's current stream.

    Raises:
        RunnerError: ``stream`` is no stream of this device; the CPU has no streams. ``name`` is
            for the message.
    """
    if device.type == "cpu":
        if stream is not None:
            raise RunnerError(f"{name}: a run on cpu has no stream; got {stream!r}")
        return None
    if stream is None:
        stream = torch.get_device_module(device).current_stream(device)
    if isinstance(stream, int):
        return stream
    for attribute in ("cuda_stream", "sycl_queue"):
        address = getattr(stream, attribute, None)
        if address is not None:
            if stream.device != device:
                raise RunnerError(
                    f"{name}: the stream is one of {stream.device}, and the runner is on {device}"
                )
            return int(address)
    raise RunnerError(
        f"{name}: stream is {type(stream).__name__}; a torch.cuda.Stream, a "
        "torch.xpu.Stream or an address is wanted"
    )
