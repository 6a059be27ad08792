# usage: lio-resize.sh LUN BYTES
set -e
disk=$(dmsetup table "backing$1" | cut -d' ' -f4)
dmsetup suspend "backing$1"
dmsetup load "backing$1" --table "0 $(($2 / 512)) linear $disk 0"
dmsetup resume "backing$1"
