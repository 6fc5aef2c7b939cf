"""What the readers of on-disk structures here say when bytes are not what they look for."""


class StructureError(Exception):
    """Bytes are not the structure they should be, or are damaged.

    Never leaves `imager.probe` and `imager.extents`.
    """
