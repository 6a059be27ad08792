package console

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoTerminal means that there is nobody to show anything to.
var ErrNoTerminal = errors.New("standard input is no terminal")

// terminal is the console's device: keys one by one, or lines.
type terminal struct {
	in, out *os.File
	before  unix.Termios
	screen  bool // it can be drawn on, and is nobody's log
}

func openTerminal(in, out *os.File) (*terminal, error) {
	t := &terminal{in: in, out: out}
	modes, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	t.before = *modes
	name, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", in.Fd()))
	t.screen = len(name) > len("/dev/tty") && strings.HasPrefix(name, "/dev/tty") && name[len("/dev/tty")] >= '0' && name[len("/dev/tty")] <= '9'
	err = t.keys()
	return t, err
}

// keys has each key come at once and unseen.
func (t *terminal) keys() error {
	modes := t.before
	modes.Lflag &^= unix.ICANON | unix.ECHO
	modes.Cc[unix.VMIN], modes.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &modes)
}

// lines has the terminal edit lines.
func (t *terminal) lines() error {
	modes := t.before
	modes.Lflag |= unix.ICANON | unix.ECHO | unix.ECHOE | unix.ISIG
	modes.Iflag |= unix.ICRNL
	return unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &modes)
}

func (t *terminal) close() error {
	return unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &t.before)
}

// size is the terminal's, or what a terminal has at least.
func (t *terminal) size() (width, height int) {
	w, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ)
	if err != nil || w.Col < 40 || w.Row < 10 {
		return 80, 24
	}
	return int(w.Col), int(w.Row)
}

// errQuiet means that nothing was typed in time.
var errQuiet = errors.New("nothing was typed")

// read waits for input, until done is readable or the time is over.
func (t *terminal) read(buf []byte, done *os.File, wait time.Duration) (int, error) {
	fds := []unix.PollFd{{Fd: int32(t.in.Fd()), Events: unix.POLLIN}, {Fd: int32(done.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(wait/time.Millisecond))
	switch {
	case errors.Is(err, unix.EINTR), err == nil && n == 0:
		return 0, errQuiet
	case err != nil:
		return 0, err
	case fds[1].Revents != 0:
		return 0, os.ErrClosed
	}
	return t.in.Read(buf)
}

func (t *terminal) say(format string, args ...any) {
	_, _ = fmt.Fprintf(t.out, strings.ReplaceAll(format, "\n", "\r\n"), args...)
}
