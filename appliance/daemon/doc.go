// Package daemon is lunard: the composition root, the only place where all parts of a node meet.
//
// It opens the cluster database, the io_uring engine, the volumes and the iSCSI server, restores
// what was exported before, and joins the front end to the data path: a ring is a lane, a volume's
// image is a SCSI backend. Its Node implements the control API's interfaces.
//
// Command is the whole program. A caller that embeds it uses Open, Run and Close, in that order.
package daemon
