// Package cluster keeps what must outlive a restart and what several nodes must agree on: volumes,
// targets with their LUN maps, SCSI reservations that persist through power loss, and the event log.
//
// The store is etcd: a single member embedded in this process by default, which listens on no port
// and syncs every write to disk before it is acknowledged, or an external one. It is never on the
// path of an I/O. Every change is one transaction, guarded by the revision that was read.
//
// The caller opens one DB per process, passes contexts with deadlines, and closes it last.
// Errors wrap the sentinels of this package.
package cluster
