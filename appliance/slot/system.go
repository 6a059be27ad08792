package slot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultDir is where the initrd leaves the links to the boot disk's partitions.
const DefaultDir = "/run/lunar-appliance"

// DefaultKey is the public key which updates have to be signed for, where that file is there.
const DefaultKey = "/etc/lunar/update.pem"

// Tries is how often a slot is booted before the loader gives it up.
const Tries = 2

// ConfirmTimeout is how long a slot on trial has until the daemon must be ready; lunar.confirm-timeout=SECONDS on the kernel
// command line sets another time.
const ConfirmTimeout = 10 * time.Minute

// The errors that callers tell apart.
var (
	ErrNoAppliance = errors.New("this machine was not booted from an appliance image")
	ErrTrial       = errors.New("this boot is a trial")
	ErrBusy        = errors.New("another update is under way")
	ErrNothing     = errors.New("there is nothing to go back to")
)

// System is the machine's slots.
type System struct {
	Dir     string // has env, a and b, links to the partitions
	Key     string // file of the public key; a missing file, or "": none is needed
	Cmdline string // of the kernel

	open func(name string) (partition, error)
}

// partition is a partition of the boot disk.
type partition interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Size() (int64, error)
}

// Here is the slots of the machine that this process runs on.
func Here() (*System, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	return &System{Dir: DefaultDir, Key: DefaultKey, Cmdline: string(cmdline)}, nil
}

// argument is a value on the kernel command line; the last one counts.
func (s *System) argument(name string) (value string) {
	for _, word := range strings.Fields(s.Cmdline) {
		if v, ok := strings.CutPrefix(word, name+"="); ok {
			value = v
		}
	}
	return value
}

// Booted is the slot that the machine was booted from.
func (s *System) Booted() (string, error) {
	switch name := s.argument("lunar.slot"); name {
	case "a", "b":
		return name, nil
	case "":
		return "", fmt.Errorf("%w: the kernel command line has no lunar.slot", ErrNoAppliance)
	default:
		return "", fmt.Errorf("%w: lunar.slot=%s is neither a nor b", ErrNoAppliance, name)
	}
}

func otherThan(slot string) string {
	if slot == "a" {
		return "b"
	}
	return "a"
}

// Timeout is the time that a slot on trial has.
func (s *System) Timeout() time.Duration {
	d, err := time.ParseDuration(s.argument("lunar.confirm-timeout") + "s")
	if err != nil || d <= 0 {
		return ConfirmTimeout
	}
	return d
}

// lock keeps two updates apart, until the file is closed.
func (s *System) lock() (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(s.Dir, "update.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNoAppliance, s.Dir)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, ErrBusy
	}
	return f, nil
}

// openPartition opens a link below Dir. A slot is opened alone: the kernel refuses one that is mounted.
func (s *System) openPartition(name string) (partition, error) {
	if s.open != nil {
		return s.open(name)
	}
	flags := os.O_RDWR
	if name != "env" {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, name), flags, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", ErrNoAppliance, err)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("slot %s is in use: unmount it: %w", name, err)
	case err != nil:
		return nil, err
	}
	return device{f}, nil
}

type device struct{ *os.File }

// Size is where the partition ends.
func (d device) Size() (int64, error) { return d.Seek(0, io.SeekEnd) }

// environment reads the loader's variables.
func (s *System) environment() (*environment, error) {
	p, err := s.openPartition("env")
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	block := make([]byte, blockSize)
	if _, err := p.ReadAt(block, 0); err != nil {
		return nil, fmt.Errorf("read the loader's environment block: %w", err)
	}
	return parseEnvironment(block)
}

// store makes the variables durable: those before, or these, whenever the power is cut.
func (s *System) store(e *environment) error {
	block, err := e.block()
	if err != nil {
		return err
	}
	p, err := s.openPartition("env")
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	tail := make([]byte, blockSize-sectorSize)
	if _, err := p.ReadAt(tail, sectorSize); err != nil {
		return fmt.Errorf("read the loader's environment block: %w", err)
	}
	if !bytes.Equal(tail, block[sectorSize:]) { // only a damaged block
		if _, err := p.WriteAt(block[sectorSize:], sectorSize); err != nil {
			return fmt.Errorf("write the loader's environment block: %w", err)
		}
	}
	if _, err := p.WriteAt(block[:sectorSize], 0); err != nil {
		return fmt.Errorf("write the loader's environment block: %w", err)
	}
	if err := p.Sync(); err != nil {
		return fmt.Errorf("write the loader's environment block: %w", err)
	}
	return nil
}
