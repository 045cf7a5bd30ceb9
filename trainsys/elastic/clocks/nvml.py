"""Clocks of one GPU by NVIDIA's management library: locked graphics clocks (nvidia-smi --lock-gpu-clocks)."""

from __future__ import annotations

import importlib
from typing import Any

from trainsys.planner.clocks import Clock


class Nvml:
    """One GPU.

    Args:
        library: ``pynvml``, or what has the same functions.

    Raises:
        ValueError: the driver does not answer or does not allow it.
    """

    slowdown = 1.0

    def __init__(self, library: Any, device: int) -> None:
        self._library = library
        try:
            library.nvmlInit()
            self._handle = library.nvmlDeviceGetHandleByIndex(device)
            memory = library.nvmlDeviceGetMaxClockInfo(self._handle, library.NVML_CLOCK_MEM)
            clocks = library.nvmlDeviceGetSupportedGraphicsClocks(self._handle, memory)
            top = library.nvmlDeviceGetMaxClockInfo(self._handle, library.NVML_CLOCK_GRAPHICS)
            self._nominal_mhz = int(
                library.nvmlDeviceGetDefaultApplicationsClock(self._handle, library.NVML_CLOCK_GRAPHICS) or top
            )
            library.nvmlDeviceResetGpuLockedClocks(self._handle)  # the same permission as to lock them
        except library.NVMLError as error:
            raise ValueError(f"elastic.clocks=nvml: {error} (GPU {device}); set elastic.clocks=none") from None
        self.cap = Clock(min(clocks) / self._nominal_mhz, max(1.0, top / self._nominal_mhz))

    def set(self, clock: float) -> None:
        """Lock the graphics clock at `clock` times the nominal one."""
        mhz = round(clock * self._nominal_mhz)
        self._library.nvmlDeviceSetGpuLockedClocks(self._handle, mhz, mhz)

    def reset(self) -> None:
        """Whatever the driver chooses."""
        self._library.nvmlDeviceResetGpuLockedClocks(self._handle)


def open_clock(device: int) -> Nvml:
    """Of one GPU. Raises ValueError."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise ValueError(
            "elastic.clocks=nvml needs pynvml (nvidia-ml-py); install it, or set elastic.clocks=none"
        ) from None
    return Nvml(library, device)
