"""Clocks of the cores that this process may run on, by Linux's cpufreq files (kernel, admin-guide/pm/cpufreq)."""

from __future__ import annotations

import os
from pathlib import Path

from trainsys.planner.clocks import Clock

SYSFS = Path("/sys/devices/system/cpu")


class CpuFreq:
    """Upper bounds of the cores' frequencies.

    Args:
        folders: ``cpufreq`` folder of each core.

    Raises:
        ValueError: a file is missing or may not be written.
    """

    slowdown = 1.0

    def __init__(self, folders: list[Path]) -> None:
        self._files = [folder / "scaling_max_freq" for folder in folders]
        try:
            first = folders[0]
            low, high = (int((first / f"cpuinfo_{which}_freq").read_text()) for which in ("min", "max"))
            base = first / "base_frequency"
            self._nominal_khz = int(base.read_text()) if base.exists() else high
            self._before = [file.read_text() for file in self._files]
        except (OSError, IndexError, ValueError) as error:
            raise ValueError(
                f"elastic.clocks=cpufreq needs {SYSFS}/cpu*/cpufreq ({error}); set elastic.clocks=none"
            ) from None
        if denied := [file for file in self._files if not os.access(file, os.W_OK)]:
            raise ValueError(
                f"elastic.clocks=cpufreq may not write {denied[0]}; run as root, or set elastic.clocks=none"
            )
        self.cap = Clock(low / self._nominal_khz, max(1.0, high / self._nominal_khz))

    def set(self, clock: float) -> None:
        """Let the cores run at `clock` times their nominal frequency at most."""
        for file in self._files:
            file.write_text(f"{round(clock * self._nominal_khz)}\n")

    def reset(self) -> None:
        """As it was found."""
        for file, text in zip(self._files, self._before, strict=True):
            file.write_text(text)


def open_clock(device: int, root: Path = SYSFS) -> CpuFreq:
    """Of the cores of this process, whatever the `device`. Raises ValueError."""
    return CpuFreq([root / f"cpu{core}" / "cpufreq" for core in sorted(os.sched_getaffinity(0))])
