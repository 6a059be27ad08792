package namespace

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lunar/appliance/namespace/fusedev"
)

// express does on the lane what needs nothing else: reads and writes of whole sectors, inside of an image that
// stays open, when the pool has a buffer.
type express struct {
	ns   *Namespace
	lane int

	mu      sync.RWMutex                // guards what follows; held for moments
	handles map[uint64]*handle          // by the number that the kernel knows
	opening map[<-chan struct{}]*handle // by the request, until it has a number
}

func newExpress(ns *Namespace, lane int) *express {
	return &express{ns: ns, lane: lane, handles: map[uint64]*handle{}, opening: map[<-chan struct{}]*handle{}}
}

// Begin implements fusedev.Files.
func (x *express) Begin(t *fusedev.Transfer) bool {
	x.mu.RLock()
	h := x.handles[t.File]
	x.mu.RUnlock()
	if h == nil || t.Write && t.Flags&unix.O_DSYNC != 0 || !h.file.use.TryRLock() {
		return false
	}
	if x.start(t, h.file) {
		return true
	}
	h.file.use.RUnlock()
	return false
}

// start is Begin for who has f.use.
func (x *express) start(t *fusedev.Transfer, f *file) bool {
	if f.image == nil {
		return false
	}
	n, size := int64(t.Length), f.image.Size()
	if !t.Write {
		n = min(n, size-t.Offset)
	}
	if n <= 0 || t.Offset > size-n || (t.Offset|n)%sector != 0 {
		return false
	}
	p := x.ns.bridge.buffers.Get(int(n))
	if p == nil {
		return false
	}
	t.Buf, t.Owner = p, f
	if t.Write {
		copy(p, t.Data) // the disk wants it aligned and registered
		f.image.Write(x.lane, p, t.Offset, false, t.Done)
	} else {
		f.image.Read(x.lane, p, t.Offset, t.Done)
	}
	return true
}

// End implements fusedev.Files.
func (x *express) End(t *fusedev.Transfer, err error) syscall.Errno {
	f, ok := t.Owner.(*file)
	if !ok {
		return syscall.EIO
	}
	x.ns.bridge.buffers.Put(t.Buf)
	f.use.RUnlock()
	if err == nil {
		return 0
	}
	what := "read"
	if t.Write {
		what = "write"
	}
	return x.ns.refuse(what, f.place, err)
}

// note remembers the handle that the request of ctx opens.
func (x *express) note(ctx context.Context, h *handle) {
	x.mu.Lock()
	x.opening[ctx.Done()] = h
	x.mu.Unlock()
}

// number has the handle, if the request has opened one, known by fh.
func (x *express) number(request <-chan struct{}, fh uint64, status fuse.Status) {
	x.mu.Lock()
	if h := x.opening[request]; h != nil && status == fuse.OK {
		x.handles[fh] = h
	}
	delete(x.opening, request)
	x.mu.Unlock()
}

// numbered learns from go-fuse's answers how the kernel will call the handles. A request's channel tells it from
// all others: go-fuse gives it on in the context.
type numbered struct {
	fuse.RawFileSystem
	x *express
}

// Open implements fuse.RawFileSystem.
func (r numbered) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	status := r.RawFileSystem.Open(cancel, in, out)
	r.x.number(cancel, out.Fh, status)
	return status
}

// Create implements fuse.RawFileSystem.
func (r numbered) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	status := r.RawFileSystem.Create(cancel, in, name, out)
	r.x.number(cancel, out.Fh, status)
	return status
}

// Release implements fuse.RawFileSystem. Nothing is under way by the handle any more.
func (r numbered) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	r.x.mu.Lock()
	delete(r.x.handles, in.Fh)
	r.x.mu.Unlock()
	r.RawFileSystem.Release(cancel, in)
}
