#!/bin/bash
# root.sh DIR: makes DIR a minimal Debian with systemd and what the package depends on, unless one of this list is there.
set -euo pipefail
dir=$1
packages=systemd,systemd-sysv,dbus,xfsprogs,e2fsprogs,iproute2,mount,util-linux,procps,init-system-helpers
mark=$dir.of-$(echo "$packages $(cat "$0")" | sha256sum | cut -c1-12)
[ ! -e "$mark" ] || exit 0
rm -rf "$dir" "$dir".of-*
mkdir -p "$(dirname "$dir")"
mmdebstrap --mode=root --variant=essential --include=$packages --format=directory --quiet \
	--aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook='rm -f "$1/etc/hostname" "$1/etc/machine-id"; : >"$1/etc/machine-id"' \
	"$(. /etc/os-release && echo "$VERSION_CODENAME")" "$dir"
touch "$mark"
