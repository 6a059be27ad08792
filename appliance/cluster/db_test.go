package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Set in the environment, these make the test binary a writer that is to be killed, or one that
// only opens a database: etcd leaves goroutines behind when it meets damage.
const (
	crashDir = "LUNAR_TEST_CRASH_DIR"
	openDir  = "LUNAR_TEST_OPEN_DIR"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeForEver(dir)
	}
	if dir := os.Getenv(openDir); dir != "" {
		openOnly(dir)
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // the tests wait for elections more than they work
		panic(err)
	}
	os.Exit(withoutLeaks(m.Run()))
}

// leakPatience outlasts the read time-out of etcd's peer connections, which end no sooner.
const leakPatience = 15 * time.Second

// withoutLeaks is the exit status, given the tests' own: a goroutine that stays is a failure.
func withoutLeaks(status int) int {
	if status != 0 {
		return status
	}
	for until := time.Now().Add(leakPatience); ; {
		err := goleak.Find()
		if err == nil {
			return 0
		}
		if time.Now().After(until) {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

func open(t *testing.T, dir string) *DB {
	t.Helper()
	db, err := Open(t.Context(), options(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func options(dir string) Options {
	return Options{Dir: dir, Node: "n1", Log: slog.New(slog.DiscardHandler)}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestVolumes(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	b, err := db.AddVolume(ctx, Volume{Name: "Volume2", WWID: "w2", FileSystem: "xfs"})
	must(t, err)
	a, err := db.AddVolume(ctx, Volume{Name: "Volume1", WWID: "w1", FileSystem: "ext4"})
	must(t, err)
	_, err = db.AddVolume(ctx, Volume{Name: "Volume1", WWID: "w3"})
	wantErr(t, err, ErrExists)
	_, err = db.AddVolume(ctx, Volume{Name: "Volume3", WWID: "w1"})
	wantErr(t, err, ErrExists)

	wantErr(t, db.RenameVolume(ctx, a.ID, "Volume2"), ErrExists)
	must(t, db.RenameVolume(ctx, a.ID, "Fast"))
	must(t, db.RenameVolume(ctx, a.ID, "Fast"))
	_, err = db.AddVolume(ctx, Volume{Name: "Volume1", WWID: "w3"})
	must(t, err)

	epoch, err := nextEpoch(ctx, db, b.ID)
	must(t, err)
	epoch2, err := nextEpoch(ctx, db, b.ID)
	must(t, err)
	if epoch != 1 || epoch2 != 2 {
		t.Fatalf("epochs %d, %d", epoch, epoch2)
	}
	volumes, err := db.Volumes(ctx)
	must(t, err)
	if len(volumes) != 3 || volumes[0].Name != "Fast" || volumes[2].Epoch != 2 {
		t.Fatalf("volumes %+v", volumes)
	}
	must(t, db.RemoveVolume(ctx, a.ID))
	wantErr(t, db.RemoveVolume(ctx, a.ID), ErrNotFound)
	_, err = db.AddVolume(ctx, Volume{Name: "Fast", WWID: "w1"})
	must(t, err)
}

// nextEpoch changes a volume's record as the begin of a term does.
func nextEpoch(ctx context.Context, db *DB, id string) (uint64, error) {
	v, err := db.UpdateVolume(ctx, id, func(v *Volume) error { v.Epoch++; return nil })
	return v.Epoch, err
}

func TestEpochsNeverRepeat(t *testing.T) {
	db := open(t, t.TempDir())
	v, err := db.AddVolume(t.Context(), Volume{Name: "V", WWID: "w"})
	must(t, err)
	var mu sync.Mutex // guards seen
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				epoch, err := nextEpoch(t.Context(), db, v.ID)
				if errors.Is(err, ErrConflict) {
					continue
				}
				mu.Lock()
				if err != nil || seen[epoch] {
					t.Errorf("epoch %d twice, or error %v", epoch, err)
				}
				seen[epoch] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestTargets(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	const name = "iqn.2026-01.io.lunar:a"
	v, err := db.AddVolume(ctx, Volume{Name: "V", WWID: "w"})
	must(t, err)
	_, err = db.CreateTarget(ctx, name)
	must(t, err)
	_, err = db.CreateTarget(ctx, name)
	wantErr(t, err, ErrExists)

	numbers := []int{-1, 5, -1, -1}
	want := []uint16{0, 5, 1, 2}
	ids := map[string]bool{}
	for i, n := range numbers {
		lun, err := db.Map(ctx, name, v.ID, fmt.Sprintf("d%d.img", i), n)
		must(t, err)
		if lun.Number != want[i] || len(lun.NAA) != 16 || lun.NAA[0] != '3' || ids[lun.NAA] || ids[lun.Serial] {
			t.Fatalf("LUN %+v, want number %d", lun, want[i])
		}
		ids[lun.NAA], ids[lun.Serial] = true, true
	}
	_, err = db.Map(ctx, name, v.ID, "x", 5)
	wantErr(t, err, ErrExists)
	_, err = db.Map(ctx, name, v.ID, "x", MaxLUNs)
	wantErr(t, err, ErrFull)
	_, err = db.Map(ctx, name, "none", "x", -1)
	wantErr(t, err, ErrNotFound)
	_, err = db.Map(ctx, "iqn.none", v.ID, "x", -1)
	wantErr(t, err, ErrNotFound)

	got, err := db.Target(ctx, name)
	must(t, err)
	if lun, ok := got.LUN(5); !ok || lun.Path != "d1.img" {
		t.Fatalf("LUN 5: %+v", lun)
	}
	wantErr(t, db.RemoveVolume(ctx, v.ID), ErrInUse)
	for _, n := range want {
		_, err = db.Unmap(ctx, name, n)
		must(t, err)
	}
	_, err = db.Unmap(ctx, name, 0)
	wantErr(t, err, ErrNotFound)
	must(t, db.RemoveVolume(ctx, v.ID))
	must(t, db.DeleteTarget(ctx, name))
	wantErr(t, db.DeleteTarget(ctx, name), ErrNotFound)
}

func TestOneImageIsOneDisk(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	v, err := db.AddVolume(ctx, Volume{Name: "V", WWID: "w"})
	must(t, err)
	for _, name := range []string{"a", "b"} {
		_, err := db.CreateTarget(ctx, name)
		must(t, err)
	}
	first, err := db.Map(ctx, "a", v.ID, "x", 3)
	must(t, err)
	second, err := db.Map(ctx, "b", v.ID, "x", -1)
	must(t, err)
	other, err := db.Map(ctx, "b", v.ID, "y", -1)
	must(t, err)
	if first.NAA != second.NAA || first.Serial != second.Serial || second.Number != 0 || other.NAA == first.NAA {
		t.Fatalf("%+v, %+v, %+v", first, second, other)
	}
}

func TestEvents(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	for i := range 3 {
		must(t, db.Append(ctx, Event{Kind: "test", Text: fmt.Sprint(i)}))
	}
	events, revision, err := db.Events(ctx)
	must(t, err)
	if len(events) != 3 || events[0].Text != "0" || events[2].Text != "2" || events[0].Node != "n1" {
		t.Fatalf("events %+v", events)
	}
	done := errors.New("done")
	followed := make(chan error, 1)
	go func() {
		followed <- db.Follow(ctx, revision, func(e Event) error {
			if e.Text != "3" {
				t.Errorf("followed %+v", e)
			}
			return done
		})
	}()
	must(t, db.Append(ctx, Event{Kind: "test", Text: "3"}))
	wantErr(t, <-followed, done)
}

func TestEventsAreTrimmed(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 4,300 events")
	}
	t.Parallel()
	db, ctx := open(t, t.TempDir()), t.Context()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range (MaxEvents + 3*trimStep) / 8 {
				if err := db.Append(ctx, Event{Text: fmt.Sprint(w, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	events, _, err := db.Events(ctx)
	must(t, err)
	if len(events) > MaxEvents+trimStep || len(events) < MaxEvents-8*trimStep {
		t.Fatalf("%d events kept", len(events))
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	sealed := db.Seal("correct horse", "iqn/user")
	if bytes.Contains(sealed, []byte("horse")) {
		t.Fatal("not sealed")
	}
	s, err := db.Unseal(sealed, "iqn/user")
	must(t, err)
	if string(s) != "correct horse" || fmt.Sprint(s) != "[secret]" || fmt.Sprintf("%#v", s) != "[secret]" {
		t.Fatalf("secret %v", s)
	}
	_, err = db.Unseal(sealed, "iqn/other")
	wantErr(t, err, ErrSecretKey)
	info, err := os.Stat(filepath.Join(dir, "secret.key"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", info.Mode())
	}
}

func TestShortKeyIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "secret.key"), []byte("short"), 0o600))
	_, err := Open(t.Context(), options(dir))
	wantErr(t, err, ErrDamaged)
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := Open(t.Context(), options(dir))
	wantErr(t, err, ErrLocked)
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	v, err := db.AddVolume(t.Context(), Volume{Name: "V", WWID: "w"})
	must(t, err)
	must(t, db.Close())
	db = open(t, dir)
	volumes, err := db.Volumes(t.Context())
	must(t, err)
	if len(volumes) != 1 || volumes[0].ID != v.ID {
		t.Fatalf("volumes %+v", volumes)
	}
}

func TestExternalIsSilent(t *testing.T) {
	t.Parallel()
	o := options(t.TempDir())
	o.Config.Endpoints = []string{"http://127.0.0.1:1"}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, o)
	wantErr(t, err, ErrUnavailable)
}

// TestDamage breaks each part of a database and expects a clear error, never a crash or a hang.
func TestDamage(t *testing.T) {
	t.Parallel()
	pristine := t.TempDir()
	db, err := Open(t.Context(), options(pristine))
	must(t, err)
	for i := range 50 {
		must(t, db.Append(t.Context(), Event{Text: strings.Repeat("x", 100*i)}))
	}
	must(t, db.Close())
	tests := []struct {
		name, file string
		damage     func([]byte) []byte
	}{
		{"db cut", "snap/db", func(b []byte) []byte { return b[:3*4096] }},
		{"db empty page", "snap/db", func(b []byte) []byte { clear(b[2*4096:]); return b }},
		{"db zeroed", "snap/db", func(b []byte) []byte { clear(b); return b }},
		{"db noise", "snap/db", func(b []byte) []byte { copy(b, strings.Repeat("noise", 4000)); return b }},
		{"wal noise", "wal/*.wal", func(b []byte) []byte { copy(b[64:], strings.Repeat("noise", 1000)); return b }},
		{"wal zeroed", "wal/*.wal", func(b []byte) []byte { clear(b); return b }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.CopyFS(dir, os.DirFS(pristine)))
			damage(t, filepath.Join(dir, "etcd", "member", tt.file), tt.damage)
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), openDir+"="+dir)
			started := time.Now()
			out, err := cmd.CombinedOutput()
			text := string(out)
			if cmd.ProcessState.ExitCode() != exitDamaged || !strings.Contains(text, "restore") || time.Since(started) > 10*time.Second {
				t.Fatalf("after %v: %v: %s", time.Since(started), err, text)
			}
			t.Log(text)
		})
	}
}

// exitDamaged is how openOnly tells of ErrDamaged, as opposed to a crash.
const exitDamaged = 10

func openOnly(dir string) {
	db, err := Open(context.Background(), options(dir))
	fmt.Println(err)
	switch {
	case err == nil:
		_ = db.Close()
		os.Exit(0)
	case errors.Is(err, ErrDamaged):
		os.Exit(exitDamaged)
	}
	os.Exit(1)
}

// TestLogGone removes the write-ahead log: the rest would start as a member that forgets what it is told.
func TestLogGone(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{"etcd/member/wal", "etcd/member/wal/*.wal"} {
		dir := t.TempDir()
		db, err := Open(t.Context(), options(dir))
		must(t, err)
		must(t, db.Append(t.Context(), Event{Text: "x"}))
		must(t, db.Close())
		paths, err := filepath.Glob(filepath.Join(dir, gone))
		must(t, err)
		for _, path := range paths {
			must(t, os.RemoveAll(path))
		}
		started := time.Now()
		if _, err = Open(t.Context(), options(dir)); time.Since(started) > 5*time.Second {
			t.Errorf("%s: it took %v", gone, time.Since(started))
		}
		wantErr(t, err, ErrDamaged)
	}
}

func damage(t *testing.T, pattern string, change func([]byte) []byte) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	must(t, err)
	if len(paths) == 0 {
		t.Fatalf("no file %s", pattern)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, change(data), 0o600))
	}
}

// TestKill proves that what was acknowledged survives kill -9 of the process.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for round := range 3 {
		acknowledged := runAndKill(t, dir)
		db, err := Open(t.Context(), options(dir))
		must(t, err)
		events, _, err := db.Events(t.Context())
		must(t, err)
		must(t, db.Close())
		have := map[string]bool{}
		for _, e := range events {
			have[e.Text] = true
		}
		for _, text := range acknowledged {
			if !have[text] {
				t.Fatalf("round %d: event %s was acknowledged and is lost", round, text)
			}
		}
	}
}

// runAndKill lets another process write until ten events were acknowledged, and kills it in the
// middle of the next ones.
func runAndKill(t *testing.T, dir string) (acknowledged []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		acknowledged = append(acknowledged, lines.Text())
		if len(acknowledged) == 10 {
			must(t, cmd.Process.Kill())
		}
	}
	_ = cmd.Wait()
	if len(acknowledged) < 10 {
		t.Fatalf("the writer wrote only %q", acknowledged)
	}
	return acknowledged
}

func writeForEver(dir string) {
	db, err := Open(context.Background(), options(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		id := newID()
		if err := db.Append(context.Background(), Event{Text: id}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(id)
	}
}
