package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// Bounds of the I/O.
const (
	MaxIO           = 1 << 20  // bytes of one request, and of one buffer
	MaxInFlight     = 64       // I/Os on lanes; as many again that had to wait for something first
	MaxRequestBytes = 96 << 20 // of requests that were read from the kernel; each counts MaxIO, whatever it holds
	maxBackground   = 64       // asynchronous requests that the kernel gives at once
)

// Volume is a folder at the top of the tree.
type Volume struct {
	ID   string // for good; the tree's calls take it
	Name string
}

// File describes an image.
type File struct {
	Path    string // within its volume
	ID      uint64 // of the file, for as long as it exists, on all nodes
	Size    int64  // bytes
	Used    int64  // bytes allocated
	ModTime time.Time
}

// Space is how a volume is filled, in bytes.
type Space struct{ Size, Free int64 }

// Tree is the volumes and what their coordinators do to names. Errors wrap the errno that a program gets;
// one without is EIO. EISDIR from Stat says that the path is a folder's. Methods may block, and end with ctx.
type Tree interface {
	Volumes() []Volume
	List(ctx context.Context, volume string) ([]File, error)
	Stat(ctx context.Context, volume, path string) (File, error)
	Space(ctx context.Context, volume string) (Space, error)
	// Create makes an image of size 0; EEXIST when the path is taken.
	Create(ctx context.Context, volume, path string) error
	// Rename gives another path on the same volume; it replaces nothing.
	Rename(ctx context.Context, volume, from, to string) error
	Delete(ctx context.Context, volume, path string) error
	// Resize sets a size; what lies beyond it is lost. EBUSY: it would shrink what is open.
	Resize(ctx context.Context, volume, path string, size int64) error
	Open(ctx context.Context, volume, path string) (Image, error)
}

// Image is an open image; *volume.Image is one. Its asynchronous methods are called on a lane; off and
// lengths are in sectors of 512 bytes, and inside the image.
type Image interface {
	Size() int64
	Read(lane int, p []byte, off int64, done func(error))
	Write(lane int, p []byte, off int64, fua bool, done func(error))
	Flush(lane int, done func(error))
	Unmap(lane int, off, n int64, done func(error))
	// Mapped tells whether the byte at off is allocated, and for how many bytes on that holds.
	Mapped(off int64) (mapped bool, n int64)
	Close(ctx context.Context) error
}

// Buffers is the engine's pool: Get is nil when it is exhausted.
type Buffers interface {
	Get(n int) []byte
	Put(p []byte)
}

// Options says what to mount where.
type Options struct {
	Mount   string // absolute path; the folder is made when it is missing
	Tree    Tree
	Lanes   int
	Post    func(lane int, fn func()) error // runs fn on a lane
	Buffers Buffers
	// Watch has ready called on a lane each time that fd may have become readable, until stop is called there, and
	// stopped then. It is called on that lane. nil: go-fuse's server reads the requests, at a goroutine each.
	Watch func(lane, fd int, ready func()) (stop func(stopped func()), err error)
	Log   *slog.Logger // default slog.Default()

	patience time.Duration // with what is busy; default busyPatience
}

// Validate tells what is wrong with o.
func (o *Options) Validate() error {
	switch {
	case !filepath.IsAbs(o.Mount) || filepath.Clean(o.Mount) == "/":
		return fmt.Errorf("namespace: mount %q: give an absolute path of a folder of its own", o.Mount)
	case o.Tree == nil || o.Post == nil || o.Buffers == nil || o.Lanes < 1:
		return errors.New("namespace: a tree, lanes and buffers are needed")
	}
	return nil
}
