# Linux's own target in the guest, by configfs alone: two LUNs over dm-linear (which can grow) over the two spare virtio disks.
# usage: lio.sh IQN BYTES
set -e
iqn=$1 sectors=$(($2 / 512))
mkdir -p /etc/target /var/target/pr /var/target/alua
modprobe -a dm-mod target_core_mod target_core_iblock iscsi_target_mod
config=/sys/kernel/config/target
echo /var/target >$config/dbroot 2>/dev/null || true
portals=$config/iscsi/$iqn/tpgt_1
mkdir -p $config/iscsi
mkdir $config/iscsi/$iqn
mkdir $portals
number=0
for disk in /dev/vdb /dev/vdc; do
	number=$((number + 1))
	dmsetup create backing$number --table "0 $sectors linear $disk 0"
	store=$config/core/iblock_$number/lun$number
	mkdir -p $store
	echo udev_path=/dev/mapper/backing$number >$store/control
	echo 1 >$store/enable
	echo guest000$number >$store/wwn/vpd_unit_serial
	echo 1 >$store/attrib/emulate_tpu
	echo 1 >$store/attrib/emulate_tpws
	mkdir $portals/lun/lun_$number
	ln -s $store $portals/lun/lun_$number/store
done
mkdir $portals/np/127.0.0.1:3260
echo 0 >$portals/attrib/authentication
echo 0 >$portals/attrib/demo_mode_write_protect
echo 1 >$portals/attrib/generate_node_acls
echo 1 >$portals/attrib/cache_dynamic_acls
echo 1 >$portals/enable
