package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lunar/appliance/e2e/lab"
)

// Scenario is what the two scenarios need: the image, the lab that owns what is started, and how to run the list.
type Scenario struct {
	Image Image
	Lab   *lab.Lab
	JudgeOptions
}

// JudgeLIO runs the list against Linux's own target in the same machine.
func (s Scenario) JudgeLIO(ctx context.Context) (Column, error) {
	spare, err := spareDisks(s.Lab)
	if err != nil {
		return Column{}, fmt.Errorf("LIO: %w", err)
	}
	return s.judge(ctx, "LIO", spare, StartLIO)
}

// JudgeHost runs the list against a target on the host.
func (s Scenario) JudgeHost(ctx context.Context, name string, t Target) (Column, error) {
	return s.judge(ctx, name, nil, func(context.Context, *Machine) (Target, error) { return t, nil })
}

func (s Scenario) judge(ctx context.Context, name string, spare []Drive, start func(context.Context, *Machine) (Target, error)) (c Column, err error) {
	c.Name = name
	m, err := StartMachine(ctx, s.Lab, MachineOptions{
		Direct: &s.Image,
		Drives: append([]Drive{{File: s.Image.Disk, Snapshot: true}}, spare...),
	})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	t, err := start(ctx, m)
	if err != nil {
		return c, err
	}
	if _, c.Kernel, err = m.Run(ctx, time.Minute, "uname -r"); err != nil {
		return c, err
	}
	c.Kernel = strings.TrimSpace(c.Kernel)
	if c.Results, err = Judge(ctx, m, t, s.JudgeOptions); err != nil {
		err = fmt.Errorf("%w\n%s", err, m.lastWords())
	}
	return c, err
}
