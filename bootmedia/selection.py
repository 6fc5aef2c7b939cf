"""What the rescue medium carries, as data: packages, kernel modules, and what is left out.

A change here changes the hash of the base, so that it is built anew.
"""

from typing import Final

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"  # the Python of that suite; wheels are chosen for it

# Installed in the rescue root.
PACKAGES: Final = (
    "btrfs-progs",
    "busybox-static",
    "cryptsetup-bin",
    "dosfstools",
    "e2fsprogs",
    "efibootmgr",
    "fdisk",
    "gdisk",
    "iproute2",
    "kbd",
    "kmod",
    "lvm2",
    "mdadm",
    "mount",
    "mtools",
    "ntfs-3g",
    "partclone",
    "python3",
    "udev",
    "util-linux",
    "xfsprogs",
)

# Unpacked beside the root, where the kernel, keyboards and boot loaders are taken from.
UNPACKED_PACKAGES: Final = (
    "binutils-x86-64-linux-gnu",
    "console-data",
    "grub-common",
    "grub-efi-amd64-signed",
    "grub-pc-bin",
    "libbinutils",
    "shim-helpers-amd64-signed",
    "shim-signed",
)

# Files of packages that are never unpacked, as dpkg's path-exclude patterns.
EXCLUDED_PATHS: Final = (
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    "/usr/sbin/xfs_scrub*",
    "/usr/share/bash-completion/*",
    "/usr/share/bug/*",
    "/usr/share/common-licenses/*",
    "/usr/share/doc/*",
    "/usr/share/gdb/*",
    "/usr/share/info/*",
    "/usr/share/initramfs-tools/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/zoneinfo/*",
)

# Needed to install packages, and never again; patterns of the shell, relative to the root.
REMOVED_PATHS: Final = (
    "etc/cron*",
    "usr/bin/perl*",
    "usr/lib/apt",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/python3.11/test",
    "usr/lib/python3.11/unittest",
    "usr/lib/udev/hwdb.bin",
    "usr/lib/udev/hwdb.d",
    "usr/lib/x86_64-linux-gnu/libapt-*",
    "usr/lib/x86_64-linux-gnu/libicu*",
    "usr/lib/x86_64-linux-gnu/libperl*",
    "usr/lib/x86_64-linux-gnu/perl*",
    "usr/share/consoletrans",
    "usr/share/keymaps/amiga",
    "usr/share/keymaps/atari",
    "usr/share/keymaps/mac",
    "usr/share/keymaps/sun",
    "usr/share/perl*",
    "usr/share/python-wheels",
)

# Not packed: needed until the root is complete, mounted over at run time, or telling of the machine
# that built the medium. Paths without a leading slash; a folder stays, without its content.
NOT_PACKED: Final = (
    "boot",
    "dev",
    "etc/apt",
    "etc/hostname",
    "etc/mdadm/mdadm.conf",
    "etc/resolv.conf",
    "proc",
    "run",
    "sys",
    "tmp",
    "var/backups",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log",
)

# Kernel modules by the start of their path below kernel/, as extended regular expressions.
# Modules that these need come along by themselves.
MODULE_PATTERNS: Final = (
    "arch/",
    "crypto/",
    "lib/",
    # storage
    "drivers/(ata|block|cdrom|dax|md|message|mmc|nvdimm|nvme|scsi|usb/storage|virtio)/",
    # what storage, keyboards and consoles hang on
    "drivers/(firmware|hid|hv|pci|thunderbolt|xen)/",
    "drivers/usb/(common|core|host)/",
    "drivers/input/(keyboard|serio)/",
    "drivers/char/(hw_random|ipmi|tpm)/",
    "drivers/char/virtio_console",
    "drivers/misc/(vmw_vmci|vmw_balloon)",
    "drivers/rtc/",
    # network cards of servers and of virtual machines
    "drivers/net/(virtio_net|xen-netfront|dummy|mii|macvlan|tun|vxlan)",
    "drivers/net/(bonding|hyperv|mdio|phy|usb|vmxnet3)/",
    "drivers/net/ethernet/(3com|8390|agere|alacritech|amazon|amd|aquantia|atheros|broadcom)/",
    "drivers/net/ethernet/(brocade|cisco|dec|dlink|emulex|fungible|google|huawei|intel|jme)",
    "drivers/net/ethernet/(marvell|mellanox|micrel|microsoft|nvidia|pensando|realtek|sis|sun|via)",
    "net/(802|8021q|bridge|core|ipv6|llc|packet|sched/sch_fq|tls|unix|vmw_vsock)",
    # filesystems
    "fs/(9p|btrfs|efivarfs|exfat|ext4|f2fs|fat|fuse|isofs|jbd2|nfs|nfs_common|nls|ntfs3|overlayfs)/",
    "fs/(smb|squashfs|udf|xfs)/",
    "net/9p/",
)

# Among those, what is not worth its size: sound of odd cards, cards without a free firmware,
# switches, test modules.
UNWANTED_PATTERNS: Final = (
    "drivers/net/ethernet/marvell/(octeontx2|prestera)/",
    "drivers/net/ethernet/mellanox/mlxsw/",
    "drivers/scsi/(bfa|csiostor|qla4xxx|fnic|snic|bnx2fc|bnx2i|cxgbi|qedf|qedi|pcmcia)",
    "drivers/block/(drbd|rbd)",
    "drivers/hid/(hid-(apple|asus|corsair|cougar|logitech|picolcd|playstation|prodikeys|roccat|sony|steam|wiimote|nintendo|uclogic|lg|wacom)|wacom|usbhid/usbkbd)",
    "drivers/md/(dm-vdo|bcache)/",
    "lib/(test_|kunit|.*_test|xz/xz_dec_test)",
    "crypto/(tcrypt|ansi_cprng)",
    "arch/x86/kvm/",
    "drivers/thunderbolt/.*_test",
)

# Of the Python packages, those whose libraries come with debug information, 14 MiB of it.
STRIPPED_WHEELS: Final = ("cryptography", "zstandard")

# Built into the BIOS boot image; Debian's signed EFI image brings its own.
GRUB_BIOS_MODULES: Final = (
    "all_video",
    "biosdisk",
    "boot",
    "cat",
    "configfile",
    "echo",
    "fat",
    "halt",
    "iso9660",
    "linux",
    "ls",
    "normal",
    "part_gpt",
    "part_msdos",
    "probe",
    "reboot",
    "search",
    "search_fs_file",
    "search_label",
    "serial",
    "sleep",
    "terminal",
    "test",
    "true",
)

# Of the Python packages, what rescue never imports; globs below the folder of all wheels.
UNWANTED_WHEEL_PATHS: Final = (
    "bin",
    "**/*.a",
    "**/*.h",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    "**/tests",
    # Of 440 services that botocore describes, the one that is used.
    "boto3/data/[!s]*/",
    "boto3/data/s[!3]*/",
    "boto3/examples",
    "botocore/data/*/*/examples-1.json",
    "botocore/data/[!s]*/",
    "botocore/data/s[!3]*/",
    "botocore/data/s3?*/",
    "invoke",  # what paramiko runs programs with that ~/.ssh/config names
    "numpy/distutils",
    "numpy/f2py",
    "numpy/testing",
    "pycparser",
    "pygments/lexers/_[a-l]*",
    "pygments/lexers/_[n-z]*",
    "pygments/lexers/[a-oq-z]*",
    "pygments/lexers/p[a-xz]*",
    "pygments/styles/[a-ce-z]*",
    "zstandard/*cffi*",
)
