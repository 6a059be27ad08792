package loopdev

import (
	"os"
	"path/filepath"
	"testing"
)

// Scratch attaches a new sparse file of size bytes for the time of a test, which is skipped where
// loop devices cannot be made. Cleaning up waits for what the test left open.
func Scratch(t testing.TB, size int64, o Options) *Loop {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches a loop device")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices:", err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	l, err := Attach(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Detach(); err != nil {
			t.Error(err)
		}
	})
	return l
}
