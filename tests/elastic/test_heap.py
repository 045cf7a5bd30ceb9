"""What a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

TAKE = """
import ctypes, resource
from trainsys.elastic.heap import keep_heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        vectors = [libc.malloc(5 << 20) for _ in range(3)]
        for vector in vectors:
            libc.memset(vector, 1, 5 << 20)
        for vector in vectors:
            libc.free(vector)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
keep_heap()
faults()
print(fresh, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_vectors_of_some_mib_are_not_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", TAKE], capture_output=True, text=True, check=True)
    fresh, kept = map(int, done.stdout.split())
    assert fresh > 5 * 15 * 256  # of the 10 * 15 MiB, in pages of 4 KiB: some of it the library keeps by itself
    assert kept < fresh / 50
