package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestQuotaIsReachedAndRecovers fills the database with old revisions until it refuses, and waits
// until it takes changes again by itself.
func TestQuotaIsReachedAndRecovers(t *testing.T) {
	t.Parallel()
	o := nodeOptions(t, "n")
	o.quota = 4 << 20
	db := openNode(t, o)
	blob := strings.Repeat("x", 256<<10)
	write := func() error {
		op, err := put(reserveKeys+"3abc", blob)
		must(t, err)
		_, err = db.commit(t.Context(), nil, op)
		return err
	}
	var err error
	for range 100 {
		if err = write(); err != nil {
			break
		}
	}
	wantErr(t, err, ErrFull)
	started := time.Now()
	for errors.Is(err, ErrFull) && time.Since(started) < 20*time.Second {
		time.Sleep(100 * time.Millisecond)
		err = write()
	}
	must(t, err)
	t.Logf("recovered after %v", time.Since(started))
}

// TestDiskFills fills the disk of the state directory: what a user adds is refused in time, what keeps
// the cluster alive goes on, and with room again all goes on.
func TestDiskFills(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	o := nodeOptions(t, "n")
	if err := unix.Mount("lunar-test", o.Dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(o.Dir, 0); err != nil {
			t.Error(err)
		}
	})
	db := openNode(t, o)
	v, err := db.AddVolume(t.Context(), Volume{Name: "V", WWID: "w"})
	must(t, err)
	ballast := filepath.Join(o.Dir, "ballast")
	var st unix.Statfs_t
	must(t, unix.Statfs(o.Dir, &st))
	must(t, os.WriteFile(ballast, make([]byte, int(st.Bavail)*int(st.Bsize)-8<<20), 0o600))
	until(t, func() bool { return errors.Is(db.Append(context.Background(), Event{Text: "x"}), ErrFull) })
	_, err = db.AddVolume(t.Context(), Volume{Name: "W", WWID: "w2"})
	wantErr(t, err, ErrFull)
	_, err = nextEpoch(t.Context(), db, v.ID)
	must(t, err)
	must(t, os.Remove(ballast))
	until(t, func() bool { return db.Append(context.Background(), Event{Text: "x"}) == nil })
}

func until(t *testing.T, fn func() bool) {
	t.Helper()
	for range 100 {
		if fn() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("it did not come to pass within 5 s")
}
