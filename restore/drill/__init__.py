"""Rehearsals in QEMU: the real medium, the real image, blank disks, proof."""
