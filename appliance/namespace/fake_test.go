package namespace

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeTree is a cluster in memory: two volumes, whose images are slices of bytes.
type fakeTree struct {
	mu     sync.Mutex // guards all
	images map[place]*fakeFile
	ids    uint64
	gone   map[string]error // by volume: why it does not answer
	lanes  int
}

type fakeFile struct {
	tree    *fakeTree
	id      uint64
	data    []byte
	opens   int
	flushes int
	fail    error                     // of I/O
	later   func(lane int, fn func()) // nil: I/O ends at once
}

func newFakeTree() *fakeTree {
	return &fakeTree{images: map[place]*fakeFile{}, gone: map[string]error{}, lanes: 2}
}

func (t *fakeTree) Volumes() []Volume { return []Volume{{"v1", "Volume1"}, {"v2", "Volume2"}} }

// at is the file at p; the caller has mu.
func (t *fakeTree) at(p place) (*fakeFile, error) {
	if err := t.gone[p.volume]; err != nil {
		return nil, err
	}
	if f := t.images[p]; f != nil {
		return f, nil
	}
	for q := range t.images {
		if q.volume == p.volume && strings.HasPrefix(q.path, p.path+"/") {
			return nil, fmt.Errorf("%s: a folder: %w: %w", p.path, syscall.EINVAL, syscall.EISDIR)
		}
	}
	return nil, fmt.Errorf("%s: %w", p.path, syscall.ENOENT)
}

func (f *fakeFile) describe(path string) File {
	return File{Path: path, ID: f.id, Size: int64(len(f.data)), Used: int64(len(f.data)), ModTime: time.Unix(1_700_000_000, 0)}
}

func (t *fakeTree) List(_ context.Context, volume string) (out []File, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range slices.SortedFunc(maps.Keys(t.images), func(a, b place) int { return strings.Compare(a.path, b.path) }) {
		if p.volume == volume {
			out = append(out, t.images[p].describe(p.path))
		}
	}
	return out, t.gone[volume]
}

func (t *fakeTree) Stat(_ context.Context, volume, path string) (File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.at(place{volume, path})
	if err != nil {
		return File{}, err
	}
	return f.describe(path), nil
}

func (t *fakeTree) Space(context.Context, string) (Space, error) { return Space{1 << 30, 1 << 29}, nil }

func (t *fakeTree) Create(_ context.Context, volume, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.at(place{volume, path}); err == nil {
		return syscall.EEXIST
	}
	t.ids++
	t.images[place{volume, path}] = &fakeFile{tree: t, id: t.ids}
	return nil
}

// unused is the file at p, which nobody has open.
func (t *fakeTree) unused(p place) (*fakeFile, error) {
	f, err := t.at(p)
	if err == nil && f.opens > 0 {
		return nil, syscall.EBUSY
	}
	return f, err
}

func (t *fakeTree) Rename(_ context.Context, volume, from, to string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.unused(place{volume, from})
	if err != nil {
		return err
	}
	if t.images[place{volume, to}] != nil {
		return syscall.EEXIST
	}
	delete(t.images, place{volume, from})
	t.images[place{volume, to}] = f
	return nil
}

func (t *fakeTree) Delete(_ context.Context, volume, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, err := t.unused(place{volume, path}); err != nil {
		return err
	}
	delete(t.images, place{volume, path})
	return nil
}

func (t *fakeTree) Resize(_ context.Context, volume, path string, size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.at(place{volume, path})
	switch {
	case err != nil:
		return err
	case size%sector != 0:
		return syscall.EINVAL
	case size < int64(len(f.data)) && f.opens > 0:
		return syscall.EBUSY
	case size < int64(len(f.data)):
		f.data = f.data[:size]
	default:
		f.data = append(f.data, make([]byte, size-int64(len(f.data)))...)
	}
	return nil
}

func (t *fakeTree) Open(_ context.Context, volume, path string) (Image, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.at(place{volume, path})
	if err != nil {
		return nil, err
	}
	f.opens++
	return f, nil
}

func (f *fakeFile) Close(context.Context) error {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	f.opens--
	return nil
}

func (f *fakeFile) Size() int64 {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	return int64(len(f.data))
}

// io runs an I/O as a volume does: whole sectors inside the image.
func (f *fakeFile) io(lane int, off, n int64, done func(error), fn func(p []byte)) {
	f.tree.mu.Lock()
	err := f.fail
	switch {
	case err != nil:
	case (off|n)%sector != 0, off < 0, off+n > int64(len(f.data)):
		err = fmt.Errorf("%d bytes at %d: %w", n, off, syscall.EINVAL)
	default:
		fn(f.data[off : off+n])
	}
	later := f.later
	f.tree.mu.Unlock()
	if later != nil {
		later(lane, func() { done(err) })
		return
	}
	done(err)
}

func (f *fakeFile) Read(lane int, p []byte, off int64, done func(error)) {
	f.io(lane, off, int64(len(p)), done, func(q []byte) { copy(p, q) })
}

func (f *fakeFile) Write(lane int, p []byte, off int64, _ bool, done func(error)) {
	f.io(lane, off, int64(len(p)), done, func(q []byte) { copy(q, p) })
}

func (f *fakeFile) Unmap(lane int, off, n int64, done func(error)) {
	f.io(lane, off, n, done, func(q []byte) { clear(q) })
}

func (f *fakeFile) Flush(lane int, done func(error)) {
	f.io(lane, 0, 0, done, func([]byte) { f.flushes++ })
}

// Mapped has each block of 4,096 bytes that is all zeroes as a hole.
func (f *fakeFile) Mapped(off int64) (bool, int64) {
	f.tree.mu.Lock()
	defer f.tree.mu.Unlock()
	const block = 4096
	low := off / block * block
	high := min(low+block, int64(len(f.data)))
	return slices.ContainsFunc(f.data[low:high], func(b byte) bool { return b != 0 }), high - off
}

// fakePool counts what is out.
type fakePool struct {
	mu   sync.Mutex // guards what follows
	out  int
	most int // 0: no bound
}

func (p *fakePool) Get(n int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.most > 0 && p.out >= p.most {
		return nil
	}
	p.out++
	return make([]byte, n)
}

// Put spoils the buffer, as its next user would.
func (p *fakePool) Put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range b {
		b[i] = 0xdb
	}
	p.out--
}

func (p *fakePool) inUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out
}

// fakeLanes runs what is posted, each lane in order on a goroutine of its own.
func fakeLanes(t *testing.T, n int) func(int, func()) error {
	lanes := make([]chan func(), n)
	var all sync.WaitGroup
	for i := range lanes {
		lanes[i] = make(chan func(), 1024)
		all.Go(func() {
			for fn := range lanes[i] {
				fn()
			}
		})
	}
	t.Cleanup(func() {
		for _, lane := range lanes {
			close(lane)
		}
		all.Wait()
	})
	return func(lane int, fn func()) error { lanes[lane] <- fn; return nil }
}

// fakeWatch asks descriptors for input on a goroutine each.
func fakeWatch(t *testing.T, post func(int, func()) error) func(int, int, func()) (func(func()), error) {
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	return func(lane, fd int, ready func()) (func(func()), error) {
		end := make(chan func(), 1)
		all.Go(func() {
			for {
				select {
				case stopped := <-end:
					_ = post(lane, stopped)
					return
				default:
				}
				input := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if n, err := unix.Poll(input, 1); n > 0 && err == nil {
					read := make(chan struct{})
					_ = post(lane, func() { ready(); close(read) })
					<-read
				}
			}
		})
		return func(stopped func()) { end <- stopped }, nil
	}
}
