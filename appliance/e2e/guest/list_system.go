package guest

import (
	"context"
	"time"
)

func fileSystems() []Case {
	return group("File systems",
		Case{Shell: `mkfs.ext4 -q -F $DEV`},
		Case{Shell: `files $DEV /mnt`, Title: `mount (ext4), 40 files, umount, mount, sha256sum -c`, Limit: 4 * time.Minute},
		Case{Shell: `trim $DEV /mnt`, Title: `fstrim -v (ext4)`, Keep: lines(`trimmed`), Want: lines(`^0: .*trimmed`)},
		Case{Shell: `e2fsck -f -n $DEV`, Keep: lines(`files`)},
		Case{Shell: `mkfs.xfs -q -f $DEV`, Limit: 4 * time.Minute},
		Case{Shell: `files $DEV /mnt`, Title: `mount (xfs), 40 files, umount, mount, sha256sum -c`, Limit: 4 * time.Minute},
		Case{Shell: `trim $DEV /mnt`, Title: `fstrim -v (xfs)`, Keep: lines(`trimmed`), Want: lines(`^0: .*trimmed`)},
		Case{Shell: `xfs_repair -n $DEV`, Keep: lines(`(?i)error|corrupt|bad `), Limit: 4 * time.Minute},
		Case{Shell: `mkfs.ext4 -q -F -E discard $COPY && mount -o discard $COPY /mnt && random 33554432 /mnt/a && sync && rm /mnt/a && sync && umount /mnt && e2fsck -f -n $COPY`,
			Title: `mount -o discard (ext4), write, rm, umount, e2fsck -fn`, Keep: lines(`files`), Limit: 4 * time.Minute},
		Case{Shell: `multipathed`, Title: `multipathd: two paths, one map; write, read`, Want: lines(`^0: 2 paths ready`)},
	)
}

// settings logs in anew under other parameters, each time with verified I/O.
func settings() []Case {
	return group("Sessions under other parameters, with verified I/O",
		Case{Shell: `relogin 'node.conn[0].iscsi.HeaderDigest' CRC32C 'node.conn[0].iscsi.DataDigest' CRC32C`, Title: `HeaderDigest, DataDigest = CRC32C`,
			Want: lines(`^0: HeaderDigest=CRC32C DataDigest=CRC32C`)},
		Case{Shell: `relogin node.session.iscsi.InitialR2T Yes node.session.iscsi.ImmediateData No`, Title: `InitialR2T=Yes, ImmediateData=No`,
			Want: lines(`^0: .*ImmediateData=No InitialR2T=Yes`)},
		Case{Shell: `relogin node.session.iscsi.InitialR2T Yes`, Title: `InitialR2T=Yes`, Want: lines(`^0: .*ImmediateData=Yes InitialR2T=Yes`)},
		Case{Shell: `relogin 'node.conn[0].iscsi.MaxRecvDataSegmentLength' 4096 'node.conn[0].iscsi.MaxXmitDataSegmentLength' 4096`, Title: `MaxRecvDataSegmentLength, MaxXmitDataSegmentLength = 4096`},
		Case{Shell: `relogin node.session.iscsi.FirstBurstLength 1024 node.session.iscsi.MaxBurstLength 4096`, Title: `FirstBurstLength=1024, MaxBurstLength=4096`},
		Case{Shell: `relogin node.session.cmds_max 16 node.session.queue_depth 1`, Title: `cmds_max=16, queue_depth=1`},
	)
}

func resets() []Case {
	const after = `; s=$?; sg_turs $DEV >/dev/null 2>&1; sg_turs $PEER >/dev/null 2>&1; sg_turs $DEV && verified 0 1048576 && exit $s`
	return group("Task management, seen from Linux",
		Case{Shell: `sg_reset --device --no-escalate $DEV` + after, Title: `sg_reset --device; then verified I/O`},
		Case{Shell: `sg_turs $PEER >/dev/null; sg_reset --device --no-escalate $DEV; sg_raw -v $PEER 00 00 00 00 00 00`, Title: `sg_reset --device: what the other initiator is told`,
			Keep: lines(`(?i)reset|power on|Attention`), Want: lines(`(?i)reset`)},
		Case{Shell: `sg_reset --target --no-escalate $DEV` + after, Title: `sg_reset --target; then verified I/O`},
		Case{Shell: `modprobe -a inet_diag tcp_diag; ss -K dport = :${PORTAL#*:} >/dev/null; for i in $(seq 60); do sg_turs $DEV >/dev/null 2>&1 && sg_turs $PEER >/dev/null 2>&1 && break; sleep 0.5; done; verified 0 1048576`,
			Title: `ss -K (both connections cut); then verified I/O`},
		Case{Shell: `(random 8388608 /run/in; for i in 1 2 3; do put $DEV 0 /run/in || echo write failed; done) & for i in 1 2 3; do sleep 0.2; sg_reset --device --no-escalate $DEV; done; wait; same $PEER 0 /run/in && echo intact`,
			Title: `sg_reset --device, three times under writes`, Keep: lines(`intact|differ|failed`), Want: lines(`^0: intact$`)},
	)
}

func growth() []Case {
	grow := func(ctx context.Context, t Target) error { return t.Resize(ctx, 2, grownBytes) }
	return group("Growing a LUN, leaving and coming back",
		Case{Host: grow, Shell: `sg_turs $COPY >/dev/null 2>&1; sg_readcap --16 $COPY`, Title: `LUN 2 grown to 384 MiB; sg_readcap --16`, Keep: lines(`Last LBA`), Want: lines(`Last LBA=786431`)},
		Case{Shell: `iscsiadm -m session -R >/dev/null; blockdev --getsize64 $COPY`, Title: `iscsiadm -m session -R; blockdev --getsize64`, Want: lines(`^0: 402653184$`)},
		Case{Shell: `random 1048576 /run/in; put $COPY 784384 /run/in && same $COPY 784384 /run/in && echo equal`, Title: `write and read the last MiB`, Want: lines(`^0: equal$`)},
		Case{Shell: `mount $COPY /mnt && resize2fs $COPY 2>/dev/null && umount /mnt && e2fsck -f -n $COPY`, Title: `resize2fs (mounted), e2fsck -fn`, Keep: lines(`files`)},
		Case{Shell: `random 4194304 /run/in; put $DEV 0 /run/in; logout && login && same $PEER 0 /run/in && echo equal`, Title: `logout, login, read what was written`, Want: lines(`^0: equal$`)},
	)
}

func aftermath() []Case {
	return group("What the kernel logged",
		Case{Shell: `dmesg | grep -E 'I/O error|Medium Error|Hardware Error|beyond end' | sed 's/^\[[^]]*\] *//' | sort | uniq -c; true`, Title: `dmesg: I/O errors`, Want: anyExit},
		Case{Shell: `dmesg | grep -Ei 'detected conn error|ping timeout|timed out|BUG:|WARNING:' | sed 's/^\[[^]]*\] *//' | sort | uniq -c; true`, Title: `dmesg: connection errors, warnings`, Want: anyExit},
	)
}
