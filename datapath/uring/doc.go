// Package uring is the data path's I/O engine: asynchronous disk and socket I/O through io_uring.
//
// An Engine has one or more Rings. A Ring is one locked OS thread with one io_uring; everything
// that is submitted on it completes by a callback on that thread, in batches, without a goroutine
// or an allocation per I/O. The caller's duties:
//
//   - Submit, Cancel, Attach and all methods of a Socket are for the ring's own thread: for callbacks.
//     Any other goroutine enters by Post, or blocks in Engine.Do.
//   - A callback never blocks; what waits in it stops every connection of the ring.
//   - An Op and its Buf belong to the engine from Submit until Done. If Done finds Op.Held set, the
//     kernel still owns Buf (a request that could not be cancelled): see Op.Held.
//   - Buffers from the Pool are aligned for O_DIRECT and registered with the kernel; others work
//     too, a little slower.
//   - A busy ring keeps its P (GOMAXPROCS) while it waits for the kernel, which spares the Go scheduler
//     a hand-over per batch, as long as GOMAXPROCS exceeds the number of rings: leave Ps for the rest.
//   - Register, File.Close and Engine.Close wait for the rings, so they are never called in a callback.
//
// Bounds: Options.InFlight operations in the kernel and Options.Queue behind them per ring, then
// ErrQueueFull; on a block device, of all rings together, as many as its queue takes (nr_requests); Options.Sockets sockets per ring; MaxPosts functions waiting in Post.
package uring
