"""Captures the disks of a machine into deduplicated, encrypted images."""

import importlib.metadata
import os

__version__ = importlib.metadata.version("remetal")

# Nothing here multiplies matrices of floats; the threads that OpenBLAS starts for it when numpy is
# imported cost a tenth of a second of CPU, and memory for each processor.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
