// Package layout has the values that say where a file's data lies on a device: extents and the
// immutable map of them, a Layout. Terms are those of RFC 8154 (pNFS SCSI layouts).
//
// Everything here is a plain value: no I/O, no goroutine, no clock. All offsets and lengths are
// bytes. A Layout may be shared by any number of readers; whoever changes one gets a new one, which
// shares what did not change, so that the caller publishes it with one pointer.
package layout
