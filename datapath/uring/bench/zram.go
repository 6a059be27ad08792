package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errNoDevice says that this machine has no such device; the others are measured.
var errNoDevice = errors.New("not available")

// zramControl is the directory of the driver's controls; see the kernel's admin-guide/blockdev/zram.rst.
const zramControl = "/sys/class/zram-control"

// maxZram keeps the memory of a zram device, which holds what cannot be compressed, in bounds.
const maxZram = 512 << 20

// newZram makes a RAM disk that does each request in the thread that calls it. It cannot promise not to
// block, so io_uring calls it from a worker thread of the ring, whose CPU time fio does not count as its own.
// Only reads are compared: what a write costs depends on what it stores.
func newZram(size int64) (*device, error) {
	number, err := os.ReadFile(filepath.Join(zramControl, "hot_add"))
	if err != nil {
		return nil, fmt.Errorf("zram: %w: %w", errNoDevice, err)
	}
	n := strings.TrimSpace(string(number))
	remove := func() { removeZram(n) }
	if err := os.WriteFile("/sys/block/zram"+n+"/disksize", fmt.Append(nil, size), 0o644); err != nil {
		remove()
		return nil, fmt.Errorf("zram%s: %w", n, err)
	}
	d := &device{path: "/dev/zram" + n, what: "zram", size: size, undo: remove, reads: true}
	if err := d.open(os.O_RDWR); err != nil {
		remove()
		return nil, err
	}
	if err := fill(d.file, size); err != nil {
		d.close()
		return nil, fmt.Errorf("fill %s: %w", d.path, err)
	}
	return d, nil
}

// zramPatience is for how long a device may stay busy after its last close: the kernel lets go of a ring's files later.
const zramPatience = 5 * time.Second

func removeZram(n string) {
	for end := time.Now().Add(zramPatience); ; time.Sleep(10 * time.Millisecond) {
		err := os.WriteFile(filepath.Join(zramControl, "hot_remove"), []byte(n), 0o200)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "bench: zram%s is left behind: %v\n", n, err)
			return
		}
	}
}
