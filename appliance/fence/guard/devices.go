package guard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLock bounds the byte by which a daemon marks a device: locks end at the largest offset.
const maxLock = math.MaxInt64 - 1

// How often a device is looked at until nothing is under way, and for how long it must stay so.
const (
	firstLook = time.Millisecond
	maxLook   = 20 * time.Millisecond
	stillness = 3 * time.Millisecond
)

// watched is a device that the daemon writes to.
type watched struct {
	path   string
	number uint64 // st_rdev
	inode  uint64
	node   uint64 // st_dev of the device file: the mark is found by that very file
	lock   int64
}

// observe takes a device over; the daemon's mark must be seen, or else its end could not be.
func (s *server) observe(r request) error {
	if s.disarmed && s.word.load() == 0 {
		return errors.New("there is no deadline: renew it first")
	}
	if s.devices[r.Volume] != nil {
		return fmt.Errorf("the device of volume %s is watched already", r.Volume)
	}
	w := &watched{path: r.Path, lock: r.Lock}
	f, st, err := w.open(0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("%s is not a block device", w.path)
	}
	w.number, w.inode, w.node = st.Rdev, st.Ino, st.Dev
	if gone, err := w.unmarked(f); err != nil || gone {
		return errors.Join(err, fmt.Errorf("%s does not show the daemon's mark", w.path))
	}
	if _, err := w.counted(); err != nil {
		return err
	}
	s.devices[r.Volume] = w
	return nil
}

func (s *server) forget(volume string) error {
	if s.devices[volume] == nil {
		return fmt.Errorf("the device of volume %s is not watched", volume)
	}
	delete(s.devices, volume)
	return nil
}

func (w *watched) open(flags int) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Open(w.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, st, fmt.Errorf("open %s: %w", w.path, err)
	}
	f := os.NewFile(uintptr(fd), w.path)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, errors.Join(fmt.Errorf("%s: %w", w.path, err), f.Close())
	}
	return f, st, nil
}

// errBusy: writes may still be under way, for the reason that stands beside it.
var errBusy = errors.New("not still yet")

// still returns when nothing of the dead daemon can reach the device any more. Three things must be seen:
//
//   - The device can be had exclusively: the kernel has given up the superblock, and with it all threads of the
//     file system, and every file on it that a request still used.
//   - The daemon's mark is gone: a direct write through io_uring, wherever it waits, in the ring, in a worker, in a
//     queue of the block layer or in the device, holds the open file to its end; the kernel cancels what was not
//     issued when the process ended, and drops the mark with the last such request.
//   - The device's counters say that nothing is under way, twice.
func (w *watched) still(ctx context.Context) error {
	look := firstLook
	for {
		err := w.look()
		if err == nil || !errors.Is(err, errBusy) {
			return err
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
		look = min(2*look, maxLook)
	}
}

func (w *watched) look() error {
	f, st, err := w.open(unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %s is mounted or held by another driver", errBusy, w.path)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if st.Rdev != w.number || st.Ino != w.inode || st.Dev != w.node {
		return fmt.Errorf("%s is another device now", w.path)
	}
	gone, err := w.unmarked(f)
	if err != nil {
		return err
	}
	if !gone {
		return fmt.Errorf("%w: requests to %s are under way", errBusy, w.path)
	}
	return w.counters()
}

// unmarked tells that the daemon's open file is gone.
func (w *watched) unmarked(f *os.File) (bool, error) {
	mark := unix.Flock_t{Type: unix.F_WRLCK, Start: w.lock, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &mark); err != nil {
		return false, fmt.Errorf("look for the mark on %s: %w", w.path, err)
	}
	return mark.Type == unix.F_UNLCK, nil
}

func (w *watched) counters() error {
	for again := range 2 {
		if again > 0 {
			time.Sleep(stillness)
		}
		n, err := w.counted()
		if err != nil {
			return err
		}
		if n != 0 {
			return fmt.Errorf("%w: %s has %d requests under way", errBusy, w.path, n)
		}
	}
	return nil
}

// statInFlight is the field of a device's stat that counts what was begun and has not ended; newer kernels count
// there what waits in a scheduler too, and in the file inflight what the driver has.
const statInFlight = 8

// counted is how many requests the device has under way; of a partition, its disk.
func (w *watched) counted() (n int, err error) {
	folder := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(w.number), unix.Minor(w.number))
	if _, err := os.Stat(folder + "partition"); err == nil {
		folder += "../"
	}
	inflight, err := fields(folder+"inflight", 2)
	if err != nil {
		return 0, err
	}
	stat, err := fields(folder+"stat", statInFlight+1)
	if err != nil {
		return 0, err
	}
	for _, f := range []string{inflight[0], inflight[1], stat[statInFlight]} {
		one, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", folder, err)
		}
		n += one
	}
	return n, nil
}

func fields(name string, atLeast int) ([]string, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b))
	if len(f) < atLeast {
		return nil, fmt.Errorf("%s: %q has fewer than %d fields", name, b, atLeast)
	}
	return f, nil
}
