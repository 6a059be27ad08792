package guest

import "regexp"

func provisioning() []Case {
	return group("COMPARE AND WRITE, WRITE SAME, UNMAP, GET LBA STATUS",
		Case{Shell: `random 512 /run/old; random 512 /run/new; put $DEV 4096 /run/old; sg_compare_and_write --in=/run/old --inw=/run/new --lba=4096 $DEV && same $PEER 4096 /run/new`,
			Title: `sg_compare_and_write --lba=4096, equal: written`},
		Case{Shell: `random 512 /run/old; random 512 /run/new; put $DEV 4096 /run/new; sg_compare_and_write --quiet --in=/run/old --inw=/run/old --lba=4096 $DEV; s=$?; same $PEER 4096 /run/new && exit $s`,
			Title: `sg_compare_and_write --lba=4096, unequal: not written`, Want: exit(`14`)},
		Case{Shell: `random 4096 /run/old; random 4096 /run/new; put $DEV 4200 /run/old; sg_compare_and_write --fua --num=8 --xferlen=8192 --in=/run/old --inw=/run/new --lba=4200 $DEV && same $PEER 4200 /run/new`,
			Title: `sg_compare_and_write --fua --num=8`, Want: anyExit},
		Case{Shell: `verified 5000 65536; sg_write_same --10 --lba=5000 --num=128 $DEV && zero $PEER 5000 128`, Title: `sg_write_same --10 --num=128 (zeroes)`},
		Case{Shell: `random 512 /run/in; for i in 1 2 3 4 5 6 7 8; do cat /run/in; done >/run/eight; sg_write_same --16 --lba=5200 --num=8 --in=/run/in $DEV && same $PEER 5200 /run/eight`,
			Title: `sg_write_same --16 --num=8 --in=PATTERN`},
		Case{Shell: `verified 5300 65536; sg_write_same --16 --ndob --lba=5300 --num=128 $DEV && zero $PEER 5300 128`, Title: `sg_write_same --16 --ndob --num=128`, Want: anyExit},
		Case{Shell: `verified 5504 65536 && sg_write_same --10 --unmap --lba=5504 --num=128 $DEV && zero $PEER 5504 128`, Title: `sg_write_same --10 --unmap --num=128`},
		Case{Shell: `verified 6144 1048576 && sg_write_same --unmap --lba=6144 --num=2048 $DEV && zero $PEER 6144 2048`, Title: `sg_write_same --16 --unmap --num=2048`},
		Case{Shell: `sg_write_same --32 --lba=5700 --num=8 $DEV`, Keep: lines(`(?i)sense|illegal|support`), Want: anyExit},
		Case{Shell: `sg_write_same --16 --lba=655300 --num=100 $DEV`, Keep: lines(`(?i)sense|illegal|range`), Want: exit(`[1-9]\d*`)},
		Case{Shell: `verified 16384 4194304 && sg_unmap --force --lba=16384 --num=8192 $DEV && zero $PEER 16384 8192 && echo zeroes`, Title: `sg_unmap --lba=16384 --num=8192, read back`},
		Case{Shell: `verified 32768 1048576 && sg_unmap --force --lba=32768,33280,33792 --num=8,64,256 $DEV && zero $PEER 33792 256 && zero $PEER 33280 64`, Title: `sg_unmap, three descriptors`},
		Case{Shell: `sg_unmap --force --lba=655300 --num=100 $DEV`, Keep: lines(`(?i)sense|illegal|range`), Want: exit(`[1-9]\d*`)},
		Case{Shell: `verified 40960 1048576 && sg_get_lba_status --lba=40960 $DEV`, Title: `sg_get_lba_status, written blocks`,
			Keep: lines(`LBA|(?i)illegal|invalid|support`), Want: lines(`^0: .*mapped`)},
		Case{Shell: `sg_unmap --force --lba=40960 --num=2048 $DEV && sg_get_lba_status --lba=40960 $DEV`, Title: `sg_get_lba_status, unmapped blocks`,
			Keep: lines(`LBA|(?i)illegal|invalid|support`), Want: lines(`^0: .*deallocated`)},
		Case{Shell: `sg_get_lba_status --lba=655360 $DEV`, Keep: lines(`(?i)illegal|invalid|range|support`), Want: exit(`[1-9]\d*`)},
		Case{Shell: `verified 0 8388608 && blkdiscard --offset 1048576 --length 4194304 $DEV && zero $PEER 2048 8192 && echo zeroes`, Title: `blkdiscard --offset 1MiB --length 4MiB, read back`},
		Case{Shell: `verified 0 8388608 && blkdiscard --zeroout --offset 1048576 --length 4194304 $DEV && zero $PEER 2048 8192 && echo zeroes`, Title: `blkdiscard --zeroout, read back`},
		Case{Shell: `blkdiscard --secure $DEV`, Want: exit(`[1-9]\d*`)},
		Case{Shell: `blkdiscard $DEV && cmp -n 335544320 $PEER /dev/zero && echo zeroes`, Title: `blkdiscard, the whole LUN, read back`},
	)
}

func copying() []Case {
	return group("EXTENDED COPY",
		Case{Shell: `sg_copy_results --params $DEV`, Keep: lines(`Maximum|Held|implemented|descriptor|(?i)illegal|invalid`)},
		Case{Shell: `random 4194304 /run/in; put $DEV 0 /run/in; sg_xcopy if=$DEV of=$COPY bs=512 count=8192 skip=0 seek=2048 && same $COPY 2048 /run/in && echo equal`,
			Title: `sg_xcopy if=$DEV of=$COPY count=8192, between LUNs`, Keep: lines(`(?i)equal|error|sense|invalid|fail|differ`)},
		Case{Shell: `random 1048576 /run/in; put $DEV 0 /run/in; sg_xcopy if=$DEV of=$DEV bs=512 count=2048 skip=0 seek=65536 && same $PEER 65536 /run/in && echo equal`,
			Title: `sg_xcopy if=$DEV of=$DEV count=2048, inside one LUN`, Keep: lines(`(?i)equal|error|sense|invalid|fail|differ`)},
		Case{Shell: `random 524800 /run/in; put $DEV 7 /run/in; sg_xcopy if=$DEV of=$COPY bs=512 bpt=100 count=1025 skip=7 seek=9001 && same $COPY 9001 /run/in && echo equal`,
			Title: `sg_xcopy bpt=100 count=1025 skip=7 seek=9001`, Keep: lines(`(?i)equal|error|sense|invalid|fail|differ`)},
		Case{Shell: `sg_xcopy if=$DEV of=$COPY bs=512 count=16 skip=655352 seek=0`, Title: `sg_xcopy past the source's end`,
			Keep: lines(`(?i)sense|invalid|fail|range`), Want: exit(`[1-9]\d*`)},
	)
}

func reservations() []Case {
	cases := []Case{
		{Shell: `sg_persist -c $DEV`, Keep: lines(`: 1$|Exclusive|Allow|supported`)},
		{Shell: `unreserved; pr $DEV --register -S 0xa && pr $PEER --register -S 0xb && keys`, Title: `sg_persist --register by both; -k`, Want: lines(`^0: 0xa 0xb$`)},
		{Shell: `pr $DEV --register -K 0x1 -S 0x2`, Title: `sg_persist --register, wrong key`, Want: exit(`24`)},
		{Shell: `pr $DEV --register-ignore -S 0xaa && keys`, Title: `sg_persist --register-ignore; -k`, Want: lines(`^0: 0xaa 0xb$`)},
		{Shell: `sg_persist -s $DEV`, Keep: lines(`Key|holder|target port`)},
		{Shell: `pr $DEV --reserve -K 0xaa -T 5 && holder`, Title: `sg_persist --reserve -T 5; -r`},
		{Shell: `pr $PEER --reserve -K 0xb -T 1`, Title: `sg_persist --reserve by the other`, Want: exit(`24`)},
		{Shell: `pr $PEER --release -K 0xb -T 5; holder`, Title: `sg_persist --release by the other: reservation stays`, Want: lines(`Key=0xaa`)},
	}
	for _, kind := range []string{"1", "3", "5", "6", "7", "8"} {
		cases = append(cases, Case{Shell: `reserved ` + kind, Title: `sg_persist --reserve -T ` + kind + `: who may read and write`, Want: reservedWant[kind]})
	}
	return group("Persistent reservations, by two initiators", append(cases, takeover()...)...)
}

// reservedWant is table "allowed commands" of SPC-4 clause 5.13 for the six types.
var reservedWant = map[string]*regexp.Regexp{
	"1": reservedTable("read ok, write conflict", "read ok, write conflict"),
	"3": reservedTable("read conflict, write conflict", "read conflict, write conflict"),
	"5": reservedTable("read ok, write conflict", "read ok, write ok"),
	"6": reservedTable("read conflict, write conflict", "read ok, write ok"),
	"7": reservedTable("read ok, write conflict", "read ok, write ok"),
	"8": reservedTable("read conflict, write conflict", "read ok, write ok"),
}

func reservedTable(unregistered, registered string) *regexp.Regexp {
	return lines(`^0: b unregistered: ` + unregistered + `; b registered: ` + registered + `; a: read ok, write ok; released: b write ok$`)
}

func takeover() []Case {
	const begin = `unreserved; pr $DEV --register -S 0xa && pr $PEER --register -S 0xb && pr $DEV --reserve -K 0xa -T 5 && `
	return []Case{
		{Shell: begin + `pr $PEER --preempt -K 0xb -S 0xa -T 5 && keys && holder && echo a: write $(writing $DEV)`, Title: `sg_persist --preempt the holder (type 5)`,
			Want: lines(`^0: 0xb; Key=0xb .*; a: write conflict`)},
		{Shell: begin + `pr $PEER --preempt-abort -K 0xb -S 0xa -T 5 && keys && holder && echo a: write $(writing $DEV)`, Title: `sg_persist --preempt-abort the holder (type 5)`,
			Want: lines(`^0: 0xb; Key=0xb .*; a: write conflict`)},
		{Shell: begin + `sg_turs $PEER; pr $PEER --clear -K 0xb && echo keys: $(keys) && holder`, Title: `sg_persist --clear; -k; -r`,
			Keep: lines(`keys|reservation`), Want: lines(`^0: keys:; NO reservation`)},
		{Shell: `unreserved; pr $DEV --register -S 0xa --param-aptpl && sg_persist -c $DEV; unreserved`, Title: `sg_persist --register --param-aptpl; -c`, Keep: lines(`PTPL_A|Persist Through Power Loss Activate`), Want: anyExit},
		{Shell: `unreserved; sg_raw $DEV 16 00 00 00 00 00 >/dev/null 2>&1; echo reserve $(outcome $?), b: write $(writing $PEER); sg_raw $DEV 17 00 00 00 00 00 >/dev/null 2>&1; echo release $(outcome $?), b: write $(writing $PEER)`,
			Title: `sg_raw RESERVE(6), RELEASE(6)`, Want: lines(`^0: (reserve ok, b: write conflict; release ok|reserve exit-9, b: write ok; release exit-9), b: write ok$`)},
	}
}
