package uring_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"lunar/datapath/uring"
	"lunar/datapath/uring/uringtest"
)

func TestDiscardFile(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	checkDiscard(t, e, openFile(t, e, 1<<20))
}

// TestDiscardDevice discards on a loop device, which passes it on to its file.
func TestDiscardDevice(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	checkDiscard(t, e, register(t, e, int(openLoop(t).Fd())))
}

// TestDiscardByIoctl takes the way of kernels that have no discard command.
func TestDiscardByIoctl(t *testing.T) {
	e := uringtest.Open(t, uring.Options{})
	defer uring.DenyDiscardCommand()()
	checkDiscard(t, e, register(t, e, int(openLoop(t).Fd())))
}

// checkDiscard fills a megabyte, gives a part up, zeroes another, and looks at all of it.
func checkDiscard(t *testing.T, e *uring.Engine, f *uring.File) {
	t.Helper()
	buf, back := bytes.Repeat([]byte{0xaa}, 1<<20), make([]byte, 1<<20)
	do(t, e, &uring.Op{Code: uring.Write, File: f, Buf: buf})
	do(t, e, &uring.Op{Code: uring.Discard, File: f, Offset: 65536, Length: 131072})
	do(t, e, &uring.Op{Code: uring.WriteZeroes, File: f, Offset: 524288, Length: 8192})
	do(t, e, &uring.Op{Code: uring.Read, File: f, Buf: back})
	clear(buf[65536:][:131072])
	clear(buf[524288:][:8192])
	if !bytes.Equal(buf, back) {
		t.Error("content differs after discard and write zeroes")
	}
}

// openLoop makes a loop device over a file of 1 MiB; the kernel takes it away at the last close.
func openLoop(t *testing.T) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	back, err := os.Create(t.TempDir() + "/back")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = back.Close() }()
	if err := back.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	defer func() { _ = control.Close() }()
	for range 10 { // another test may take the number first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		if dev := configureLoop(t, fmt.Sprintf("/dev/loop%d", n), back); dev != nil {
			return dev
		}
	}
	t.Fatal("no free loop device")
	return nil
}

func configureLoop(t *testing.T, path string, back *os.File) *os.File {
	t.Helper()
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	config := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 512, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &config); err != nil {
		_ = dev.Close()
		return nil
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}
