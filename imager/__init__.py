"""Captures the disks of a machine into deduplicated, encrypted images."""

import importlib.metadata

__version__ = importlib.metadata.version("remetal")
