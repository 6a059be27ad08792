package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// fenceLimit bounds the probe in an emulated guest.
const fenceLimit = 9 * time.Minute

// FenceLIO runs the program fenceprobe (a static binary at that path) in a guest against Linux's own target: one
// initiator of the LUN fences the other. The output is returned with an error too.
func (s Scenario) FenceLIO(ctx context.Context, program string) (string, error) {
	spare, err := spareDisks(s.Lab)
	if err != nil {
		return "", fmt.Errorf("fence LIO: %w", err)
	}
	return s.fence(ctx, program, spare, StartLIO)
}

// FenceHost is FenceLIO against a target on the host.
func (s Scenario) FenceHost(ctx context.Context, program string, t Target) (string, error) {
	return s.fence(ctx, program, nil, func(context.Context, *Machine) (Target, error) { return t, nil })
}

func (s Scenario) fence(ctx context.Context, program string, spare []Drive, start func(context.Context, *Machine) (Target, error)) (output string, err error) {
	carrier, size, err := s.carry(program)
	if err != nil {
		return "", err
	}
	drives := append([]Drive{{File: s.Image.Disk, Snapshot: true}}, spare...)
	m, err := StartMachine(ctx, s.Lab, MachineOptions{Direct: &s.Image, Drives: append(drives, Drive{File: carrier})})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	t, err := start(ctx, m)
	if err != nil {
		return "", err
	}
	if err := enter(ctx, m, t); err != nil {
		return "", err
	}
	disk := "/dev/vd" + string(rune('a'+len(drives)))
	script := fmt.Sprintf("uname -r; head -c %d %s >/run/fenceprobe && chmod +x /run/fenceprobe && exec /run/fenceprobe $DEV $PEER", size, disk)
	status, output, err := m.Run(ctx, fenceLimit, script)
	if err == nil && status != 0 {
		err = fmt.Errorf("fenceprobe: exit status %d\n%s", status, m.lastWords())
	}
	return output, err
}

// carry makes a disk of the program.
func (s Scenario) carry(program string) (name string, size int, err error) {
	b, err := os.ReadFile(program)
	if err != nil {
		return "", 0, err
	}
	name = s.Lab.Path("program.raw")
	const sector = 512
	padded := make([]byte, (len(b)+sector-1)/sector*sector)
	copy(padded, b)
	if err := os.WriteFile(name, padded, 0o600); err != nil {
		return "", 0, fmt.Errorf("disk of %d bytes: %w", len(b), err)
	}
	return name, len(b), nil
}
