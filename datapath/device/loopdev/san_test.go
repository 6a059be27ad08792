package loopdev

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func sanOf(t *testing.T, size int64, paths int) (*SAN, []*Loop) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches loop devices")
	}
	s, err := NewSAN(filepath.Join(t.TempDir(), "disk"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	var loops []*Loop
	for range paths {
		l, err := s.Connect(Options{})
		if err != nil {
			t.Fatal(err)
		}
		loops = append(loops, l)
	}
	return s, loops
}

func direct(t *testing.T, device string) *os.File {
	t.Helper()
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), device)
	t.Cleanup(func() { f.Close() })
	return f
}

func block(fill byte) []byte {
	b := make([]byte, 8192)
	at := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	b = b[at : at+4096]
	copy(b, bytes.Repeat([]byte{fill}, len(b)))
	return b
}

// Writers that go on through a cut change nothing once Cut has returned: first sector included.
func TestCutFences(t *testing.T) {
	const blocks = 64
	_, loops := sanOf(t, blocks*4096, 2)
	a, b := direct(t, loops[0].Path), direct(t, loops[1].Path)
	for round := range 6 {
		var stop atomic.Bool
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for p, i := block(0xaa), w; !stop.Load(); i++ {
					_, _ = a.WriteAt(p, int64(i%blocks)*4096)
				}
			})
		}
		time.Sleep(time.Millisecond)
		if err := Cut(loops[0].Path); err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			if _, err := b.WriteAt(block(byte(round)), int64(i)*4096); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Millisecond)
		stop.Store(true)
		writers.Wait()
		for i, p := 0, block(0); i < blocks; i++ {
			if _, err := b.ReadAt(p, int64(i)*4096); err != nil || !bytes.Equal(p, block(byte(round))) {
				t.Fatalf("round %d: block %d has %#x after the cut: %v", round, i, p[0], err)
			}
		}
		if err := Mend(loops[0].Path); err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteAt(block(1), 0); err != nil {
			t.Fatal("after mending:", err)
		}
	}
}
