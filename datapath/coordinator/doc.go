// Package coordinator is the one who has a volume mounted: it formats and mounts it, owns its name
// space, grants and recalls layouts of its images, and executes the I/O that holders may not do
// directly: what allocates, frees or unshares blocks, or has to be atomic.
//
// The mount is detached: it is in no mount namespace, and only this process's descriptors reach it.
// All file work is relative to it, beneath its root, without symbolic links or other mounts. Image
// files are opened with O_DIRECT alone, because holders write to their blocks behind the page cache.
//
// The rules that make direct access beside a mounted file system defined, by the names of the
// protocol's invariants:
//
//   - CommitBeforeGrant: fdatasync comes before an extent is granted (image.refresh).
//   - RecallBeforeChange: a change runs when every holder has returned its range (image.change).
//   - ExclusiveWrite, NoLeak: what is granted for writing is Written in the file system; what is
//     allocated ahead is written with zeroes, only where there was no data (image.fill).
//   - EpochOrder: a call of another epoch, or after the term's end, is refused (Coordinator.enterFor).
//   - Once: a file keeps the key of the call that made it; a retry looks for its own work (once.go).
//   - Atomic: what COMPARE AND WRITE uses is withheld from the holders until it is quiet (atomic.go).
//
// A term ends by Handover, with images open, or when the volume fails here (failed.go): then every call
// gets ErrStaleEpoch, and its caller waits for the next coordinator.
//
// The caller's duties: it hands in an epoch greater than every earlier one of this volume, makes
// sure that no other node has the volume mounted, calls from goroutines that may block, and closes
// every image before the Coordinator, or hands the volume over, and the Coordinator before the Device.
package coordinator
