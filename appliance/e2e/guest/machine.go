package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"lunar/appliance/e2e/lab"
)

// Drive is one virtio disk of a machine.
type Drive struct {
	File     string // path, or a URL that QEMU has a driver for, such as iscsi://HOST:PORT/IQN/LUN
	Snapshot bool   // keep writes in a temporary file instead
}

func (d Drive) String() string {
	s := "file=" + d.File + ",format=raw,if=virtio,discard=unmap"
	if d.Snapshot {
		s += ",snapshot=on"
	}
	return s
}

// MachineOptions say what to boot. Drives are required.
type MachineOptions struct {
	Drives []Drive
	Direct *Image // boot its kernel and initrd; nil lets SeaBIOS boot the first drive
	MiB    int    // memory; 0 is 512
}

// Validate says what is missing or out of range.
func (o MachineOptions) Validate() error {
	switch {
	case len(o.Drives) == 0:
		return errors.New("machine: needs at least one drive")
	case o.MiB != 0 && o.MiB < 256:
		return fmt.Errorf("machine: %d MiB of memory are too few for Debian, give 256 or more", o.MiB)
	}
	return nil
}

func (o MachineOptions) command(console, serial string) []string {
	if o.MiB == 0 {
		o.MiB = 512
	}
	args := []string{
		"nice", "-n", "10", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", strconv.Itoa(o.MiB),
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:" + serial,
		"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console",
		"-chardev", "socket,id=console,path=" + console + ",server=on,wait=off",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
	}
	for _, d := range o.Drives {
		args = append(args, "-drive", d.String())
	}
	if o.Direct != nil {
		args = append(args, "-kernel", o.Direct.Kernel, "-initrd", o.Direct.Initrd, "-append", o.Direct.Cmdline)
	}
	return args
}

// Machine is a running guest; its methods serve one goroutine at a time.
type Machine struct {
	qemu   *lab.Process
	conn   net.Conn
	serial string
	*Shell
}

// dialLimit bounds the time until QEMU listens on the console's socket.
const dialLimit = 30 * time.Second

// StartMachine boots a guest and returns when its root shell answers. The lab's folder holds one machine at a time. The
// caller must Close it.
func StartMachine(ctx context.Context, l *lab.Lab, o MachineOptions) (*Machine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	console, serial := l.Path("console"), l.Path("serial.log")
	qemu, err := l.Start(o.command(console, serial)...)
	if err != nil {
		return nil, err
	}
	m := &Machine{qemu: qemu, serial: serial}
	if err := m.connect(ctx, console); err != nil {
		err = fmt.Errorf("boot: %w\n%s", err, m.lastWords())
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) connect(ctx context.Context, console string) error {
	var dialer net.Dialer
	err := lab.Poll(dialLimit, func() (err error) {
		m.conn, err = dialer.DialContext(ctx, "unix", console)
		return err
	})
	if err != nil {
		return err
	}
	m.Shell = NewShell(m.conn)
	return m.Greet(ctx)
}

// lastWords is the end of what QEMU and the guest's serial console said.
func (m *Machine) lastWords() string {
	serial, err := os.ReadFile(m.serial)
	if err != nil {
		return err.Error()
	}
	const limit = 2000
	return m.qemu.Log() + string(serial[max(0, len(serial)-limit):])
}

// PowerOff shuts the guest down in order and returns when QEMU has ended.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.send("systemctl poweroff\n"); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	select {
	case <-m.qemu.Exited():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power off: %w\n%s", ctx.Err(), m.lastWords())
	}
}

// Close pulls the plug, if the guest still runs, and frees what the machine held.
func (m *Machine) Close() error {
	err := m.qemu.Stop()
	if m.conn != nil {
		_ = m.conn.Close()
	}
	return err
}
