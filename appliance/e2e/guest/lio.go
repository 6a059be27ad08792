package guest

import (
	"context"
	_ "embed" // for the guest's scripts
	"errors"
	"fmt"
	"os"
	"time"

	"lunar/appliance/e2e/lab"
)

//go:embed scripts/lio.sh
var lioScript string

//go:embed scripts/lio-resize.sh
var lioResizeScript string

// lio is Linux's target inside the guest that also is its initiator.
type lio struct{ m *Machine }

// StartLIO sets the target up in a machine whose second and third drive are spare disks of grownBytes.
func StartLIO(ctx context.Context, m *Machine) (Target, error) {
	t := lio{m}
	if err := t.script(ctx, lioScript, targetIQN, LUNBytes); err != nil {
		return nil, fmt.Errorf("LIO: %w", err)
	}
	return t, nil
}

func (t lio) script(ctx context.Context, text string, args ...any) error {
	status, output, err := t.m.Run(ctx, time.Minute, "set -- "+fmt.Sprintln(args...)+text)
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d: %s", status, output)
	}
	return err
}

func (t lio) Portal() string { return "127.0.0.1:3260" }
func (t lio) IQN() string    { return targetIQN }
func (t lio) Close()         {} // goes with its machine

func (t lio) Resize(ctx context.Context, lun int, bytes int64) error {
	return t.script(ctx, lioResizeScript, lun, bytes)
}

// spareDisks makes the empty disks that LIO serves in the guest.
func spareDisks(l *lab.Lab) ([]Drive, error) {
	drives := make([]Drive, 2)
	for i := range drives {
		name := l.Path(fmt.Sprintf("spare%d.raw", i+1))
		if err := emptyFile(name, grownBytes); err != nil {
			return nil, err
		}
		drives[i].File = name
	}
	return drives, nil
}

// emptyFile makes a file of holes.
func emptyFile(name string, bytes int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(bytes), f.Close())
}
