"""Superblocks of btrfs: each device has up to three that say the same."""

from dataclasses import dataclass
from typing import Final

from imager.extents.extents import Part, UncertainMapError
from imager.probe.btrfs import (
    CHUNKS_AT,
    CHUNKS_SIZE,
    DEVICE,
    DEVICE_AT,
    HEAD,
    METADATA_UUID_AT,
    SIZE,
    SUM_SIZE,
    SUPERBLOCK_PLACES,
    read_copy,
)
from imager.probe.structure import StructureError

_WRITTEN: Final = 0x1
_SEEDING: Final = 1 << 32
_METADATA_UUID: Final = 0x400
_ZONED: Final = 0x1000
_EXTENT_TREE_V2: Final = 0x2000
_RAID_STRIPE_TREE: Final = 0x4000
# Mixed references, default subvolume, mixed groups, LZO, zstd, big metadata, extended references,
# RAID 5 and 6, skinny metadata, no holes, UUID of metadata, RAID 1 with 3 and 4 copies, simple
# quotas
_INCOMPATIBLE: Final = 0xFFF | 0x10000
_FREE_SPACE_TREE: Final = 0x1
_FREE_SPACE_TREE_VALID: Final = 0x2
_BLOCK_GROUP_TREE: Final = 0x8
_READ_ONLY: Final = _FREE_SPACE_TREE | _FREE_SPACE_TREE_VALID | 0x4 | _BLOCK_GROUP_TREE


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the superblocks of a device agree on.

    Attributes:
        shared: the bytes that every device of the filesystem must have alike.
        device: those of DEVICE that tell one device from the others: id, size, bytes in chunks,
            UUID.
        metadata_uuid: that tree blocks carry.
        generation: of the last transaction.
        root: place and level of the root tree.
        chunk_root: place, level and generation of the chunk tree.
        used: bytes, by its own count.
        devices: how many the filesystem has.
        sector: bytes.
        node: bytes of a tree block.
        checksum: number of its kind.
        chunks: the array of system chunks.
        has_free_space_tree: and it is valid.
        has_block_group_tree: block groups have a tree of their own.
    """

    shared: bytes
    device: tuple[int, int, int, bytes]
    metadata_uuid: bytes
    generation: int
    root: tuple[int, int]
    chunk_root: tuple[int, int, int]
    used: int
    devices: int
    sector: int
    node: int
    checksum: int
    chunks: bytes
    has_free_space_tree: bool
    has_block_group_tree: bool

    @property
    def size(self) -> int:
        """Bytes that the filesystem takes of this device, from its start."""
        return self.device[1]


def read_superblock(part: Part) -> Superblock:
    """Read all superblocks of a device.

    Raises:
        UncertainMapError: one is damaged or differs, or has a state or feature that isn't known.
    """
    first = _read_copy(part, SUPERBLOCK_PLACES[0])
    found = _parse(first)
    if found.size > part.length:
        raise UncertainMapError("the filesystem is larger than the volume it lies in")
    for place in SUPERBLOCK_PLACES[1:]:
        # As the kernel decides whether there is one.
        if place + SIZE >= found.size:
            break
        if _without_place(_read_copy(part, place)) != _without_place(first):
            raise UncertainMapError("its superblocks differ")
    return found


def _read_copy(part: Part, place: int) -> bytes:
    try:
        return read_copy(part.fd, part.offset, part.length, place)
    except StructureError as problem:
        raise UncertainMapError(str(problem)) from problem


def _without_place(data: bytes) -> bytes:
    return data[32:48] + data[56:]


def _parse(data: bytes) -> Superblock:
    (
        uuid, _, flags, _, generation, root, chunk_root, log_root, _, _, used, _, devices,
        sector, node, _, _, chunks_size, chunk_generation, compatible, read_only, incompatible,
        checksum, root_level, chunk_level, _,
    ) = HEAD.unpack_from(data, SUM_SIZE)  # fmt: skip
    _check_state(flags, log_root, compatible, read_only, incompatible)
    identity, size, allocated, *_, device_uuid, _ = DEVICE.unpack_from(data, DEVICE_AT)
    sizes = {1 << power for power in range(12, 17)}
    if sector not in sizes or node not in sizes or node < sector or chunks_size > CHUNKS_SIZE:
        raise UncertainMapError("the btrfs superblock makes no sense")
    metadata_uuid = data[METADATA_UUID_AT:][:16] if incompatible & _METADATA_UUID else uuid
    after = DEVICE_AT + DEVICE.size
    return Superblock(
        shared=_without_place(data[:DEVICE_AT]) + data[after:],
        device=(identity, size, allocated, device_uuid),
        metadata_uuid=metadata_uuid,
        generation=generation,
        root=(root, root_level),
        chunk_root=(chunk_root, chunk_level, chunk_generation),
        used=used,
        devices=devices,
        sector=sector,
        node=node,
        checksum=checksum,
        chunks=data[CHUNKS_AT : CHUNKS_AT + chunks_size],
        has_free_space_tree=read_only & 3 == _FREE_SPACE_TREE | _FREE_SPACE_TREE_VALID,
        has_block_group_tree=bool(read_only & _BLOCK_GROUP_TREE),
    )


def _check_state(
    flags: int, log_root: int, compatible: int, read_only: int, incompatible: int
) -> None:
    """Refuse a state or a feature with which the trees may not mean what they say."""
    if flags & _SEEDING:
        raise UncertainMapError("it is a seed for other filesystems")
    if flags != _WRITTEN:
        raise UncertainMapError(f"it is in a state that is not known here ({flags:#x})")
    if log_root:
        raise UncertainMapError("its log tree waits to be replayed (it was not unmounted cleanly)")
    for feature, name in (
        (_ZONED, "zoned devices"),
        (_EXTENT_TREE_V2, "extent tree v2"),
        (_RAID_STRIPE_TREE, "RAID stripe tree"),
    ):
        if incompatible & feature:
            raise UncertainMapError(f"it has a feature that is not read here: {name}")
    unknown = (compatible, incompatible & ~_INCOMPATIBLE, read_only & ~_READ_ONLY)
    if any(unknown):
        raise UncertainMapError(
            "it has features that are not known here: " + " ".join(f"{bits:#x}" for bits in unknown)
        )
