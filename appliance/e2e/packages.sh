#!/bin/sh
# packages.sh SET...: installs those Debian packages of the named sets that this machine lacks.
# Sets: build, client, bench, guest, peers, deb, nspawn, image, vm, web.
set -eu

packages_of() {
	case $1 in
	build) echo gcc libc6-dev git clang-14 llvm-14 ;;
	client) echo xfsprogs e2fsprogs mount util-linux qemu-utils qemu-block-extra qemu-system-common fdisk \
		libnbd-bin libiscsi-bin fio fuse3 iproute2 qemu-guest-agent ;;
	bench) echo gcc libc6-dev libiscsi-dev fio xfsprogs util-linux iproute2 ;;
	guest) echo qemu-system-x86 openssl ;;
	peers) echo tgt ;;
	deb) echo debhelper lintian git ;;
	nspawn) echo systemd-container mmdebstrap ;;
	image) echo mmdebstrap apt-utils curl squashfs-tools grub-pc-bin grub-efi-amd64-bin grub-common mtools dosfstools fdisk \
		cpio kmod zstd bc ;;
	vm) echo qemu-system-x86 qemu-utils ovmf ;;
	web) echo chromium prometheus ;;
	*) echo "packages.sh: no set $1" >&2 && exit 2 ;;
	esac
}

installed() {
	dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

missing=
for set in "$@"; do
	for package in $(packages_of "$set"); do
		installed "$package" || missing="$missing $package"
	done
done
[ -n "$missing" ] || exit 0

echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# A package must not start its service here: tgt's would take port 3260.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f $policy' EXIT
fi
apt-get update -q
# shellcheck disable=SC2086 # a list of package names
apt-get install -qy --no-install-recommends $missing </dev/null
