"""The threads that share a tensor operation on a processor.

OpenMP keeps workers for every thread that ever ran a parallel loop. Where they outnumber the processors, they stop
waiting actively for the next loop, and each loop begins later. A thread that hands its
work to another lets its workers go.
"""

import ctypes

import torch

LIBRARIES = ("libgomp.so.1", "libiomp5.so", "libomp.dylib")  # of the builds of torch
HARD = 2  # omp_pause_hard


def release_workers() -> bool:
    """End the workers of the calling thread, and say whether it could; its next parallel loop starts others."""
    if not torch.backends.openmp.is_available():
        return False
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)  # the one that torch has loaded, which has this name
        except OSError:
            continue
        if hasattr(library, "omp_pause_resource_all"):
            return library.omp_pause_resource_all(HARD) == 0
    return False
