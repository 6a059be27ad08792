package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reservationPath is one way to the LUN. A command that hangs in the kernel keeps it busy; the
// caller goes on when its context ends.
type reservationPath struct {
	name    string
	file    *os.File
	timeout time.Duration
	turn    chan struct{} // holds one token: a command is under way
	pending sync.WaitGroup
}

func openReservationPath(name string, timeout time.Duration) (*reservationPath, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reservations on %s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, errors.Join(fmt.Errorf("reservations on %s: %w", name, ErrNotBlock), err, unix.Close(fd))
	}
	return &reservationPath{name: name, file: os.NewFile(uintptr(fd), name), timeout: timeout, turn: make(chan struct{}, 1)}, nil
}

// close returns at once; a command that still hangs keeps the descriptor until it is back.
func (p *reservationPath) close() error {
	select {
	case p.turn <- struct{}{}:
		return p.file.Close()
	default:
		p.pending.Go(func() {
			p.turn <- struct{}{}
			_ = p.file.Close()
		})
		return nil
	}
}

// do runs one command, on a goroutine that outlives ctx only as long as the kernel holds it.
func (p *reservationPath) do(ctx context.Context, command func(context.Context) error) error {
	select {
	case p.turn <- struct{}{}:
	default:
		select {
		case p.turn <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", p.name, ErrPathBusy, ctx.Err())
		}
	}
	done := make(chan error, 1)
	p.pending.Go(func() {
		defer func() { <-p.turn }()
		done <- command(ctx)
	})
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: no answer: %w", p.name, ctx.Err())
	}
}

// out does a PERSISTENT RESERVE OUT: the kernel's ioctl, and SG_IO where that does not tell.
func (p *reservationPath) out(ctx context.Context, o reservationOut) error {
	return p.do(ctx, func(ctx context.Context) error {
		err := p.kernelOut(o)
		if !errors.Is(err, errKernelUnsure) {
			return err
		}
		o.aptpl = o.action == outRegister || o.action == outRegisterIgnore
		sent := p.sendOut(ctx, o)
		if o.aptpl && errors.Is(sent, unix.EINVAL) { // a LUN that cannot keep registrations
			o.aptpl = false
			sent = p.sendOut(ctx, o)
		}
		return sent
	})
}

func (p *reservationPath) sendOut(ctx context.Context, o reservationOut) error {
	cdb, list := o.encode()
	_, err := p.send(ctx, cdb, list, true)
	return err
}

func (p *reservationPath) readKeys(ctx context.Context) (Registrations, error) {
	return answer(ctx, p, func(ctx context.Context) (Registrations, error) {
		r, err := p.kernelReadKeys()
		if errors.Is(err, errKernelUnsure) {
			return p.sendReadKeys(ctx)
		}
		return r, err
	})
}

func (p *reservationPath) sendReadKeys(ctx context.Context) (Registrations, error) {
	for size := firstReadBytes; ; {
		data := make([]byte, size)
		n, err := p.send(ctx, reservationIn(inReadKeys, size), data, false)
		if err != nil {
			return Registrations{}, err
		}
		r, whole, err := decodeKeys(data[:n])
		if err != nil || whole <= n {
			return r, err
		}
		if whole <= size {
			return r, malformed("READ KEYS data is cut short at %d of %d bytes", n, whole)
		}
		size = whole
	}
}

func (p *reservationPath) readReservation(ctx context.Context) (Reservation, error) {
	return answer(ctx, p, func(ctx context.Context) (Reservation, error) {
		r, err := p.kernelReadReservation()
		if !errors.Is(err, errKernelUnsure) {
			return r, err
		}
		data := make([]byte, 24)
		n, err := p.send(ctx, reservationIn(inReadReservation, len(data)), data, false)
		if err != nil {
			return r, err
		}
		return decodeReservation(data[:n])
	})
}

func (p *reservationPath) capabilities(ctx context.Context) (ReservationCapabilities, error) {
	return answer(ctx, p, func(ctx context.Context) (c ReservationCapabilities, err error) {
		data := make([]byte, 8)
		n, err := p.send(ctx, reservationIn(inReportCapabilities, len(data)), data, false)
		if err != nil {
			return c, err
		}
		return decodeCapabilities(data[:n])
	})
}

// answer runs a command that returns something.
func answer[T any](ctx context.Context, p *reservationPath, command func(context.Context) (T, error)) (T, error) {
	got := make(chan T, 1)
	err := p.do(ctx, func(ctx context.Context) error {
		v, err := command(ctx)
		got <- v
		return err
	})
	var v T
	if err == nil {
		v = <-got
	}
	return v, err
}

// pathsOf is the devices below a multipath device, by name, and the disk of a partition; any other
// device is its own path.
func pathsOf(device string) ([]string, error) {
	resolved, err := filepath.EvalSymlinks(device)
	if err != nil {
		return nil, fmt.Errorf("reservations on %s: %w", device, err)
	}
	sys := "/sys/class/block/" + strings.ReplaceAll(strings.TrimPrefix(resolved, "/dev/"), "/", "!")
	if read(sys, "partition") != "" {
		return pathsOf("/dev/" + strings.ReplaceAll(filepath.Base(parent(sys)), "!", "/"))
	}
	if !strings.HasPrefix(read(sys, "dm/uuid"), "mpath-") {
		return []string{resolved}, nil
	}
	slaves, err := os.ReadDir(sys + "/slaves")
	if err != nil {
		return nil, fmt.Errorf("paths of %s: %w", device, err)
	}
	var names []string
	for _, s := range slaves {
		names = append(names, "/dev/"+strings.ReplaceAll(s.Name(), "!", "/"))
	}
	sort.Strings(names)
	return names, nil
}
