package cluster

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func restoreOptions(o Options, file string) RestoreOptions {
	return RestoreOptions{Dir: o.Dir, Node: o.Node, Config: o.Config, File: file, Log: slog.New(slog.DiscardHandler)}
}

// TestSaveAndRestore loses every node of a cluster and gets it back from the file on a new machine.
func TestSaveAndRestore(t *testing.T) {
	t.Parallel()
	nodes := newCluster(t, "a", "b")
	a, b := nodes[0], nodes[1]
	ctx := t.Context()
	v, err := a.AddVolume(ctx, Volume{Name: "V", WWID: "w"})
	must(t, err)
	_, err = nextEpoch(ctx, a, v.ID)
	must(t, err)
	sealed := a.Seal("chap", "u")
	file := filepath.Join(t.TempDir(), "saved")
	saved, err := b.Save(ctx, file)
	must(t, err)
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode().Perm() != 0o600 || saved.Cluster != a.InCluster() || saved.Bytes != info.Size() || saved.Node != "b" {
		t.Fatalf("%v, %+v", info.Mode(), saved)
	}
	_, err = b.Save(ctx, file)
	wantErr(t, err, ErrExists)
	must(t, a.Append(ctx, Event{Text: "after the save"}))
	id := a.InCluster()

	_, err = Restore(ctx, restoreOptions(a.options, file))
	wantErr(t, err, ErrLocked)
	must(t, errors.Join(b.Close(), a.Close()))

	o := nodeOptions(t, "c")
	_, err = Restore(ctx, restoreOptions(o, file))
	must(t, err)
	c := openNode(t, o)
	secret, err := c.Unseal(sealed, "u")
	must(t, err)
	got, err := c.Volumes(ctx)
	must(t, err)
	members, err := c.Members(ctx)
	must(t, err)
	if string(secret) != "chap" || len(got) != 1 || got[0].Epoch <= 1 || c.InCluster() != id || len(members) != 1 || members[0].Name != "c" {
		t.Fatalf("volumes %+v, members %+v", got, members)
	}
	waitVoters(t, c, "c")
	events, _, err := c.Events(ctx)
	if err != nil || slices.ContainsFunc(events, func(e Event) bool { return e.Text == "after the save" }) {
		t.Fatalf("%v, %v", events, err)
	}
	a = openNode(t, a.options) // it was the only voter of the old database, and starts that again
	if m, err := a.Members(ctx); err != nil || len(m) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	must(t, a.Leave(ctx, true))
	must(t, a.Join(ctx, "", newTokenOf(t, c)))
	writes(t, a, "again")
	sees(t, c, "again")
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	x, y := newCluster(t, "x")[0], newCluster(t, "y")[0]
	ctx := t.Context()
	must(t, y.Append(ctx, Event{Text: "of y"}))
	file := filepath.Join(t.TempDir(), "saved")
	_, err := x.Save(ctx, file)
	must(t, err)
	must(t, y.Close())
	o := restoreOptions(y.options, file)
	_, err = Restore(ctx, o)
	wantErr(t, err, ErrExists)

	whole, err := os.ReadFile(file)
	must(t, err)
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { return append(b, 0) },
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { b[len(saveMagic)+20] ^= 1; return b },
		func([]byte) []byte { return nil },
	} {
		must(t, os.WriteFile(file, damage(bytes.Clone(whole)), 0o600))
		o.Force = true
		_, err := Restore(ctx, o)
		wantErr(t, err, ErrDamaged)
	}
	must(t, os.WriteFile(file, whole, 0o600))
	again, err := Open(ctx, y.options)
	must(t, err)
	sees(t, again, "of y") // nothing was touched
	must(t, again.Close())
	_, err = Restore(ctx, o)
	must(t, err)
	db := openNode(t, y.options)
	if db.InCluster() != x.InCluster() {
		t.Fatal(db.InCluster())
	}
	kept, err := filepath.Glob(filepath.Join(y.options.Dir, "etcd.before-*"))
	must(t, err)
	if len(kept) != 1 {
		t.Fatalf("kept %v", kept)
	}
}

func TestRestoreCutShort(t *testing.T) {
	t.Parallel()
	o := nodeOptions(t, "n")
	must(t, os.WriteFile(filepath.Join(o.Dir, restoreMark), nil, 0o600))
	_, err := Open(t.Context(), o)
	wantErr(t, err, ErrDamaged)
}

func FuzzSavedFile(f *testing.F) {
	head := &saveHead{Cluster: "c", Node: "n", Time: time.Unix(1, 0), Size: 5, Secret: make([]byte, keyBytes)}
	var good bytes.Buffer
	if err := writeSave(&good, head, bytes.NewReader([]byte("12345"))); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:40])
	f.Add([]byte(saveMagic + "\xff\xff\xff\xff"))
	f.Add([]byte(saveMagic + "\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var body bytes.Buffer
		head, err := readSave(bytes.NewReader(data), &body)
		if err != nil {
			wantErr(t, err, ErrDamaged)
			return
		}
		if int64(body.Len()) != head.Size {
			t.Fatalf("%d bytes, head says %d", body.Len(), head.Size)
		}
		if err := writeSave(io.Discard, head, &body); err != nil {
			t.Fatal(err)
		}
	})
}
