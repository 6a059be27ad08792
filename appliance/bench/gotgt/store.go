package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/gostor/gotgt/pkg/api"
	"github.com/gostor/gotgt/pkg/scsi"
	"golang.org/x/sys/unix"
)

// directStore is gotgt's file store with O_DIRECT, as the other targets in the comparison have it.
type directStore struct {
	scsi.BaseBackingStore
	file    *os.File
	buffers sync.Pool // *[]byte, aligned
}

const (
	maxTransfer = 4 << 20 // the longest command that the store takes
	alignment   = 4096
)

func newDirectStore() (api.BackingStore, error) {
	s := &directStore{BaseBackingStore: scsi.BaseBackingStore{Name: "direct"}}
	s.buffers.New = newBuffer
	return s, nil
}

func newBuffer() any {
	b := make([]byte, maxTransfer+alignment)
	skip := -uintptr(unsafe.Pointer(&b[0])) % alignment
	b = b[skip : skip+maxTransfer]
	return &b
}

// Open implements api.BackingStore.
func (s *directStore) Open(_ *api.SCSILu, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	s.file, s.DataSize = f, uint64(size)
	return err
}

// Close implements api.BackingStore.
func (s *directStore) Close(*api.SCSILu) error { return s.file.Close() }

// Init implements api.BackingStore.
func (s *directStore) Init(*api.SCSILu, string) error { return nil }

// Exit implements api.BackingStore.
func (s *directStore) Exit(*api.SCSILu) error { return nil }

// Size implements api.BackingStore.
func (s *directStore) Size(*api.SCSILu) uint64 { return s.DataSize }

// Read implements api.BackingStore.
func (s *directStore) Read(offset, length int64) ([]byte, error) {
	out := make([]byte, length)
	return out, s.aligned(length, func(b []byte) error {
		_, err := s.file.ReadAt(b, offset)
		copy(out, b)
		return err
	})
}

// Write implements api.BackingStore.
func (s *directStore) Write(data []byte, offset int64) error {
	return s.aligned(int64(len(data)), func(b []byte) error {
		copy(b, data)
		_, err := s.file.WriteAt(b, offset)
		return err
	})
}

func (s *directStore) aligned(length int64, do func([]byte) error) error {
	b := s.buffers.Get().(*[]byte) //nolint:errcheck // only *[]byte is ever put in
	defer s.buffers.Put(b)
	if length > int64(len(*b)) {
		return fmt.Errorf("%d bytes in one command, at most %d", length, len(*b))
	}
	return do((*b)[:length])
}

// DataSync implements api.BackingStore.
func (s *directStore) DataSync(int64, int64) error { return unix.Fdatasync(int(s.file.Fd())) }

// DataAdvise implements api.BackingStore; with O_DIRECT there is no cache to advise.
func (s *directStore) DataAdvise(int64, int64, uint32) error { return nil }

// Unmap implements api.BackingStore.
func (s *directStore) Unmap([]api.UnmapBlockDescriptor) error { return nil }
