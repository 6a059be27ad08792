// Command redirected measures redirected I/O beside qemu-nbd: a coordinator's image, served by
// datapath/wire/nbd, and a file of the same size on a file system of the same kind, served by qemu-nbd,
// through the same client, in turns.
//
//	appliance/bench/network.sh build/lab/redirected [-tls] [-veth] [-blocking] [-rounds N] [-time D] [-dir FOLDER]
//
// It needs root, qemu-nbd, mkfs.xfs, and 2 GiB in FOLDER. It leaves nothing there.
package main
