"""A guest with the rescue medium's own root, remetal and its Python packages included."""

from bootmedia import initramfs, layer, rootfs, wheels
from bootmedia.config import MediumConfig
from tests.guest.guest import CACHE, Guest

_MEMORY_MIB = 1536


def rescue() -> Guest:
    """Return the guest; the medium's base is built first if need be."""
    wanted = wheels.requirements(layer.imported_modules(layer.sources()))
    base = rootfs.prepare(CACHE, wanted, (), lambda _: None)
    # Its init gives way to the guest's: no udev runs yet, and no console asks anything.
    remetal, _ = layer.build(base, MediumConfig())
    return Guest(
        base.part("vmlinuz"), base.initramfs, initramfs.compress(remetal), memory_mib=_MEMORY_MIB
    )
