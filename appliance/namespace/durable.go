package namespace

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// durable makes writes durable before their answer where a program asked for that: by O_SYNC or O_DSYNC, or of
// one write by RWF_DSYNC. The kernel leaves that to the file system, in the flags of each write.
type durable struct{ fuse.RawFileSystem }

// Write implements fuse.RawFileSystem.
func (d durable) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, status := d.RawFileSystem.Write(cancel, in, data)
	return d.synced(cancel, in, n, status)
}

// Writev implements fuse.RawFileSystem; go-fuse comes this way.
func (d durable) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	n, status := d.RawFileSystem.Writev(cancel, in, data)
	return d.synced(cancel, in, n, status)
}

func (d durable) synced(cancel <-chan struct{}, in *fuse.WriteIn, n uint32, status fuse.Status) (uint32, fuse.Status) {
	if status != fuse.OK || in.Flags&unix.O_DSYNC == 0 {
		return n, status
	}
	sync := fuse.FsyncIn{InHeader: in.InHeader, Fh: in.Fh}
	if status := d.Fsync(cancel, &sync); status != fuse.OK {
		return 0, status
	}
	return n, fuse.OK
}
