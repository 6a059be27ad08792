// Package nbd is redirected I/O between nodes: the NBD protocol as its standard has it
// (NetworkBlockDevice/nbd, doc/proto.md), so that nbdinfo, nbdcopy, qemu-img and QEMU can be used to
// test and debug it. Server serves Exports, Client is its other end, DataPath keeps a Client per image
// for a volume. Fixed newstyle handshake, TLS by STARTTLS, simple and structured replies, block sizes,
// FUA, FLUSH, TRIM, CACHE, WRITE_ZEROES, several connections, BLOCK_STATUS for base:allocation and, of an export that
// is Marked, qemu:dirty-bitmap:NAME.
//
// # Abandoned tries
//
// A try whose answer did not come may still be executed at any time later, and then would undo a
// younger write. So the connections of one Client form a set, which lives and dies as a whole: when one
// connection is lost, or a call that changes something is given up after it was sent, all are closed, and
// the next call opens a new set. A node's export name tells its incarnation and the number of the set
// (Name); the server ends every operation of the node's earlier sets on that image, by cancelling it and
// waiting for it, before the new set's first request is executed.
//
// # Buffers
//
// A call's buffer belongs to the Client until the call returns, and never afterwards: a late answer to a
// read that was given up is read into nothing, and where the answer is on its way into the buffer, or
// the request on its way out of it, the set is closed and the call returns when both have stopped.
//
// # The caller's duties
//
// Call Server.Stop and Client.Close or DataPath.Close, and wait for them. Export.Open refuses nodes and
// epochs that are over; this package only orders the tries of one node. Exports are called from many
// goroutines; their methods end soon after their ctx does.
package nbd
