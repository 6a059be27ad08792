package console

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"
)

// How often the machine is looked at, and what is shown again.
const (
	lookEach = 3 * time.Second
	// QuietFor is how long a serial line is left alone after it was printed on.
	QuietFor = 15 * time.Second
	// drawEach has a screen drawn anew: the kernel writes there, too.
	drawEach = time.Minute
)

// Run shows the machine until ctx ends or the terminal is gone.
func Run(ctx context.Context, m *Machine, in, out *os.File) error {
	t, err := openTerminal(in, out)
	if err != nil {
		return err
	}
	defer func() { _ = t.close() }()
	done, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = done.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = end.Close() })
	defer func() {
		if stop() {
			_ = end.Close()
		}
	}()
	c := &console{m: m, t: t, done: done}
	for ctx.Err() == nil {
		if err := c.turn(ctx); err != nil {
			return err
		}
	}
	return nil
}

// console is one terminal's.
type console struct {
	m    *Machine
	t    *terminal
	done *os.File // readable when all is to end

	shown   []string
	at      time.Time // when they were
	at60    time.Time
	pressed bool
	said    string // the last action's result
}

// turn looks, shows, and waits for a key.
func (c *console) turn(ctx context.Context) error {
	s := c.m.look(ctx)
	c.show(s)
	key := make([]byte, 16) // a function key is several bytes
	n, err := c.t.read(key, c.done, lookEach)
	switch {
	case errors.Is(err, errQuiet), errors.Is(err, os.ErrClosed):
		return nil
	case err != nil:
		return err
	}
	c.pressed = true
	if n == 1 && (key[0] == 'm' || key[0] == 'M') {
		return c.menu(ctx, s)
	}
	return nil
}

// show draws or prints, if there is reason to.
func (c *console) show(s *state) {
	width, height := c.t.size()
	if !c.t.screen {
		s.clock, height = "", 200
	}
	lines := s.text(width, height-4)
	now := time.Now()
	same := slices.Equal(lines, c.shown)
	due := now.Sub(c.at) >= QuietFor
	if c.t.screen {
		due = !same || now.Sub(c.at60) >= drawEach
		same = false
	}
	if !c.pressed && (same || !due) {
		return
	}
	c.shown, c.at, c.at60, c.pressed = lines, now, now, false
	keys := "Keys: m menu, Enter shows this again"
	if s.locked {
		keys = "Enter shows this again"
	}
	if c.t.screen {
		c.t.say("\x1b[H\x1b[2J")
	}
	c.t.say("%s", "\r\n== Lunar ==\r\n"+strings.Join(lines, "\r\n")+"\r\n"+c.said+keys+"\r\n")
	c.said = ""
}
