"""The files of one machine: Debian's from the archive, and what makes it this machine."""

import secrets
import shutil
from pathlib import Path
from typing import Final

from imager import process
from imager.errors import ConfigError
from spec import FilesystemType, Loader, Machine, Naming, encode
from template import render

GUEST: Final = Path(__file__).parent / "guest"

_SCRIPTS: Final = ("facts.py", "file_tree.py", "layers.py", "life.py", "volatile.txt")
_UNITS: Final = ("fixture-facts.service", "fixture-life.service")


def guest_files() -> list[Path]:
    """Return the files of this program that run in the guest."""
    return [GUEST / name for name in (*_SCRIPTS, *_UNITS, "forge.py")]


def unpack(archive: Path, tree: Path) -> None:
    """Unpack the archive with owners, times and attributes; device nodes come from the kernel.

    Raises:
        ProgramError: tar failed, such as for want of root or of room.
    """
    tree.mkdir()
    process.run(
        *("tar", "--extract", "--file", archive, "--directory", tree),
        *("--numeric-owner", "--same-permissions", "--same-owner"),
        *("--xattrs", "--xattrs-include=*", "--exclude=./dev/*"),
    )


def personalise(machine: Machine, tree: Path) -> None:
    """Turn the unpacked Debian into this machine: identity, fstab, boot files, services."""
    etc = tree / "etc"
    _write(etc / "hostname", machine.hostname + "\n")
    _write(etc / "hosts", render("hosts", hostname=machine.hostname))
    _write(etc / "machine-id", machine.machine_id + "\n")
    _write(etc / "resolv.conf", "")
    sources = [(machine.source(each), each) for each in machine.filesystem]
    _write(etc / "fstab", render("fstab", filesystems=sources))
    # On a busy host everything takes long, and a swap that came too late would be a difference.
    limits = "[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n"
    _write(etc / "systemd/system.conf.d/fixture.conf", limits)
    _services(machine, tree)
    for each in machine.filesystem:
        if each.mountpoint is not None:
            (tree / each.mountpoint.lstrip("/")).mkdir(parents=True, exist_ok=True)
    _kernel(machine, tree)
    if machine.boot.naming is Naming.KERNEL:
        swaps = [source for source, each in sources if each.type is FilesystemType.SWAP]
        _write(etc / "initramfs-tools/conf.d/resume", f"RESUME={swaps[0]}\n")
    if machine.is_layered:
        # No search for a swap that is not there yet; and no long compression where nothing helps.
        _write(etc / "initramfs-tools/conf.d/fixture", "RESUME=none\nCOMPRESSLEVEL=1\n")
    if machine.luks:
        _keys(machine, tree)
    if machine.md:
        _write(etc / "mdadm/mdadm.conf", render("mdadm.conf", arrays=machine.md))
        # Here and not in the forge: that many small programs take minutes without help of a processor.
        words = ("update-initramfs", "-u", "-k", "all")
        process.run("unshare", "--fork", "--pid", "--mount-proc", f"--root={tree}", *words)
    match machine.boot.loader:
        case Loader.GRUB_PC:
            shutil.copytree(tree / "usr/lib/grub/i386-pc", tree / "boot/grub/i386-pc")
        case Loader.GRUB_EFI_SIGNED:
            _signed_loaders(machine, tree)
        case Loader.SYSTEMD_BOOT:
            _systemd_boot(machine, tree)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link that leads out of the tree
    path.write_text(text)
    path.chmod(0o644)


def _services(machine: Machine, tree: Path) -> None:
    library = tree / "usr/local/lib/fixture"
    for name in _SCRIPTS:
        _write(library / name, (GUEST / name).read_text())
    _write(library / "life.json", encode(machine.life).decode() + "\n")
    (tree / "var/lib/fixture").mkdir(parents=True)
    units = tree / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(parents=True, exist_ok=True)
    for name in _UNITS:
        _write(units / name, (GUEST / name).read_text())
        (wanted / name).symlink_to(f"/etc/systemd/system/{name}")
    for name in machine.system.masked:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _keys(machine: Machine, tree: Path) -> None:
    """Let containers open without a person: by a key file, which goes into the initramfs."""
    _write(tree / "etc/crypttab", render("crypttab", containers=machine.luks))
    _write(tree / "etc/cryptsetup-initramfs/conf-hook", "KEYFILE_PATTERN=/etc/keys/*.key\n")
    _write(tree / "etc/initramfs-tools/conf.d/umask", "UMASK=0077\n")
    key = tree / "etc/keys/fixture.key"
    key.parent.mkdir(mode=0o700)
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)


def _version(machine: Machine, tree: Path) -> str:
    """Return the version of the kernel.

    Raises:
        ConfigError: there is none, or more than one.
    """
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise ConfigError(
            f"{machine.hostname}: there are {len(kernels)} kernels in the Debian that was made",
            hint="Name exactly one linux-image-… package in system.packages.",
        )
    return kernels[0].name.removeprefix("vmlinuz-")


def _kernel(machine: Machine, tree: Path) -> None:
    version = _version(machine, tree)
    boot, folder = machine.boot_folder()
    text = render(
        "grub.cfg",
        boot_uuid=boot.uuid,
        root=machine.root_device(),
        subvolume=machine.at("/").subvolume,
        kernel=f"{folder}/vmlinuz-{version}",
        initrd=f"{folder}/initrd.img-{version}",
        options=machine.boot.options,
    )
    _write(tree / "boot/grub/grub.cfg", text)


def _signed_loaders(machine: Machine, tree: Path) -> None:
    """Put the loaders on the ESP, where Debian's installer puts them.

    The fall-back path gets no fbx64.efi: it would make up a lost boot entry at the next start,
    and hide that a restore forgot it.
    """
    shim, grub = tree / "usr/lib/shim", tree / "usr/lib/grub/x86_64-efi-signed"
    files = {
        "debian/shimx64.efi": shim / "shimx64.efi.signed",
        "debian/mmx64.efi": shim / "mmx64.efi.signed",
        "debian/fbx64.efi": shim / "fbx64.efi.signed",
        "debian/BOOTX64.CSV": shim / "BOOTX64.CSV",
        "debian/grubx64.efi": grub / "grubx64.efi.signed",
        "BOOT/BOOTX64.EFI": shim / "shimx64.efi.signed",
        "BOOT/mmx64.efi": shim / "mmx64.efi.signed",
        "BOOT/grubx64.efi": grub / "grubx64.efi.signed",
    }
    efi = tree / "boot/efi/EFI"
    for name, source in files.items():
        target = efi / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    boot, folder = machine.boot_folder()
    early = render("early.cfg", boot_uuid=boot.uuid, folder=folder, on_esp=True)
    _write(efi / "debian/grub.cfg", early)


def _systemd_boot(machine: Machine, tree: Path) -> None:
    """Put systemd-boot on the ESP, with the kernel as kernel-install does it."""
    version, esp = _version(machine, tree), tree / "boot/efi"
    loader = tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    folder = Path(machine.machine_id) / version
    files = {
        "EFI/systemd/systemd-bootx64.efi": loader,
        "EFI/BOOT/BOOTX64.EFI": loader,
        str(folder / "linux"): tree / f"boot/vmlinuz-{version}",
        str(folder / f"initrd.img-{version}"): tree / f"boot/initrd.img-{version}",
    }
    for name, source in files.items():
        target = esp / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    options = f"root={machine.root_device()} ro {machine.boot.options}"
    _write(tree / "etc/kernel/cmdline", options + "\n")
    entry = render(
        "loader-entry",
        machine_id=machine.machine_id,
        version=version,
        folder=f"/{folder}",
        options=options,
    )
    _write(esp / f"loader/entries/{machine.machine_id}-{version}.conf", entry)
    _write(esp / "loader/loader.conf", f"timeout 0\ndefault {machine.machine_id}-*\n")


def split(machine: Machine, tree: Path, parts: Path) -> dict[str, Path]:
    """Take the content of every mounted filesystem out of the tree, the innermost first.

    Args:
        machine: says what is mounted where.
        tree: all files; what is mounted below the root leaves an empty mountpoint behind.
        parts: a new directory on the filesystem of the tree.

    Returns:
        The content of each filesystem that has a mountpoint, by that mountpoint.
    """
    parts.mkdir()
    found = {"/": tree}
    mountpoints = [each.mountpoint for each in machine.filesystem if each.mountpoint is not None]
    inner = sorted((m for m in mountpoints if m != "/"), key=len, reverse=True)
    for number, mountpoint in enumerate(inner):
        place = tree / mountpoint.lstrip("/")
        part = parts / str(number)
        place.rename(part)
        place.mkdir()
        found[mountpoint] = part
    return found
