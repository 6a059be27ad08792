// Package namespace shows the cluster's volumes as one tree of files, /ClusterStorage/VOLUME/PATH, by
// FUSE: the same on every node, as the volumes' coordinators have it.
//
// Reads and writes of an image go through the same volume.Image as iSCSI's, on the engine's lanes, from
// buffers of its pool: direct where the layout allows it, else redirected. Nothing is cached: files are
// open for direct I/O (FOPEN_DIRECT_IO), and names and attributes have time-outs of zero, so what one node
// changes the others see with their next call. What is not claimed gets a clear errno; the list is in
// appliance/docs/namespace.md.
//
// The caller's duties: Mount comes after the engine, and Close before the volumes and the engine close;
// the mount point belongs to one node alone. The process must not use the mount itself: it would wait
// for its own answer.
//
// The kernel's requests are read on the last lane, if Options.Watch can wait for them there: package fusedev. A
// read or write that needs nothing but the lane (express) is done and answered there; all others, and all without
// a Watch, are goroutines of go-fuse.
//
// Bounds: MaxInFlight I/Os by goroutines, each of MaxIO bytes at most, and as many express ones, are on lanes at
// once; others wait before them, MaxRequestBytes of requests in all; what more there is waits in the kernel.
package namespace
