// Package fusedev reads a FUSE connection's requests from /dev/fuse on a lane, and answers there what needs no
// more than a lane: most reads and writes. Such a request costs one read of the device, one I/O and one write of
// it, with no goroutine, no wake-up of another thread and no allocation. All other requests, and reads and writes
// that have to wait for something, go to a fuse.RawFileSystem, each on a goroutine.
//
// It is what go-fuse's own server does, which has a goroutine for every request; the protocol's other half, from
// a request's bytes to a RawFileSystem and back, is go-fuse's (fuse.ProtocolServer).
//
// The caller's duties: it mounts with the descriptor and unmounts; the lane outlives the server. Requests that are
// under way when the mount goes still end by themselves, then Done is closed.
//
// Bounds: Options.Transfers reads and writes on the lane; Options.Requests others on goroutines, behind which the
// kernel keeps what more there is. Interrupts are refused (ENOSYS): a call has an end of its own.
package fusedev
