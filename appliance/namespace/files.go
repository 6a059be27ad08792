package namespace

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// place is where an image lies. It does not change while the image is open: its coordinator refuses.
type place struct{ volume, path string }

// files are the images that are open here, each once for all who have it open.
type files struct {
	tree     Tree
	patience time.Duration // with what is busy

	mu     sync.Mutex // guards what follows; held for moments
	open   map[place]*file
	closed bool
}

// file is an open image.
type file struct {
	place
	refs   int        // guarded by files.mu
	sizing sync.Mutex // orders changes of the size from here

	use   sync.RWMutex // read-held during each I/O, write-held while the image comes and goes
	image Image        // nil: it is not open any more
	why   error        // that it is not
}

// closeLimit bounds how long an image's end is waited for.
const closeLimit = 90 * time.Second

// acquire opens the image at p, or shares it; release ends that.
func (fs *files) acquire(ctx context.Context, p place) (*file, error) {
	f, first, err := fs.enter(p)
	if err != nil {
		return nil, err
	}
	if first {
		f.image, f.why = fs.tree.Open(ctx, p.volume, p.path)
		f.use.Unlock()
	}
	f.use.RLock()
	err = f.why
	f.use.RUnlock()
	if err != nil {
		return nil, errors.Join(err, fs.release(ctx, f))
	}
	return f, nil
}

// enter counts one more user of the file at p; the first finds it locked and has to open it.
func (fs *files) enter(p place) (f *file, first bool, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.closed {
		return nil, false, fmt.Errorf("the namespace is being unmounted: %w", syscall.ENXIO)
	}
	if f = fs.open[p]; f != nil {
		f.refs++
		return f, false, nil
	}
	f = &file{place: p, refs: 1}
	f.use.Lock()
	fs.open[p] = f
	return f, true, nil
}

// find is the file that is open at p, with one more user; nil when there is none.
func (fs *files) find(p place) *file {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f := fs.open[p]
	if f != nil {
		f.refs++
	}
	return f
}

func (fs *files) release(ctx context.Context, f *file) error {
	fs.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last && fs.open[f.place] == f {
		delete(fs.open, f.place)
	}
	fs.mu.Unlock()
	if !last {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	return f.close(ctx)
}

// close ends the image; later I/O fails.
func (f *file) close(ctx context.Context) error {
	f.use.Lock()
	defer f.use.Unlock()
	if f.image == nil {
		return nil
	}
	err := f.image.Close(ctx)
	f.image, f.why = nil, fmt.Errorf("image %s: the namespace has closed it: %w", f.path, syscall.EIO)
	return err
}

// closeAll ends what programs still have open.
func (fs *files) closeAll(ctx context.Context) error {
	fs.mu.Lock()
	fs.closed = true
	var all []*file
	for _, f := range fs.open {
		all = append(all, f)
	}
	fs.mu.Unlock()
	var errs []error
	for _, f := range all {
		errs = append(errs, f.close(ctx))
	}
	return errors.Join(errs...)
}

// with runs an I/O on the image, which stays open meanwhile.
func (f *file) with(fn func(Image) error) error {
	f.use.RLock()
	defer f.use.RUnlock()
	if f.image == nil {
		return f.why
	}
	return fn(f.image)
}

func (f *file) size() (n int64, err error) {
	err = f.with(func(im Image) error { n = im.Size(); return nil })
	return n, err
}

// growLimit bounds the wait until this node has been told of a size that the coordinator has set.
const growLimit = 5 * time.Second

// grow makes the image have at least size bytes.
func (fs *files) grow(ctx context.Context, f *file, size int64) error {
	if now, err := f.size(); err != nil || now >= size {
		return err
	}
	f.sizing.Lock()
	defer f.sizing.Unlock()
	return fs.growTo(ctx, f, size)
}

// growTo is grow for who has f.sizing.
func (fs *files) growTo(ctx context.Context, f *file, size int64) error {
	if now, err := f.size(); err != nil || now >= size {
		return err
	}
	// EBUSY: another node has made it larger meanwhile, so that this would shrink it.
	if err := fs.tree.Resize(ctx, f.volume, f.path, size); err != nil && errno(err) != syscall.EBUSY {
		return err
	}
	for until := time.Now().Add(growLimit); ; time.Sleep(time.Millisecond) {
		now, err := f.size()
		if err != nil || now >= size {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("image %s: it still has %d bytes here, not %d: %w", f.path, now, size, syscall.EAGAIN)
		}
	}
}

// resize sets the size of the image at p, whether it is open here or not.
func (fs *files) resize(ctx context.Context, p place, size int64) (err error) {
	f := fs.find(p)
	if f == nil {
		return fs.patiently(func() error { return fs.tree.Resize(ctx, p.volume, p.path, size) })
	}
	defer func() { err = errors.Join(err, fs.release(ctx, f)) }()
	f.sizing.Lock()
	defer f.sizing.Unlock()
	now, err := f.size()
	if err != nil || size == now {
		return err
	}
	if size > now {
		return fs.growTo(ctx, f, size)
	}
	return fs.patiently(func() error { return fs.shrink(ctx, f, size) })
}

// shrink closes the image for the while, since its coordinator shrinks none that is open: EBUSY when others
// have it open too.
func (fs *files) shrink(ctx context.Context, f *file, size int64) error {
	f.use.Lock()
	defer f.use.Unlock()
	if f.image == nil {
		return f.why
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	if err := f.image.Close(ctx); err != nil {
		return err
	}
	err := fs.tree.Resize(ctx, f.volume, f.path, size)
	if f.image, f.why = fs.tree.Open(ctx, f.volume, f.path); f.why != nil {
		f.image = nil
	}
	return errors.Join(err, f.why)
}

// How long a change of a name waits for the end of who has the image open: the kernel tells of a close(2)
// after it has returned, so that a program that closes and then deletes would be refused.
const (
	busyPatience = time.Second
	busyPeriod   = 10 * time.Millisecond
)

// patiently tries again while the image is busy.
func (fs *files) patiently(try func() error) error {
	until := time.Now().Add(fs.patience)
	for {
		err := try()
		if err == nil || errno(err) != syscall.EBUSY || time.Now().After(until) {
			return err
		}
		time.Sleep(busyPeriod)
	}
}
