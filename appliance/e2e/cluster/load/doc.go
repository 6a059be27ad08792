// Package load is an initiator that keeps account: writers that know what was acknowledged and look at it
// through other nodes, and a record of how long every command took, by kind, path and time.
//
// A Session is one iSCSI session and one command at a time. A Disk is a LUN with several paths: a command
// whose path is lost is sent again, by the same path or another. Anything that a target answers but GOOD, a
// unit attention or a request to come again later is an I/O error and ends its caller.
package load
