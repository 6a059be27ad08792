#!/bin/sh
# leftovers.sh DIR: fails, and says what, when something that worked under DIR is still there:
# a process started with TMPDIR=DIR, a mount, a loop device, a network namespace, a file.
set -u
dir=$1
left=0

report() {
	[ -n "$2" ] || return 0
	printf 'left behind: %s\n%s\n' "$1" "$2" >&2
	left=1
}

processes() {
	grep -lzxF "TMPDIR=$dir" /proc/[0-9]*/environ 2>/dev/null | while IFS=/ read -r _ _ pid _; do
		printf '%s %s\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline")"
	done
}

report processes "$(processes)"
report mounts "$(grep -F "$dir" /proc/self/mountinfo)"
report 'loop devices' "$(losetup --list --noheadings --output NAME,BACK-FILE | grep -F "$dir")"
report 'network namespaces' "$(ip netns list 2>/dev/null | grep '^lunar-')"
report bridges "$(ip -brief link show type bridge 2>/dev/null | grep '^lunar-')"
report files "$(find "$dir" -mindepth 1 -maxdepth 1)"
exit $left
