// Package heartbeat stamps, checks and answers the cluster's heartbeats in the kernel, by programs on the tcx
// hooks of each cluster interface. What they read and write is the wire format of netft/beat.
//
// Ingress: a heartbeat for this node and this network, rightly signed and newer than all before it, is
// stamped with the time of its arrival, and the kernel sends the answer itself, which tells how long ago this
// node's own daemon last beat. Anything forged, replayed, duplicated or reordered is counted and dropped. Egress:
// a beat of this node's daemon, rightly signed and newer than all before it, is stamped, and only that refreshes
// the age. So a peer sees two things apart: that the node lives, and that its daemon lives. A timer ticks, stamps
// a tick that came late (this kernel stood still: judge nobody yet), and reports paths that fell silent.
//
// Load needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, tcx (Linux 6.6) and the kernel's BTF; what is missing is in the
// error, which is ErrUnsupported then. Attach works in the network namespace of the calling thread. The caller
// closes the Heartbeat, and each Events before it.
//
// # Pinned
//
// Without Options.Pin everything goes when the process ends: peers see a dead node. With it, programs, maps and links
// are pinned in a folder of a bpf file system, such as /sys/fs/bpf/lunar. After a kill -9 the kernel goes on
// stamping and answering with an age that grows, so peers see a node that lives, with a daemon that does not. The
// next Load with the same folder takes stamps and counters over, and Attach replaces the programs in place. Close
// removes the pins; Unpin removes what a daemon left that will not come back. A reboot does, too.
package heartbeat
