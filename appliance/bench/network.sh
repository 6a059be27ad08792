#!/bin/sh
# Runs a command in a network namespace of its own whose loopback uses cubic, Debian's default
# congestion control: a host that was set to another one would measure that instead, for all targets.
set -eu
[ -n "${LUNAR_OWN_NETWORK:-}" ] || LUNAR_OWN_NETWORK=1 exec unshare --net "$0" "$@"
ip link set lo up
for net in 127.0.0.0/8 127.0.0.1; do
	ip route replace local $net dev lo table local proto kernel scope host src 127.0.0.1 congctl cubic
done
exec "$@"
