package guest

import (
	"regexp"
	"slices"
)

// LUNBytes is the size of each of a run's two LUNs: XFS wants 300 MiB.
const LUNBytes = 320 << 20

// grownBytes is LUN 2 after its resize.
const grownBytes = 384 << 20

// List is the fixed list of commands, in the order in which they run.
func List() []Case {
	return slices.Concat(facts(), inquiry(), pages(), media(), provisioning(), copying(), reservations(), fileSystems(),
		settings(), resets(), growth(), aftermath())
}

func facts() []Case {
	return group("iSCSI and what Linux made of the LUN",
		Case{Shell: `iscsiadm -m discovery -t sendtargets -p $PORTAL`, Want: lines(`^0: .*IQN`)},
		Case{Shell: `negotiated`, Title: `iscsiadm -m session -P 2 (negotiated)`},
		Case{Shell: `stranger`, Title: `iscsiadm --login to a target that does not exist`, Keep: lines(`initiator reported`), Want: exit(`19|8|24`)},
		Case{Shell: `lsscsi -s $(lsscsi | grep -w $DEV | cut -d'[' -f2 | cut -d']' -f1)`, Title: `lsscsi -s`},
		Case{Shell: `lsblk -dno SIZE,LOG-SEC,PHY-SEC,MIN-IO,OPT-IO,RO,ROTA,DISC-GRAN,DISC-MAX $DEV`},
		Case{Shell: `cd /sys/class/block/${DEV#/dev/} && echo provisioning_mode=$(cat device/scsi_disk/*/provisioning_mode) write_cache=$(cat queue/write_cache | tr ' ' -) fua=$(cat queue/fua) write_zeroes_max=$(cat queue/write_zeroes_max_bytes) max_sectors_kb=$(cat queue/max_sectors_kb)`,
			Title: `/sys/block/*/queue`},
		Case{Shell: `a=$(/lib/udev/scsi_id -g -u $DEV) b=$(/lib/udev/scsi_id -g -u $PEER) c=$(/lib/udev/scsi_id -g -u $COPY); [ -n "$a" ] && [ "$a" = "$b" ] && [ "$a" != "$c" ] && echo same LUN by both sessions, other LUN differs`,
			Title: `scsi_id -g -u, LUN 1 by two sessions and LUN 2`},
		Case{Shell: `echo $(udevadm info -q property $DEV | sed -n 's/^\(ID_SERIAL\|ID_WWN\)=\(0x.\|.\).*/\1=\2…/p' | sort)`, Title: `udevadm info: ID_SERIAL, ID_WWN (their first digit)`, Want: lines(`ID_SERIAL=`)},
	)
}

func inquiry() []Case {
	cases := []Case{
		{Shell: `sg_turs -v $DEV`, Keep: lines(`sense|Unit`)},
		{Shell: `sg_luns $DEV`, Keep: lines(`^[0-9a-f]{16}|Lun list`)},
		{Shell: `sg_inq $DEV`, Keep: lines(`version=|CmdQue|TPGS|3PC|Vendor|Product`)},
		{Shell: `sg_readcap $DEV`, Keep: lines(`Last LBA|block length`)},
		{Shell: `sg_readcap --16 $DEV`, Keep: lines(`prov|lbprz|exponent|Lowest`)},
		{Shell: `sg_vpd -p 0 $DEV`, Keep: lines(`\[`)},
	}
	for _, page := range []string{"0x80", "0x83", "0x86", "0x88", "0x8f", "0xb0", "0xb1", "0xb2"} {
		cases = append(cases, Case{Shell: `sg_vpd -p ` + page + ` $DEV`, Want: vpdWant[page]})
	}
	return group("INQUIRY, capacity", cases...)
}

// vpdWant lets a target lack the pages that a disk may lack.
var vpdWant = map[string]*regexp.Regexp{"0x86": anyExit, "0x88": anyExit, "0x8f": anyExit}

func pages() []Case {
	return group("Operation codes, log and mode pages, ports",
		Case{Shell: `sg_opcodes --unsorted --compact $DEV | awk '/^ *[0-9a-f][0-9a-f]([, ]|$)/ {print $1}' | sort -u | paste -sd' '; exit ${PIPESTATUS[0]}`,
			Title: `sg_opcodes $DEV`},
		Case{Shell: `sg_opcodes --opcode=0x89 $DEV`, Keep: lines(`upport`)},
		Case{Shell: `sg_opcodes --tmf $DEV`, Keep: lines(`set|task|reset|Nexus|query`), Want: anyExit},
		Case{Shell: `sg_logs $DEV`, Keep: lines(`0x|log page`), Want: anyExit},
		Case{Shell: `sg_logs -p 0xc $DEV`, Keep: lines(`resource|Illegal|invalid`), Want: anyExit},
		Case{Shell: `sg_modes --six -p 8 $DEV`, Keep: lines(`^ *[0-9a-f]{2} |Mode data|WP=`)},
		Case{Shell: `sg_modes -p 0xa $DEV`, Keep: lines(`^ *[0-9a-f]{2} |WP=`)},
		Case{Shell: `sg_modes -a $DEV`, Keep: lines(`^>>|>> .*page`)},
		Case{Shell: `sdparm --get=WCE $DEV`, Keep: lines(`WCE`), Want: lines(`^[05]: WCE [01]`)},
		Case{Shell: `sdparm --clear=WCE $DEV && sdparm --get=WCE $DEV`, Keep: lines(`WCE|(?i)illegal|invalid|fail`), Want: anyExit},
		Case{Shell: `sdparm --set=WCE $DEV && sdparm --get=WCE $DEV`, Keep: lines(`WCE|(?i)illegal|invalid|fail`), Want: anyExit},
		Case{Shell: `sg_requests $DEV`},
		Case{Shell: `sg_rtpg --decode $DEV`, Keep: lines(`state|support|Relative|pref|Status`)},
		Case{Shell: `sg_stpg --active $DEV; sg_rtpg --decode $DEV | grep 'access state' | sed 's/.*: /now /'; sg_stpg --optimized $DEV >/dev/null 2>&1; true`,
			Title: `sg_stpg --active; sg_rtpg`, Keep: lines(`^Set Target|^now`), Want: anyExit},
		Case{Shell: `sg_senddiag -t $DEV`, Want: anyExit},
	)
}

func media() []Case {
	return group("Reading, writing, verifying",
		Case{Shell: `verified 0 33554432`, Title: `dd of=$DEV oflag=direct; dd if=$PEER iflag=direct | cmp (32 MiB)`},
		Case{Shell: `for n in 6 10 12 16; do random 65536 /run/in; sg_dd if=/run/in of=$DEV seek=1000 bs=512 blk_sgio=1 cdbsz=$n >/dev/null 2>/run/err && sg_dd if=$PEER skip=1000 bs=512 count=128 blk_sgio=1 cdbsz=$n of=/run/out >/dev/null 2>&1 && cmp /run/in /run/out && echo $n; done | paste -sd' '; grep -m1 sense /run/err; true`,
			Title: `sg_dd cdbsz=6, 10, 12, 16`, Want: lines(`^0: 6 10 12 16`)},
		Case{Shell: `random 65536 /run/in; sg_dd if=/run/in of=$DEV seek=2000 bs=512 blk_sgio=1 oflag=fua,dpo cdbsz=10 2>&1 | grep records; same $PEER 2000 /run/in`, Title: `sg_dd oflag=fua,dpo`},
		Case{Shell: `sg_dd if=$DEV of=/dev/null bs=512 skip=655359 count=2 bpt=2 blk_sgio=1`, Title: `sg_dd past the last block`,
			Keep: lines(`(?i)sense|range`), Want: exit(`[1-9]\d*`)},
		Case{Shell: `sg_verify --count=4096 $DEV`},
		Case{Shell: `sg_verify --16 --count=4096 $DEV`},
		Case{Shell: `random 4096 /run/in; put $DEV 3000 /run/in; sg_verify --16 --lba=3000 --count=8 --ndo=4096 --in=/run/in $DEV`,
			Title: `sg_verify --16 --ndo=4096, equal data`, Want: anyExit},
		Case{Shell: `random 4096 /run/in; sg_verify --16 --lba=3000 --count=8 --ndo=4096 --in=/run/in --quiet $DEV`,
			Title: `sg_verify --16 --ndo=4096, other data`, Want: exit(`14`)},
		Case{Shell: `random 4096 /run/in; sg_write_verify --lba=3100 --num=8 --in=/run/in $DEV && same $PEER 3100 /run/in`, Title: `sg_write_verify --lba=3100 --num=8, read back`},
		Case{Shell: `random 4096 /run/in; sg_write_verify --16 --lba=3200 --num=8 --in=/run/in $DEV && same $PEER 3200 /run/in`, Title: `sg_write_verify --16 --lba=3200 --num=8, read back`},
		Case{Shell: `sg_seek --pre-fetch --10 --lba=0 --num-blocks=64 $DEV`, Want: anyExit},
		Case{Shell: `sg_seek --pre-fetch --lba=0 --num-blocks=64 $DEV`, Want: anyExit},
		Case{Shell: `sg_sync $DEV`},
		Case{Shell: `sg_sync --16 --lba=100 --count=100 $DEV`},
		Case{Shell: `sg_start --stop $DEV; sg_turs $DEV; echo stopped: $?; sg_start --start $DEV && sg_turs $DEV`, Title: `sg_start --stop; sg_turs; sg_start --start; sg_turs`, Want: anyExit},
	)
}
