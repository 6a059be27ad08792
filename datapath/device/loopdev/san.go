package loopdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SAN is a disk in a file, to which each node has a path of its own: a loop device over that file.
// Cutting a path fences its node, as taking away its key does on a real SAN.
type SAN struct {
	File  string
	paths []*Loop
}

// NewSAN makes the sparse file, of size bytes, or takes the one that is there. The caller closes the SAN
// and removes the file.
func NewSAN(file string, size int64) (*SAN, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("SAN: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, fmt.Errorf("SAN: %w", err)
	}
	return &SAN{File: file}, nil
}

// Connect gives another node its path.
func (s *SAN) Connect(o Options) (*Loop, error) {
	l, err := Attach(s.File, o)
	if err != nil {
		return nil, err
	}
	s.paths = append(s.paths, l)
	return l, nil
}

// Close detaches all paths.
func (s *SAN) Close() error {
	var err error
	for _, l := range s.paths {
		err = errors.Join(err, l.Detach())
	}
	s.paths = nil
	return err
}

// beyond is an offset past the end of every file: what was let in before the cut, and is done after
// it, misses the disk.
const beyond = 1 << 46

// Cut takes the path at this loop device away, from any process. When it returns without an error, what was under way has ended
// and nothing that comes later, even to sectors that stayed in a queue, reaches the disk.
func Cut(device string) error {
	if err := shift(device, beyond); err != nil {
		return fmt.Errorf("cut %s: %w", device, err)
	}
	return nil
}

// Mend gives a path back that Cut took.
func Mend(device string) error {
	if err := shift(device, 0); err != nil {
		return fmt.Errorf("mend %s: %w", device, err)
	}
	return nil
}

func shift(device string, offset uint64) error {
	f, err := os.OpenFile(device, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return err
	}
	info.Offset = offset
	return unix.IoctlLoopSetStatus64(int(f.Fd()), info)
}
