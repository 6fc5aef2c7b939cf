"""The rescue medium as a whole: from nothing to a file that boots as CD and as USB stick."""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Final

from bootmedia import esp, hybrid, initramfs, iso, layer, rootfs, wheels
from bootmedia.config import MediumConfig
from bootmedia.templates import render
from imager.errors import ConfigError, NoRoom, OutputError, OutputExists
from imager.units import MIB, format_size

VOLUME_ID: Final = "REMETAL"

# md arrays on the machine's disks are left alone until the restorer wants them.
_KERNEL_PARAMETERS: Final = ("quiet", "loglevel=3", "raid=noautodetect", "panic=30")


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the work.

    Attributes:
        name: in a few words.
        seconds: how long it took.
    """

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class MediumReport:
    """A finished medium.

    Attributes:
        path: the file.
        size: bytes.
        sha256: of the file, in hex.
        volume_id: name of the ISO volume.
        medium: the id of this very medium, also on it in /etc/remetal/medium.json.
        kernel: version of its kernel.
        unpacked: bytes of memory that its root takes.
        debian: day on which its Debian packages were fetched.
        steps: in order, with their times.
    """

    path: Path
    size: int
    sha256: str
    volume_id: str
    medium: str
    kernel: str
    unpacked: int
    debian: str
    steps: tuple[Step, ...]


class _Steps:
    """Passes on which step starts, and keeps how long each took."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._done: list[Step] = []
        self._name = ""
        self._since = 0.0

    def start(self, name: str) -> None:
        self.finish()
        self._name, self._since = name, time.monotonic()
        self._announce(name)

    def finish(self) -> tuple[Step, ...]:
        if self._name:
            self._done.append(Step(self._name, round(time.monotonic() - self._since, 2)))
            self._name = ""
        return tuple(self._done)


def build_medium(
    output: Path,
    config: MediumConfig,
    cache: Path,
    step: Callable[[str], None],
    *,
    force: bool = False,
    fresh: bool = False,
    store_keys: bytes | None = None,
) -> MediumReport:
    """Build a rescue medium.

    The file appears under its name only when it is complete; after an error nothing is left.

    Args:
        output: the file to write.
        config: what this medium is like.
        cache: folder where the base is kept between runs; made when missing.
        step: called with a few words when a part of the work starts.
        force: replace a file that is there.
        fresh: build the base anew instead of taking it from the cache.
        store_keys: what opens stores, sealed, to be put on it.

    Raises:
        OutputExists: the file is there and `force` is not given.
        OutputError: the file can't be written.
        NoRoom: the disk is full.
        ConfigError: a value of the configuration does not fit the base.
        MediumError: what the medium is made of can't be fetched.
    """
    if output.is_dir() or (output.exists() and not force):
        raise OutputExists(f"{output} is there already", hint="Choose another name, or --force.")
    steps = _Steps(step)
    base = _base(config, cache, steps.start, fresh=fresh)
    if config.keyboard and config.keyboard not in base.keyboards:
        raise ConfigError(
            f"`keyboard`: {config.keyboard!r} is not known",
            hint=f"Known are: {', '.join(base.keyboards)}.",
        )
    steps.start("remetal and its configuration")
    archive, medium = layer.build(base, config, store_keys)
    top = initramfs.compress(archive)
    marker = f"{rootfs.MARKER}-{medium}"
    menu = _boot_menu(base, config, len(top))
    files: dict[str, Path | bytes] = {
        ".disk/info": f"remetal rescue medium {medium}\n".encode(),
        rootfs.MARKER.lstrip("/"): b"",
        marker.lstrip("/"): b"",
        "boot/base.img": base.initramfs,
        "boot/grub/grub.cfg": menu,
        "boot/remetal.img": top,
        "boot/vmlinuz": base.part("vmlinuz"),
        "packages.txt": base.part("packages.txt"),
        # For those who copy the files onto a FAT stick instead of writing the image.
        **{name: base.part(part) for name, part in esp.LOADERS.items()},
    }
    with tempfile.TemporaryDirectory(prefix="remetal-media-") as name, _no_room(Path(name)):
        steps.start("EFI system partition")
        efi_image = esp.build(base, marker, medium.time_low, Path(name))
        steps.start("ISO image")
        with _new_file(output, private=config.is_private) as file:
            images = iso.write(file, VOLUME_ID, files, base.part("eltorito.img"), efi_image)
            boot_sector = base.part("boot_hybrid.img").read_bytes()
            size = hybrid.make_hybrid(file, images, boot_sector, medium)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return MediumReport(
        path=output,
        size=size,
        sha256=digest,
        volume_id=VOLUME_ID,
        medium=str(medium),
        kernel=base.kernel,
        unpacked=base.unpacked,
        debian=time.strftime("%Y-%m-%d", time.gmtime(base.made)),
        steps=steps.finish(),
    )


def medium_kernel(config: MediumConfig, cache: Path, step: Callable[[str], None]) -> Path:
    """Return the kernel that such a medium starts, fetched first when the cache has none.

    Raises:
        MediumError: it can't be fetched.
        NoRoom: the disk is full.
    """
    return _base(config, cache, step).part("vmlinuz")


def _base(
    config: MediumConfig, cache: Path, step: Callable[[str], None], *, fresh: bool = False
) -> rootfs.Base:
    wanted = wheels.requirements(layer.imported_modules(layer.sources()))
    with _no_room(cache):
        return rootfs.prepare(cache, wanted, config.debian_sources, step, fresh=fresh)


def _boot_menu(base: rootfs.Base, config: MediumConfig, top: int) -> bytes:
    consoles = ["console=tty0"]
    if config.serial != "none":
        consoles.append(f"console={config.serial}")
    port = config.serial_port
    loaded = base.part("vmlinuz").stat().st_size + base.initramfs.stat().st_size + top
    text = render(
        "grub.cfg.j2",
        title=config.title,
        menu_seconds=config.menu_seconds,
        serial_unit=port[0] if port else None,
        serial_speed=port[1] if port else None,
        mebibytes=round(loaded / MIB),
        kernel_parameters=(*consoles, *_KERNEL_PARAMETERS, *config.kernel_parameters),
    )
    return text.encode()


@contextmanager
def _no_room(place: Path) -> Iterator[None]:
    """Say which place is full, where the error does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        where = Path(error.filename).parent if error.filename else place
        raise NoRoom(f"no room left in {where}") from error


@contextmanager
def _new_file(output: Path, *, private: bool) -> Iterator[BufferedRandom]:
    """Open a file that gets its name when it is complete, and leaves nothing behind otherwise.

    Args:
        output: the name it gets.
        private: only its owner may read it.
    """
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise OutputError(
            f"{output} can't be written: {error.strerror}",
            hint="Check that the folder exists and may be written.",
        ) from error
    try:
        with open(descriptor, "w+b") as file:  # noqa: PTH123  a descriptor, not a path
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            free = format_size(shutil.disk_usage(output.parent).free)
            raise NoRoom(
                f"no room left for {output.name}: {free} free in {output.parent}"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
