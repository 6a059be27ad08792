package guard

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// XFS_IOC_GOINGDOWN, which is EXT4_IOC_SHUTDOWN too; noLogFlush lets nothing more reach the device.
const (
	goingDown  = 0x8004587d
	noLogFlush = 2
)

// complainEvery is how often the guard says that something still is not dead.
const complainEvery = 10 * time.Second

// canShutDown tells whether f's file system is one that a shutdown ends.
func canShutDown(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags&unix.O_PATH != 0 {
		return errors.New("the descriptor is an O_PATH one, which takes no orders: give an open folder of the mount")
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Type != unix.XFS_SUPER_MAGIC && st.Type != unix.EXT4_SUPER_MAGIC {
		return fmt.Errorf("file system of type %#x is neither XFS nor ext4 and cannot be shut down", st.Type)
	}
	return nil
}

func shutDown(f *os.File) error {
	if err := goDown(int(f.Fd())); err != nil && !errors.Is(err, unix.EIO) { // EIO: it is down
		return err
	}
	return nil
}

func goDown(fd int) error {
	flags := uint32(noLogFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), goingDown, uintptr(unsafe.Pointer(&flags)))
	if errno != 0 {
		return errno
	}
	return nil
}

// downed is how one volume's end went.
type downed struct {
	volume string
	at     time.Duration // of Now, when it was done
	err    error
}

// end kills the daemon, shuts every volume down, says so, and returns when the daemon is gone: a stopped
// one too. It goes on until all that has happened; the watchdog, if any, is not fed meanwhile.
func (s *server) end(why reason) error {
	began := Now()
	killed := kill()
	results := make(chan downed, len(s.mounts))
	for volume, f := range s.mounts {
		go func() {
			err := shutDown(f)
			results <- downed{volume, Now(), err}
		}()
	}
	s.log.Error("shutting volumes down", "reason", string(why), "volumes", len(s.mounts), "at", int64(began), "kill", errorText(killed))
	err := s.collect(began, results)
	s.awaitDeath()
	for _, f := range s.mounts {
		err = errors.Join(err, f.Close()) // the last use: this unmounts
	}
	s.took = Now() - began
	if err != nil {
		return err
	}
	return s.watchdog.disarm()
}

func (s *server) collect(began time.Duration, results <-chan downed) (err error) {
	complain := time.NewTicker(complainEvery)
	defer complain.Stop()
	for left := len(s.mounts); left > 0; {
		select {
		case d := <-results:
			left--
			if d.err != nil {
				err = errors.Join(err, fmt.Errorf("volume %s: %w", d.volume, d.err))
			}
			s.log.Error("volume shut down", "volume", d.volume, "took", d.at-began, "at", int64(d.at), "error", errorText(d.err))
		case <-complain.C:
			s.log.Error("volumes are still not shut down", "left", left)
		}
	}
	return err
}

// kill works on a stopped daemon too.
func kill() error {
	err := unix.PidfdSendSignal(fdParent, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// awaitDeath waits until the daemon's last thread has left the kernel: only then are its own writes over.
func (s *server) awaitDeath() {
	for {
		poll := []unix.PollFd{{Fd: fdParent, Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int(complainEvery.Milliseconds()))
		if n > 0 {
			s.log.Error("the daemon is gone", "at", int64(Now()))
			return
		}
		if err == nil {
			s.log.Error("the daemon is killed but does not end: a thread hangs in the kernel")
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return "none"
	}
	return err.Error()
}
