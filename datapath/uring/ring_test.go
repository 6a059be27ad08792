package uring_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"testing"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

// openFile registers a new file of size bytes.
func openFile(t testing.TB, e *uring.Engine, size int64) *uring.File {
	t.Helper()
	f, err := os.Create(t.TempDir() + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	file, err := e.Register(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
		_ = f.Close()
	})
	return file
}

func do(t testing.TB, e *uring.Engine, op *uring.Op) {
	t.Helper()
	if err := e.Do(context.Background(), 0, op); err != nil {
		t.Fatal(err)
	}
}

func TestWriteReadBack(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	f := openFile(t, e, 1<<20)
	for name, buf := range map[string][]byte{"pool": e.Pool().Get(8192), "heap": make([]byte, 8192)} {
		want := make([]byte, len(buf))
		_, _ = rand.Read(want)
		copy(buf, want)
		do(t, e, &uring.Op{Code: uring.Write, File: f, Buf: buf, Offset: 4096, FUA: true})
		do(t, e, &uring.Op{Code: uring.Flush, File: f})
		clear(buf)
		do(t, e, &uring.Op{Code: uring.Read, File: f, Buf: buf, Offset: 4096})
		if !bytes.Equal(buf, want) {
			t.Errorf("%s: read back differs", name)
		}
		if name == "pool" {
			e.Pool().Put(buf)
		}
	}
}
