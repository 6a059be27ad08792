#!/bin/bash
# mmdebstrap hook: unpacks the suite's cloud kernel into the root; modules uncompressed, which an emulated guest loads sooner.
# usage: kernel.sh ROOT
set -euo pipefail
root=$1
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$package" >/dev/null)
dpkg-deb -x "$work"/*.deb "$work/kernel"
version=$(ls "$work/kernel/lib/modules")
find "$work/kernel/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 xz -d
mkdir -p "$root/usr/lib/modules" "$root/boot"
cp -a "$work/kernel/lib/modules/$version" "$root/usr/lib/modules/"
cp "$work/kernel/boot/vmlinuz-$version" "$root/boot/"
rm -f "$root/usr/lib/modules/$version"/{build,source}
depmod -b "$root" "$version"
