// Package cluster keeps what must outlive a restart and what several nodes must agree on: volumes,
// targets with their LUN maps, SCSI reservations that persist through power loss, and the event log.
//
// The store is etcd: a single member embedded in this process by default, which listens on no port
// and syncs every write to disk before it is acknowledged, or an external one. It is never on the
// path of an I/O. Every change is one transaction, guarded by the revision that was read.
//
// A node is alone until Init makes a cluster of it, or Join takes it into one with a one-time token. From
// then on the nodes share one database: 1, 3 or 5 of them run an etcd member each (plan says which), the
// others reach those over the network. All ports speak mutual TLS with certificates of the cluster's own
// CA, and a certificate is looked up in the revocation list at every handshake. DB is the same through
// all that: its calls wait while the way to the database changes, and its watches go on, except into
// another cluster's database.
//
// The caller opens one DB per process, passes contexts with deadlines, and closes it last.
// Errors wrap the sentinels of this package.
package cluster
