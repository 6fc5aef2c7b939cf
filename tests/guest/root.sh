#!/bin/sh
# Run by mmdebstrap when the packages of the guest's root are in place; $1 is the root, the other
# names come in the environment: MODULES, patterns of the kernel modules wanted (with all they need).
set -eu
root=$1
parts=$root/guest-parts
mkdir -p "$parts/debs" "$parts/unpacked"

# The kernel is unpacked, not installed: its scripts would build an initramfs.
linux=$(env APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache depends --important linux-image-amd64 |
    sed -n 's/^ *Depends: //p')
(
    cd "$parts/debs"
    env APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" \
        apt-get -qq -o APT::Sandbox::User=root download "$linux"
)
dpkg-deb --extract "$parts"/debs/*.deb "$parts/unpacked"
[ -e "$parts/unpacked/lib" ] || ln -s usr/lib "$parts/unpacked/lib"
version=$(ls "$parts/unpacked/lib/modules")
cp "$parts/unpacked/boot/vmlinuz-$version" "$parts/vmlinuz"

chroot "$root" depmod --basedir /guest-parts/unpacked "$version"
mkdir -p "$root/usr/lib/modules/$version"
(
    cd "$parts/unpacked/lib/modules/$version"
    pattern=$(printf '%s' "$MODULES" | tr ' ' '|')
    # Each line of modules.dep names a module and, in full depth, all it depends on.
    tr -d : <modules.dep | grep -E "^[^ ]*/($pattern)\.ko(\.[a-z0-9]+)?( |\$)" | tr ' ' '\n' | sort -u >"$parts/modules"
    # shellcheck disable=SC2046
    cp --parents $(cat "$parts/modules") modules.order modules.builtin modules.builtin.modinfo \
        "$root/usr/lib/modules/$version"
)
chroot "$root" depmod "$version"
rm -rf "$parts/debs" "$parts/unpacked" "$root"/usr/lib/python3*/test "$root"/usr/lib/udev/hwdb*
rm -rf "$root"/usr/bin/perl* "$root"/usr/share/perl* "$root"/usr/lib/x86_64-linux-gnu/perl*
rm -rf "$root"/usr/lib/x86_64-linux-gnu/libicu* "$root"/usr/lib/x86_64-linux-gnu/libperl*
