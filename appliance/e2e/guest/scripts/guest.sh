# Sourced by every command in the guest (BASH_ENV). PORTAL and IQN name the target. Two initiators, a and b, see its two LUNs:
#   DEV   LUN 1 as a sees it    PEER  LUN 1 as b sees it    COPY  LUN 2 as a sees it
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
[ -e /run/devices ] && . /run/devices

# device INITIATOR LUN: the block device of that LUN in that initiator's session
device() {
	local session block
	for session in /sys/class/iscsi_session/session*; do
		[ "$(cat "$session/initiatorname")" = "iqn.2026-01.test.guest:$1" ] || continue
		for block in "$session"/device/target*/*:"$2"/block/*; do
			[ -e "$block" ] && echo "/dev/${block##*/}" && return
		done
	done
	echo "initiator $1 sees no LUN $2" >&2
	return 1
}

# devices: waits for both LUNs in both sessions and notes their names
devices() {
	local try dev peer copy
	for try in $(seq 100); do
		dev=$(device a 1 2>/dev/null) && peer=$(device b 1 2>/dev/null) && copy=$(device a 2 2>/dev/null) && break
		[ "$try" = 100 ] && { device a 1; device b 1; device a 2; return 1; } >/dev/null
		sleep 0.2
	done
	udevadm settle -t 60
	printf 'export DEV=%s PEER=%s COPY=%s\n' "$dev" "$peer" "$copy" >/run/devices
	. /run/devices
}

# nodes: two records of the target, one per initiator; without a discovery, as slirp hides the portal's address
nodes() {
	local i
	for i in a b; do
		iscsiadm -m iface -I $i -o new >/dev/null
		iscsiadm -m iface -I $i -o update -n iface.initiatorname -v iqn.2026-01.test.guest:$i >/dev/null
		iscsiadm -m node -o new -T "$IQN" -p "$PORTAL,1" -I $i >/dev/null
	done
	# An emulated guest on a busy host may take longer than the usual 5 s to answer a NOP-In.
	setting 'node.conn[0].timeo.noop_out_timeout' 30
}

setting() { iscsiadm -m node -T "$IQN" -p "$PORTAL" -o update -n "$1" -v "$2"; }
login() { iscsiadm -m node -T "$IQN" -p "$PORTAL" --login >/dev/null && devices; }
logout() { iscsiadm -m node -T "$IQN" -p "$PORTAL" --logout >/dev/null && rm -f /run/devices; }

# relogin NAME VALUE ...: both sessions anew with these settings, what was negotiated, verified I/O, then back again
relogin() {
	local back=() status
	logout || return
	while [ $# -gt 0 ]; do
		back+=("$1" "$(iscsiadm -m node -T "$IQN" -p "$PORTAL" -I a | sed -n "s/^${1//[\[\]]/.} = //p")")
		setting "$1" "$2"; shift 2
	done
	login && negotiated && verified 0 16777216
	status=$?
	logout
	set -- "${back[@]}"
	while [ $# -gt 0 ]; do setting "$1" "$2"; shift 2; done
	login || return
	return $status
}

negotiated() {
	iscsiadm -m session -P 2 | awk '/Target:/ {n++} n == 1 || !n' |
		sed -n 's/^[[:space:]]*\(HeaderDigest\|DataDigest\|MaxRecvDataSegmentLength\|MaxXmitDataSegmentLength\|FirstBurstLength\|MaxBurstLength\|ImmediateData\|InitialR2T\|MaxOutstandingR2T\): /\1=/p' | awk '!seen[$0]++' | paste -sd' '
}

random() { head -c "$1" /dev/urandom >"$2"; }
# same DEVICE LBA FILE: what the device holds there is the file, read past every cache
same() {
	blockdev --flushbufs "$1"
	local bytes=$(stat -c %s "$3")
	dd if="$1" bs=1M skip=$(($2 * 512)) count="$bytes" iflag=direct,skip_bytes,count_bytes status=none | cmp - "$3"
}
zero() { head -c $(($3 * 512)) /dev/zero >/run/zeroes && same "$1" "$2" /run/zeroes; }
put() { dd if="$3" of="$1" bs=1M seek=$(($2 * 512)) oflag=direct,seek_bytes conv=notrunc,fsync status=none; }

# verified LBA BYTES: random data written by a is what b reads
verified() {
	random "$2" /run/random && put "$DEV" "$1" /run/random && same "$PEER" "$1" /run/random && echo "b read what a wrote"
	local status=$?
	rm -f /run/random
	return $status
}

# reading, writing DEVICE: one block by READ(10), WRITE(10) at LBA 600000; what came of it as a word
reading() { once_more sg_raw --readonly -r 512 "$1" 28 00 00 09 27 c0 00 00 01 00; }
writing() { once_more sg_raw -s 512 -i /run/block "$1" 2a 00 00 09 27 c0 00 00 01 00; }
# once_more: a unit attention (exit 6) is taken and the command sent again
once_more() {
	[ -e /run/block ] || random 512 /run/block
	"$@" >/dev/null 2>&1
	local status=$?
	[ $status = 6 ] && { "$@" >/dev/null 2>&1; status=$?; }
	outcome $status
}
outcome() { case $1 in 0) echo ok ;; 24) echo conflict ;; *) echo "exit-$1" ;; esac }

# pr DEVICE ARGUMENTS: a PERSISTENT RESERVE OUT; quiet unless it fails, with a unit attention taken first
pr() {
	local device=$1 text status
	shift
	sg_turs "$device" >/dev/null 2>&1
	text=$(sg_persist --no-inquiry --out "$@" "$device" 2>&1)
	status=$?
	[ $status = 0 ] || echo "$text" | tail -1
	return $status
}
keys() { sg_turs "$DEV" >/dev/null 2>&1; sg_persist --no-inquiry -k "$DEV" | grep -o '0x[0-9a-f]*$' | grep -v '^0x$' | sort -u | paste -sd' '; }
holder() { sg_turs "$DEV" >/dev/null 2>&1; sg_persist --no-inquiry -r "$DEV" | grep -Eo 'NO reservation|Key=.*|type: .*' | paste -sd' '; }
# unreserved: no key and no reservation, whatever the case before has left
unreserved() {
	pr "$DEV" --register-ignore -S 0xa0 >/dev/null
	pr "$DEV" --clear -K 0xa0 >/dev/null
	sg_turs "$DEV" >/dev/null 2>&1
	sg_turs "$PEER" >/dev/null 2>&1
	true
}

# reserved TYPE: a holds a reservation of this type: what may b do without a key, with a key, and what may a?
reserved() {
	local type=$1
	unreserved
	pr "$DEV" --register -S 0xa && pr "$DEV" --reserve -K 0xa -T "$type" || return
	echo "b unregistered: read $(reading "$PEER"), write $(writing "$PEER")"
	pr "$PEER" --register -S 0xb || return
	echo "b registered: read $(reading "$PEER"), write $(writing "$PEER")"
	echo "a: read $(reading "$DEV"), write $(writing "$DEV")"
	pr "$DEV" --release -K 0xa -T "$type" || return
	echo "released: b write $(writing "$PEER")"
	unreserved
}

# files DEVICE DIRECTORY: many files written, unmounted, mounted again and compared
files() {
	local i
	mkdir -p "$2" && mount "$1" "$2" || return
	for i in $(seq 40); do random $((i * i * 997)) "$2/file$i" || return; done
	mkdir "$2/deep" && cp "$2"/file? "$2/deep/" && ln "$2/file1" "$2/deep/link" && rm "$2/file7"
	(cd "$2" && find . -type f ! -name sums -print0 | sort -z | xargs -0 sha256sum >/run/sums) && umount "$2" && blockdev --flushbufs "$1" &&
		mount "$1" "$2" && (cd "$2" && sha256sum --quiet -c /run/sums) && echo "$(wc -l </run/sums) files as written"
	local status=$?
	umount "$2" || status=$?
	return $status
}
trim() {
	local status
	mount "$1" "$2" || return
	rm -rf "$2"/file?? "$2/deep"; sync
	fstrim -v "$2"; status=$?
	umount "$2" || status=$?
	return $status
}

# multipathed: multipathd over the two sessions, I/O through its map, and away with it
multipathed() {
	local id map status device
	printf 'defaults {\n\tfind_multipaths no\n\tuser_friendly_names no\n}\nblacklist {\n\tdevnode "^(vd|dm-)"\n}\n' >/etc/multipath.conf
	id=$(udevadm info -q property --property=ID_SERIAL --value "$DEV")
	map=/dev/mapper/$id
	# Who asked for the size while the other held a reservation has none since.
	for device in "$DEV" "$PEER"; do
		echo 1 >"/sys/block/$(basename "$(readlink -f "$device")")/device/rescan"
	done
	modprobe dm-multipath && systemctl start multipathd || return
	for _ in $(seq 60); do
		[ "$(ready "$id")" = 2 ] && break
		sleep 0.5
	done
	echo "$(ready "$id") paths ready"
	random 4194304 /run/in && put "$map" 0 /run/in && same "$map" 0 /run/in && same "$PEER" 0 /run/in && echo "read as written"
	status=$?
	multipathd -k'disablequeueing maps' >/dev/null
	systemctl stop multipathd
	for _ in $(seq 20); do
		multipath -F >/dev/null 2>&1
		[ -e "$map" ] || return $status
		sleep 0.5
	done
	echo "the map stays"
	return 1
}
ready() { multipath -ll "$1" 2>/dev/null | grep -c 'active ready'; }

# stranger: a login to a target name that nobody serves
stranger() {
	local status
	iscsiadm -m node -o new -T "$IQN:nobody" -p "$PORTAL,1" -I a >/dev/null || return 99
	iscsiadm -m node -T "$IQN:nobody" -p "$PORTAL" -o update -n node.session.initial_login_retry_max -v 1
	iscsiadm -m node -T "$IQN:nobody" -p "$PORTAL" --login
	status=$?
	iscsiadm -m node -T "$IQN:nobody" -p "$PORTAL" -o delete
	return $status
}
