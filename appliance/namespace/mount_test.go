package namespace

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a mounted tree. Tests use it by plain system calls: Go's own files ask a FUSE mount for events.
type bench struct {
	t    *testing.T
	dir  string
	tree *fakeTree
	pool *fakePool
	ns   *Namespace

	onLane bool
	post   func(int, func()) error // of the last mount
}

// byEachWay runs a test with the requests read on a lane, and by go-fuse's server.
func byEachWay(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	for _, way := range []string{"lane", "go-fuse"} {
		t.Run(way, func(t *testing.T) { test(t, newBench(t, way == "lane")) })
	}
}

func newBench(t *testing.T, onLane bool) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	b := &bench{t: t, onLane: onLane, dir: filepath.Join(t.TempDir(), "cs"), tree: newFakeTree(), pool: &fakePool{}}
	b.ns = b.mount()
	return b
}

func (b *bench) mount() *Namespace {
	b.t.Helper()
	o := Options{
		Mount: b.dir, Tree: b.tree, Lanes: b.tree.lanes, Post: fakeLanes(b.t, b.tree.lanes), Buffers: b.pool, patience: 250 * time.Millisecond,
	}
	b.post = o.Post
	if b.onLane {
		o.Watch = fakeWatch(b.t, o.Post)
	}
	ns, err := Mount(o)
	if errors.Is(err, ErrNoFUSE) {
		b.t.Skip(err)
	}
	b.must(err)
	b.t.Cleanup(b.close) // before its lanes end
	return ns
}

// close unmounts the last mount; it may be called again.
func (b *bench) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b.must(b.ns.Close(ctx))
	if n := b.pool.inUse(); n != 0 {
		b.t.Errorf("%d buffers are not back in the pool", n)
	}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) wants(want syscall.Errno, err error) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Errorf("error %v, want %v", err, want)
	}
}

func (b *bench) path(p string) string { return filepath.Join(b.dir, p) }

func (b *bench) open(p string, flags int) int {
	b.t.Helper()
	fd, err := unix.Open(b.path(p), flags|unix.O_CLOEXEC, 0o644)
	b.must(err)
	return fd
}

func (b *bench) closeFD(fd int) {
	b.t.Helper()
	b.must(unix.Close(fd))
}

// make makes an image with data in it.
func (b *bench) make(p string, data []byte) {
	b.t.Helper()
	fd := b.open(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
	defer b.closeFD(fd)
	n, err := unix.Pwrite(fd, data, 0)
	b.must(err)
	if n != len(data) {
		b.t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

func (b *bench) names(p string) (out []string) {
	b.t.Helper()
	fd := b.open(p, unix.O_RDONLY|unix.O_DIRECTORY)
	defer b.closeFD(fd)
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Getdents(fd, buf)
		b.must(err)
		if n == 0 {
			slices.Sort(out)
			return out
		}
		_, _, out = unix.ParseDirent(buf[:n], -1, out)
	}
}

func (b *bench) size(p string) int64 {
	b.t.Helper()
	var st unix.Stat_t
	b.must(unix.Stat(b.path(p), &st))
	return st.Size
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i/7)*31 + seed
	}
	return p
}

func TestTree(t *testing.T) { byEachWay(t, testTree) }

func testTree(t *testing.T, b *bench) {
	if got := b.names(""); !slices.Equal(got, []string{"Volume1", "Volume2"}) {
		t.Errorf("volumes: %v", got)
	}
	b.must(b.tree.Create(t.Context(), "v1", "a/b/c.img"))
	b.must(b.tree.Create(t.Context(), "v1", "a.img"))
	b.must(b.tree.Create(t.Context(), "v1", "a/d.img"))
	for p, want := range map[string][]string{"Volume1": {"a", "a.img"}, "Volume1/a": {"b", "d.img"}, "Volume1/a/b": {"c.img"}, "Volume2": nil} {
		if got := b.names(p); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", p, got, want)
		}
	}
	b.must(b.tree.Resize(t.Context(), "v1", "a/d.img", 8192))
	var st unix.Stat_t
	b.must(unix.Stat(b.path("Volume1/a/d.img"), &st))
	if st.Size != 8192 || st.Blocks != 16 || st.Mtim.Sec != 1_700_000_000 || st.Mode != unix.S_IFREG|imageMode || st.Uid != 0 {
		t.Errorf("%+v", st)
	}
	var space unix.Statfs_t
	b.must(unix.Statfs(b.path("Volume1"), &space))
	if int64(space.Blocks)*space.Bsize != 1<<30 || int64(space.Bfree)*space.Bsize != 1<<29 {
		t.Errorf("space: %+v", space)
	}
}

// TestChangesElsewhere has names and sizes change behind the kernel's back.
func TestChangesElsewhere(t *testing.T) { byEachWay(t, testChangesElsewhere) }

func testChangesElsewhere(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	b.must(b.tree.Resize(t.Context(), "v1", "x", 8192))
	if got := b.size("Volume1/x"); got != 8192 {
		t.Errorf("size %d after it grew elsewhere", got)
	}
	deadline := time.Now().Add(5 * time.Second) // until the kernel has told of the close
	for b.tree.Rename(t.Context(), "v1", "x", "y") != nil && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	var st unix.Stat_t
	b.wants(unix.ENOENT, unix.Stat(b.path("Volume1/x"), &st))
	if got := b.size("Volume1/y"); got != 8192 {
		t.Errorf("size %d under the new name", got)
	}
	b.must(b.tree.Delete(t.Context(), "v1", "y"))
	b.must(b.tree.Create(t.Context(), "v1", "y"))
	if got := b.size("Volume1/y"); got != 0 {
		t.Errorf("size %d of another file with the name", got)
	}
}

func TestReadAndWrite(t *testing.T) { byEachWay(t, testReadAndWrite) }

func testReadAndWrite(t *testing.T, b *bench) {
	want := pattern(3<<20, 3)
	b.make("Volume1/x", want)
	for _, direct := range []int{0, unix.O_DIRECT} {
		fd := b.open("Volume1/x", unix.O_RDWR|direct)
		got, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		b.must(err)
		n, err := unix.Pread(fd, got, 0)
		b.must(err)
		if n != len(want) || !bytes.Equal(got[:n], want) {
			t.Fatalf("read %d bytes, equal: %v", n, bytes.Equal(got[:n], want))
		}
		for _, r := range []struct{ off, n int }{{1, 1}, {511, 2}, {4095, 1<<20 + 3}, {3<<20 - 5, 10}, {3 << 20, 512}} {
			n, err := unix.Pread(fd, got[:r.n], int64(r.off))
			b.must(err)
			end := min(len(want), r.off+r.n)
			if n != end-r.off || !bytes.Equal(got[:n], want[r.off:end]) {
				t.Errorf("%d bytes at %d: got %d", r.n, r.off, n)
			}
		}
		_, err = unix.Pwrite(fd, got[:1000], 0)
		b.wants(unix.EINVAL, err)
		_, err = unix.Pwrite(fd, got[:512], 100)
		b.wants(unix.EINVAL, err)
		b.must(unix.Munmap(got))
		b.closeFD(fd)
	}
}

// TestSharedByHandles has two who have the image open, which is open once.
func TestSharedByHandles(t *testing.T) { byEachWay(t, testSharedByHandles) }

func testSharedByHandles(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(8192, 1))
	one, two := b.open("Volume1/x", unix.O_RDWR), b.open("Volume1/x", unix.O_RDONLY)
	_, err := unix.Pwrite(one, pattern(512, 9), 512)
	b.must(err)
	got := make([]byte, 512)
	_, err = unix.Pread(two, got, 512)
	b.must(err)
	if !bytes.Equal(got, pattern(512, 9)) {
		t.Error("the other handle reads something else")
	}
	b.wants(unix.EBUSY, unix.Unlink(b.path("Volume1/x")))
	b.wants(unix.EBUSY, unix.Rename(b.path("Volume1/x"), b.path("Volume1/y")))
	b.must(unix.Ftruncate(one, 4096)) // nobody but this node has it open
	if got := b.size("Volume1/x"); got != 4096 {
		t.Errorf("size %d", got)
	}
	elsewhere, err := b.tree.Open(t.Context(), "v1", "x")
	b.must(err)
	b.wants(unix.EBUSY, unix.Ftruncate(one, 512))
	b.must(elsewhere.Close(t.Context()))
	if n, err := unix.Pread(two, got, 512); err != nil || !bytes.Equal(got[:n], pattern(512, 9)) {
		t.Errorf("after a refused truncate: %v", err)
	}
	b.closeFD(one)
	b.closeFD(two)
	b.must(unix.Unlink(b.path("Volume1/x")))
}

func TestSizes(t *testing.T) { byEachWay(t, testSizes) }

func testSizes(t *testing.T, b *bench) {
	b.make("Volume1/x", nil)
	if got := b.size("Volume1/x"); got != 0 {
		t.Errorf("a new file has %d bytes", got)
	}
	b.must(unix.Truncate(b.path("Volume1/x"), 1<<20))
	b.wants(unix.EINVAL, unix.Truncate(b.path("Volume1/x"), 1000))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer b.closeFD(fd)
	_, err := unix.Pwrite(fd, pattern(4096, 1), 4<<20) // beyond the end
	b.must(err)
	if got := b.size("Volume1/x"); got != 4<<20+4096 {
		t.Errorf("%d bytes after a write beyond the end", got)
	}
	var all sync.WaitGroup // in any order
	for i := range 32 {
		all.Go(func() {
			if _, err := unix.Pwrite(fd, pattern(4096, byte(i)), 8<<20+int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	got := make([]byte, 32*4096)
	_, err = unix.Pread(fd, got, 8<<20)
	b.must(err)
	for i := range 32 {
		if !bytes.Equal(got[i*4096:][:4096], pattern(4096, byte(i))) {
			t.Errorf("write %d is lost", i)
		}
	}
	other := b.open("Volume1/x", unix.O_WRONLY|unix.O_TRUNC)
	b.closeFD(other)
	if got := b.size("Volume1/x"); got != 0 {
		t.Errorf("%d bytes after O_TRUNC", got)
	}
}

func TestHoles(t *testing.T) { byEachWay(t, testHoles) }

func testHoles(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(64<<10, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer b.closeFD(fd)
	b.must(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 16<<10, 8<<10))
	for _, c := range []struct {
		whence    int
		off, want int64
	}{{unix.SEEK_HOLE, 0, 16 << 10}, {unix.SEEK_DATA, 16 << 10, 24 << 10}, {unix.SEEK_HOLE, 30 << 10, 64 << 10}} {
		if got, err := unix.Seek(fd, c.off, c.whence); err != nil || got != c.want {
			t.Errorf("whence %d from %d: %d, %v, want %d", c.whence, c.off, got, err, c.want)
		}
	}
	_, err := unix.Seek(fd, 64<<10, unix.SEEK_DATA)
	b.wants(unix.ENXIO, err)
	b.wants(unix.EOPNOTSUPP, unix.Fallocate(fd, 0, 0, 1<<20))
	b.wants(unix.EOPNOTSUPP, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1, 100))
}

func TestRename(t *testing.T) { byEachWay(t, testRename) }

func testRename(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(512, 1))
	b.make("Volume1/y", nil)
	b.must(b.tree.Create(t.Context(), "v1", "d/z"))
	b.wants(unix.EEXIST, unix.Rename(b.path("Volume1/x"), b.path("Volume1/y")))
	b.wants(unix.EXDEV, unix.Rename(b.path("Volume1/x"), b.path("Volume2/x")))
	b.wants(unix.EOPNOTSUPP, unix.Rename(b.path("Volume1/d"), b.path("Volume1/e")))
	b.wants(unix.EINVAL, unix.Renameat2(-1, b.path("Volume1/x"), -1, b.path("Volume1/y"), unix.RENAME_EXCHANGE))
	b.must(unix.Rename(b.path("Volume1/x"), b.path("Volume1/d/x")))
	if got := b.names("Volume1/d"); !slices.Equal(got, []string{"x", "z"}) {
		t.Error(got)
	}
	if got := b.size("Volume1/d/x"); got != 512 {
		t.Errorf("size %d", got)
	}
}

// TestNotClaimed is the list in the manual.
func TestNotClaimed(t *testing.T) { byEachWay(t, testNotClaimed) }

func testNotClaimed(t *testing.T, b *bench) {
	b.make("Volume1/x", nil)
	x, y := b.path("Volume1/x"), b.path("Volume1/y")
	times := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	for name, c := range map[string]struct {
		want syscall.Errno
		err  error
	}{
		"link":           {unix.EOPNOTSUPP, unix.Link(x, y)},
		"symlink":        {unix.EOPNOTSUPP, unix.Symlink("x", y)},
		"mknod":          {unix.EOPNOTSUPP, unix.Mknod(y, unix.S_IFIFO|0o600, 0)},
		"mkdir":          {unix.EOPNOTSUPP, unix.Mkdir(y, 0o700)},
		"rmdir":          {unix.EOPNOTSUPP, unix.Rmdir(b.path("Volume2"))},
		"set xattr":      {unix.EOPNOTSUPP, unix.Setxattr(x, "user.a", []byte("b"), 0)},
		"chmod":          {unix.EOPNOTSUPP, unix.Chmod(x, 0o777)},
		"chmod, as is":   {0, unix.Chmod(x, imageMode)},
		"chown":          {unix.EOPNOTSUPP, unix.Chown(x, 7, -1)},
		"chown, as is":   {0, unix.Chown(x, 0, 0)},
		"times":          {unix.EOPNOTSUPP, unix.UtimesNanoAt(unix.AT_FDCWD, x, times, 0)},
		"chmod a folder": {unix.EOPNOTSUPP, unix.Chmod(b.path("Volume1"), 0o700)},
		"long name":      {unix.ENAMETOOLONG, unix.Truncate(b.path("Volume1/"+string(bytes.Repeat([]byte("n"), 256))), 0)},
	} {
		if c.want == 0 && c.err != nil || c.want != 0 && !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	for _, at := range []string{"x", "Volume9/x"} {
		if fd, err := unix.Open(b.path(at), unix.O_CREAT|unix.O_WRONLY, 0o600); err == nil {
			t.Errorf("made %s outside the volumes", at)
			b.closeFD(fd)
		}
	}
	if got := b.names("Volume1"); !slices.Equal(got, []string{"x"}) {
		t.Error(got)
	}
}

// TestDurable counts the flushes: of fsync, of O_DSYNC and of RWF_DSYNC.
func TestDurable(t *testing.T) { byEachWay(t, testDurable) }

func testDurable(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	flushes := func() int {
		b.tree.mu.Lock()
		defer b.tree.mu.Unlock()
		return b.tree.images[place{"v1", "x"}].flushes
	}
	for name, write := range map[string]func(fd int) error{
		"fsync":     unix.Fsync,
		"fdatasync": unix.Fdatasync,
		"RWF_DSYNC": func(fd int) error {
			_, err := unix.Pwritev2(fd, [][]byte{pattern(512, 2)}, 0, unix.RWF_DSYNC)
			return err
		},
	} {
		fd := b.open("Volume1/x", unix.O_RDWR)
		before := flushes()
		b.must(write(fd))
		if got := flushes() - before; got != 1 {
			t.Errorf("%s: %d flushes", name, got)
		}
		b.closeFD(fd)
	}
	for _, flags := range []int{0, unix.O_DSYNC, unix.O_SYNC} {
		fd := b.open("Volume1/x", unix.O_RDWR|flags)
		before := flushes()
		_, err := unix.Pwrite(fd, pattern(512, 2), 0)
		b.must(err)
		if got, want := flushes()-before, min(1, flags); got != want {
			t.Errorf("open flags %#x: %d flushes, want %d", flags, got, want)
		}
		b.closeFD(fd)
	}
}

func TestErrors(t *testing.T) { byEachWay(t, testErrors) }

func testErrors(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer b.closeFD(fd)
	b.tree.mu.Lock()
	file := b.tree.images[place{"v1", "x"}]
	b.tree.mu.Unlock()
	for err, want := range map[error]syscall.Errno{errors.New("medium"): unix.EIO, unix.ENOSPC: unix.ENOSPC, unix.ETIMEDOUT: unix.ETIMEDOUT} {
		b.tree.mu.Lock()
		file.fail = err
		b.tree.mu.Unlock()
		_, got := unix.Pread(fd, make([]byte, 512), 0)
		b.wants(want, got)
		_, got = unix.Pwrite(fd, make([]byte, 512), 0)
		b.wants(want, got)
		b.wants(want, unix.Fsync(fd))
	}
	b.tree.mu.Lock()
	b.tree.gone["v1"] = unix.ENXIO
	b.tree.mu.Unlock()
	_, err := unix.Open(b.path("Volume1/x"), unix.O_RDONLY, 0)
	b.wants(unix.ENXIO, err)
	if got := b.names(""); len(got) != 2 {
		t.Errorf("a volume that does not answer is not listed: %v", got)
	}
}

// TestGone has an image that is lost, which has no size then: that is no end of a file.
func TestGone(t *testing.T) { byEachWay(t, testGone) }

func testGone(t *testing.T, b *bench) {
	b.make("Volume1/x", nil)
	fd := b.open("Volume1/x", unix.O_RDONLY)
	defer b.closeFD(fd)
	n, err := unix.Pread(fd, make([]byte, 512), 0)
	b.must(err)
	if n != 0 {
		t.Errorf("read %d bytes of an empty image", n)
	}
	b.tree.mu.Lock()
	b.tree.images[place{"v1", "x"}].fail = errors.New("gone")
	b.tree.mu.Unlock()
	_, err = unix.Pread(fd, make([]byte, 512), 0)
	b.wants(unix.EIO, err)
}

// TestPoolExhausted has an I/O wait for a buffer.
func TestPoolExhausted(t *testing.T) { byEachWay(t, testPoolExhausted) }

func testPoolExhausted(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer b.closeFD(fd)
	b.pool.mu.Lock()
	b.pool.most = 1
	b.pool.mu.Unlock()
	held := b.pool.Get(1)
	result := make(chan error, 1)
	go func() {
		_, err := unix.Pread(fd, make([]byte, 512), 0)
		result <- err
	}()
	select {
	case err := <-result:
		t.Errorf("read without a buffer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	b.pool.Put(held)
	b.must(<-result)
}

// TestReplacesStaleMount mounts where another is, as after a kill, and lets go of files that are open.
func TestReplacesStaleMount(t *testing.T) { byEachWay(t, testReplacesStaleMount) }

func testReplacesStaleMount(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer func() { _ = unix.Close(fd) }() // its connection is gone
	old := b.ns
	b.ns = b.mount()
	_, err := unix.Pread(fd, make([]byte, 512), 0)
	b.wants(unix.ENOTCONN, err)
	if got := b.size("Volume1/x"); got != 4096 {
		t.Errorf("size %d", got)
	}
	select {
	case <-old.served:
	case <-time.After(10 * time.Second):
		t.Fatal("the old mount is still served")
	}
	b.must(old.files.closeAll(t.Context()))
}

// TestCloseWithOpenFiles unmounts below a program.
func TestCloseWithOpenFiles(t *testing.T) { byEachWay(t, testCloseWithOpenFiles) }

func testCloseWithOpenFiles(t *testing.T, b *bench) {
	b.make("Volume1/x", pattern(4096, 1))
	fd := b.open("Volume1/x", unix.O_RDWR)
	defer func() { _ = unix.Close(fd) }() // its connection is gone
	b.must(b.ns.Close(t.Context()))
	_, err := unix.Pread(fd, make([]byte, 512), 0)
	b.wants(unix.ENOTCONN, err)
	b.tree.mu.Lock()
	opens := b.tree.images[place{"v1", "x"}].opens
	b.tree.mu.Unlock()
	if opens != 0 {
		t.Errorf("the image is still open %d times", opens)
	}
	if there, err := mountedAt(b.dir); err != nil || there {
		t.Errorf("still mounted: %v, %v", there, err)
	}
}

func TestParseMount(t *testing.T) {
	for line, want := range map[string][2]string{
		`36 35 0:50 / /Cluster\040Storage rw,nosuid shared:5 - fuse.lunar lunar rw`: {"/Cluster Storage", "fuse.lunar"},
		`36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw`:                             {"/mnt2", "ext3"},
		"": {}, "1 2 3 - x": {}, "1 2 3 4 5 6 -": {},
	} {
		where, kind, _ := parseMount(line)
		if where != want[0] || kind != want[1] {
			t.Errorf("%q: %q, %q", line, where, kind)
		}
	}
}
