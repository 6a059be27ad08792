package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/firstboot"
)

// action is one entry of the menu.
type action struct {
	key   byte
	label string
	open  func(*console, *state) bool // whether it is offered; nil: while the menu is
	do    func(*console, context.Context) (string, error)
}

var errCancelled = errors.New("nothing was changed")

func actions() []action {
	damaged := func(_ *console, s *state) bool { return s.damaged }
	return []action{
		{'1', "network: dhcp, or 192.0.2.10/24,gateway=192.0.2.1,dns=192.0.2.53,interface=eth0; several apart by ;", nil, set(firstboot.Network)},
		{'2', "node name", nil, set(firstboot.NodeName)},
		{'3', "join a cluster", nil, (*console).join},
		{'4', "ssh key of root; empty turns ssh off", nil, set(firstboot.SSHKey)},
		{'5', "time servers", nil, set(firstboot.NTP)},
		{'6', "set the clock", nil, (*console).setClock},
		{'7', "restart lunard", nil, command("systemctl", "--no-block", "restart", "lunard.service", "lunard-iscsi.socket")},
		{'8', "free space: forget old journals", nil, command("journalctl", "--rotate", "--vacuum-size=16M")},
		{'c', "check and repair the state partition, then restart", damaged, (*console).repairState},
		{'x', "erase the state partition, then restart: this node's settings and its place in the cluster are lost", damaged, (*console).resetState},
		{'b', "go back to the other image, and restart", func(_ *console, s *state) bool { return s.other != "" }, (*console).rollback},
		{'r', "restart the machine", nil, sure(command("systemctl", "reboot"))},
		{'p', "power off", nil, sure(command("systemctl", "poweroff"))},
		{'l', "log in", func(*console, *state) bool { return rootHasPassword("/etc/shadow") }, (*console).logIn},
		{'s', "a shell: this is the recovery entry", func(c *console, _ *state) bool { return c.m.recovery() }, (*console).shell},
	}
}

// menu offers what may be done, and does it.
func (c *console) menu(ctx context.Context, s *state) error {
	if s.locked {
		c.said = "The menu is off: the setting console says so.\r\n"
		return nil
	}
	var offered []action
	c.t.say("\n")
	for _, a := range actions() {
		if a.open == nil || a.open(c, s) {
			offered = append(offered, a)
			c.t.say("  %c  %s\n", a.key, a.label)
		}
	}
	c.t.say("Which? (any other key: none) ")
	key := make([]byte, 16)
	n, err := c.t.read(key, c.done, typing)
	c.t.say("\n")
	if err != nil || n != 1 {
		return nil //nolint:nilerr // whoever opened the menu has gone, or the console ends
	}
	for _, a := range offered {
		if a.key == key[0] {
			c.act(ctx, &a)
		}
	}
	return nil
}

func (c *console) act(ctx context.Context, a *action) {
	said, err := a.do(c, ctx)
	switch {
	case errors.Is(err, errCancelled):
		c.said = "Nothing was changed.\r\n"
	case err != nil:
		c.said = "FAILED: " + plain(err.Error()) + "\r\n"
	default:
		c.said = plain(said) + "\r\n"
	}
}

// typing is how long a question is left open.
const typing = 2 * time.Minute

// ask reads a line.
func (c *console) ask(prompt string) (string, error) {
	if err := c.t.lines(); err != nil {
		return "", err
	}
	defer func() { _ = c.t.keys() }()
	c.t.say("%s", prompt)
	buf := make([]byte, 4096)
	n, err := c.t.read(buf, c.done, typing)
	if errors.Is(err, errQuiet) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) {
		c.t.say("\n")
		return "", errCancelled
	}
	return strings.TrimSpace(string(buf[:n])), err
}

// set asks for a setting, and brings it into force.
func set(name string) func(*console, context.Context) (string, error) {
	return func(c *console, ctx context.Context) (string, error) {
		value, err := c.ask(name + " (empty: the default): ")
		if err != nil {
			return "", err
		}
		return c.change(ctx, [][2]string{{name, value}})
	}
}

func (c *console) change(ctx context.Context, settings [][2]string) (string, error) {
	for _, s := range settings { // all, before the first one is changed
		if err := firstboot.Check(s[0], s[1]); err != nil {
			return "", fmt.Errorf("%s: %w", s[0], err)
		}
	}
	var reload [][]string
	for _, s := range settings {
		r, err := c.m.First.Set(s[0], s[1])
		if err != nil {
			return "", err
		}
		if why := r.Problems[s[0]]; why != "" {
			return "", errors.New(why)
		}
		reload = firstboot.Reload(s[0])
	}
	for _, words := range reload {
		if _, err := command(words...)(c, ctx); err != nil {
			return "", fmt.Errorf("it is set, and not in force before the next boot: %w", err)
		}
	}
	return "Set.", nil
}

func (c *console) join(ctx context.Context) (string, error) {
	address, err := c.ask("address of a node of the cluster: ")
	if err != nil || address == "" {
		return "", errors.Join(errCancelled, err)
	}
	token, err := c.ask("token, of `lunarctl cluster token` there: ")
	if err != nil || token == "" {
		return "", errors.Join(errCancelled, err)
	}
	_, err = c.change(ctx, [][2]string{{firstboot.JoinAddress, address}, {firstboot.JoinToken, token}})
	return "lunard restarts, and joins.", err
}

// clockForm is how a time is typed, in UTC.
const clockForm = "2006-01-02 15:04"

func (c *console) setClock(context.Context) (string, error) {
	text, err := c.ask("time in UTC, such as " + clockForm + ": ")
	if err != nil || text == "" {
		return "", errors.Join(errCancelled, err)
	}
	t, err := time.Parse(clockForm, text)
	if err != nil {
		return "", fmt.Errorf("%q is no time such as %s", text, clockForm)
	}
	tv := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return "", fmt.Errorf("set the clock: %w", err)
	}
	if out, err := exec.Command("hwclock", "--systohc", "--utc").CombinedOutput(); err != nil {
		return "The clock is set until the power goes: " + strings.TrimSpace(string(out)), nil //nolint:nilerr // said
	}
	return "The clock is set.", nil
}

// commandFor bounds a command of the menu.
const commandFor = 2 * time.Minute

// command runs a program.
func command(words ...string) func(*console, context.Context) (string, error) {
	return func(_ *console, ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, commandFor)
		defer cancel()
		out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
		}
		return "Done.", nil
	}
}

// sure asks before it does something.
func sure(do func(*console, context.Context) (string, error)) func(*console, context.Context) (string, error) {
	return func(c *console, ctx context.Context) (string, error) {
		if answer, err := c.ask("Type yes to go on: "); err != nil || answer != "yes" {
			return "", errors.Join(errCancelled, err)
		}
		return do(c, ctx)
	}
}

func (c *console) rollback(ctx context.Context) (string, error) {
	return sure(func(c *console, ctx context.Context) (string, error) {
		if _, err := c.m.Slots.Rollback(false); err != nil {
			return "", err
		}
		return command("systemctl", "reboot")(c, ctx)
	})(c, ctx)
}

func (c *console) statePartition() string { return filepath.Join(c.m.First.Run, "state") }

func (c *console) repairState(ctx context.Context) (string, error) {
	return sure(func(c *console, ctx context.Context) (string, error) {
		out, err := exec.CommandContext(ctx, "e2fsck", "-f", "-y", c.statePartition()).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() < 4 { // mended
			err = nil
		}
		if err != nil {
			return "", fmt.Errorf("e2fsck: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return command("systemctl", "reboot")(c, ctx)
	})(c, ctx)
}

// wiped is how much of the state partition is zeroed; the initrd makes a new file system on one that begins so.
const wiped = 1 << 20

func (c *console) resetState(ctx context.Context) (string, error) {
	return sure(func(c *console, ctx context.Context) (string, error) {
		f, err := os.OpenFile(c.statePartition(), os.O_WRONLY|unix.O_EXCL, 0)
		if err != nil {
			return "", err
		}
		_, err = f.WriteAt(make([]byte, wiped), 0)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return "", err
		}
		return command("systemctl", "reboot")(c, ctx)
	})(c, ctx)
}

// rootHasPassword tells whether root can log in by one, shadow(5).
func rootHasPassword(shadow string) bool {
	text, err := os.ReadFile(shadow)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) > 1 && f[0] == "root" {
			return strings.HasPrefix(f[1], "$")
		}
	}
	return false
}

func (c *console) logIn(ctx context.Context) (string, error) { return c.program(ctx, "login") }

func (c *console) shell(ctx context.Context) (string, error) {
	return c.program(ctx, "sulogin", "--force")
}

// program has the terminal until it ends.
func (c *console) program(ctx context.Context, words ...string) (string, error) {
	if err := c.t.close(); err != nil {
		return "", err
	}
	defer func() { _ = c.t.keys() }()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.t.in, c.t.out, c.t.out
	_ = cmd.Run() // how a shell ended is nobody's error
	return "", nil
}
