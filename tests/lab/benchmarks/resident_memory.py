"""How much memory this process holds."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path


class ResidentMemory:
    """This process's resident memory, whose peak Linux can set back, and its processor time."""

    name = "cpu"
    clock = staticmethod(time.process_time)

    def used(self) -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return self._status("VmRSS")

    def reset_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return self._status("VmHWM")

    def _status(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
