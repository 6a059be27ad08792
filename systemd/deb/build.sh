#!/bin/bash
# build.sh OUT [VERSION]: makes OUT/lunar_VERSION_ARCH.deb and OUT/lunar-appliance_VERSION_all.deb of this tree, the same bytes each time of the same commit.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
commit=$(git log -1 --format=%h --abbrev=10)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC CGO_ENABLED=0 GOFLAGS=-trimpath DH_VERBOSE=
version=${2:-0.7~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).g$commit}
maintainer=$(git log -1 --format='%an <%ae>')
work=$out/work
rm -rf "$work" "$out"/lunar_* "$out"/lunar-appliance_*
mkdir -p "$work"/{bin,units,man,completions,docs,debian}

go build -ldflags='-s -w' -o "$work/bin/" ./appliance/cmd/...
go run -tags man ./appliance/cmd/lunarctl "$work/man" systemd/deb/lunard.8.md systemd/deb/lunar-appliance.7.md
env -u LUNAR_SOCKET "$work/bin/lunarctl" completion bash >"$work/completions/lunarctl"
env -u LUNAR_SOCKET "$work/bin/lunarctl" completion zsh >"$work/completions/_lunarctl"
env -u LUNAR_SOCKET "$work/bin/lunarctl" completion fish >"$work/completions/lunarctl.fish"
go version -m "$work/bin/lunard" "$work/bin/lunarctl" | awk '$1 == "dep" { print $2, $3, $4 }' | sort -u >"$work/modules"
cp systemd/*.service systemd/*.socket systemd/*.target "$work/units/"
cp README.md appliance/docs/*.md "$work/docs/"
cp -r systemd/appliance "$work/"
cp systemd/deb/lunard.toml "$work/"
cp -r systemd/monitoring "$work/"

cp systemd/deb/{copyright,rules,lunar.*,lunar-appliance.*} "$work/debian/"
rm "$work"/debian/*.md
sed "s/@MAINTAINER@/$maintainer/" systemd/deb/control >"$work/debian/control"
cat >"$work/debian/changelog" <<EOF
lunar ($version) unstable; urgency=medium

  * Built from commit $commit.

 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
EOF
chmod -R u=rwX,go=rX "$work"
(cd "$work" && debian/rules binary)
