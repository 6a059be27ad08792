#!/bin/bash
# Makes the guest's disk (MBR: FAT with SYSLINUX, kernel and initrd; ext4 root), and vmlinuz and initrd beside it for a
# direct boot. Needs root, but neither mounts nor loop devices. Prints the directory; what is cached there is used again.
# usage: bash build.sh CACHE-DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${1:?usage: bash build.sh CACHE-DIR}
suite=bookworm
boot_mib=48
root_mib=${GUEST_ROOT_MIB:-448}
cmdline="root=LABEL=guest-root console=ttyS0,115200 quiet panic=5 net.ifnames=0 systemd.show_status=0"

hash_of() { cat "$@" | sha256sum | cut -c1-12; }

need_tools() {
	local missing=() package
	for package in qemu-system-x86 qemu-block-extra mmdebstrap syslinux syslinux-common mtools dosfstools fdisk e2fsprogs cpio kmod xz-utils; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	apt-get update -q >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# base: Debian's packages and, unpacked but not installed (no maintainer scripts, no initramfs-tools), its cloud kernel.
base() {
	local include exclude=() path
	include=$(grep -v '^#' "$here/packages.list" | paste -sd,)
	for path in doc man locale info lintian bug bash-completion zoneinfo; do
		exclude+=(--dpkgopt="path-exclude=/usr/share/$path/*")
	done
	mmdebstrap --mode=root --format=tar --variant=essential --include="$include" --quiet \
		--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
		--dpkgopt=force-unsafe-io "${exclude[@]}" \
		--customize-hook="bash $here/kernel.sh"' "$1"' \
		"$suite" "$1.part" >&2
	mv "$1.part" "$1"
}

stage() {
	local root=$1
	mkdir "$root"
	tar -xf "$base" -C "$root"
	cp -a --no-preserve=ownership "$here/overlay/." "$root/"
	rm -rf "$root"/var/cache/* "$root"/var/lib/apt "$root"/usr/lib/udev/hwdb.d "$root"/usr/share/{perl,perl5,initramfs-tools} \
		"$root"/usr/lib/x86_64-linux-gnu/{perl,libicu*} "$root"/usr/lib/python3* "$root"/usr/bin/{perl5*,python3*}
	echo guest >"$root/etc/hostname"
	echo 'LABEL=guest-root / ext4 noatime 0 1' >"$root/etc/fstab"
	: >"$root/etc/machine-id"
	echo 'InitiatorName=iqn.2026-01.test.guest:a' >"$root/etc/iscsi/initiatorname.iscsi"
	systemctl --root="$root" -q enable guest-shell.service systemd-networkd.service
	systemctl --root="$root" -q disable multipathd.service multipathd.socket open-iscsi.service iscsid.service 2>/dev/null || true
	systemctl --root="$root" -q mask e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
		systemd-networkd-wait-online.service systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-hwdb-update.service serial-getty@hvc0.service
	systemctl --root="$root" -q set-default multi-user.target
	touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"
}

initrd() {
	local root=$1 out=$2 ram number=10 module file
	ram=$(mktemp -d -p "$work")
	mkdir "$ram/bin" "$ram/modules"
	cp "$root/bin/busybox" "$ram/bin/"
	install -m755 "$here/init" "$ram/init"
	for module in virtio_pci virtio_blk virtio_console ext4; do
		while read -r _ file _; do
			ls "$ram/modules/"*-"$(basename "$file")" >/dev/null 2>&1 && continue
			cp "$file" "$ram/modules/$number-$(basename "$file")"
			number=$((number + 1))
		done < <(modprobe -d "$root" -S "$version" --show-depends "$module" | grep ^insmod)
	done
	(cd "$ram" && find . -print0 | sort -z | cpio -0 -o -H newc --quiet --reproducible) >"$out"
}

boot_partition() {
	local image=$1
	truncate -s "${boot_mib}M" "$image"
	mkfs.vfat -F 16 -n GUESTBOOT "$image" >/dev/null
	printf 'DEFAULT guest\nLABEL guest\n LINUX vmlinuz\n INITRD initrd\n APPEND %s\n' "$cmdline" >"$work/syslinux.cfg"
	MTOOLS_SKIP_CHECK=1 mcopy -i "$image" "$work/syslinux.cfg" "$work/vmlinuz" "$work/initrd" ::
	syslinux --install "$image"
}

disk() {
	local out=$1
	truncate -s "$((1 + boot_mib + root_mib))M" "$out"
	sfdisk -q "$out" <<-P
		label: dos
		start=1MiB, size=${boot_mib}MiB, type=6, bootable
		start=$((1 + boot_mib))MiB, size=${root_mib}MiB, type=83
	P
	dd if=/usr/lib/syslinux/mbr/mbr.bin of="$out" bs=440 count=1 conv=notrunc status=none
	dd if="$work/boot.img" of="$out" bs=1M seek=1 conv=notrunc,sparse status=none
	dd if="$work/root.img" of="$out" bs=1M seek=$((1 + boot_mib)) conv=notrunc,sparse status=none
}

need_tools
mkdir -p "$cache"
base=$cache/base-$(hash_of "$here/packages.list" "$here/kernel.sh").tar
out=$cache/guest-$(hash_of <(find "$here" -type f -print0 | sort -z | xargs -0 cat) <(echo "$root_mib"))
[ -e "$out/disk.raw" ] && { echo "$out"; exit; }
exec 9>"$cache/lock"; flock 9
work=$(mktemp -d -p "$cache" build.XXXXXX)
trap 'rm -rf "$work"' EXIT
[ -s "$base" ] || base "$base"
root=$work/root
stage "$root"
version=$(ls "$root/usr/lib/modules")
cp "$root/boot/vmlinuz-$version" "$work/vmlinuz"
initrd "$root" "$work/initrd"
truncate -s "${root_mib}M" "$work/root.img"
mke2fs -q -t ext4 -L guest-root -m 0 -E lazy_itable_init=0,nodiscard,root_owner=0:0 -d "$root" "$work/root.img"
boot_partition "$work/boot.img"
mkdir -p "$out"
disk "$work/disk.raw"
echo "$cmdline" >"$out/cmdline"
mv "$work/vmlinuz" "$work/initrd" "$out/"
cp --sparse=always "$work/disk.raw" "$out/disk.part" && mv "$out/disk.part" "$out/disk.raw"
echo "$out"
