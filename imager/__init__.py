"""Captures the disks of a machine into deduplicated, encrypted images."""
