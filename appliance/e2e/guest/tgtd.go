package guest

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"lunar/appliance/e2e/lab"
)

// tgtd is Debian's user-space target, with a control channel of its own.
type tgtd struct {
	onHost
	lab     *lab.Lab
	control string
	daemon  *lab.Process
}

// Bounds of tgtd.
const (
	tgtdReady  = 15 * time.Second
	maxControl = 1<<15 - 1 // the greatest number of a control channel that it takes
)

// StartTGTD serves a sparse file per size, until Close.
func StartTGTD(ctx context.Context, l *lab.Lab, sizes ...int64) (Target, error) {
	port, err := lab.FreePort()
	if err != nil {
		return nil, err
	}
	control := strconv.Itoa(port & maxControl)
	daemon, err := l.Start("tgtd", "-f", "-C", control, "--iscsi", fmt.Sprintf("portal=127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	t := tgtd{onHost{port}, l, control, daemon}
	if err = t.configure(ctx, sizes); err != nil {
		t.Close()
		return nil, fmt.Errorf("tgtd: %w\n%s", err, daemon.Log())
	}
	return t, nil
}

// Close kills the daemon, which does not heed SIGTERM while it has targets.
func (t tgtd) Close() { t.daemon.Kill() }

func (t tgtd) configure(ctx context.Context, sizes []int64) error {
	err := lab.Poll(tgtdReady, func() error {
		return t.admin(ctx, "target", "new", "--tid", "1", "-T", targetIQN)
	})
	if err != nil {
		return err
	}
	for i, size := range sizes {
		if err = t.addLUN(ctx, i+1, size); err != nil {
			return err
		}
	}
	return t.admin(ctx, "target", "bind", "--tid", "1", "-I", "ALL")
}

func (t tgtd) addLUN(ctx context.Context, lun int, size int64) error {
	if err := emptyFile(t.backing(lun), size); err != nil {
		return err
	}
	number := strconv.Itoa(lun)
	err := t.admin(ctx, "logicalunit", "new", "--tid", "1", "--lun", number, "-b", t.backing(lun))
	if err != nil {
		return err
	}
	return t.admin(ctx, "logicalunit", "update", "--tid", "1", "--lun", number, "--params", "thin_provisioning=1")
}

func (t tgtd) backing(lun int) string { return t.lab.Path(fmt.Sprintf("tgtd%d.raw", lun)) }

func (t tgtd) admin(ctx context.Context, mode, op string, args ...string) error {
	_, err := lab.Run(ctx, append([]string{"tgtadm", "-C", t.control, "--lld", "iscsi", "--mode", mode, "--op", op}, args...)...)
	return err
}

// Resize grows the file; tgtd looks at its size only when a LUN is made, so that it keeps the old capacity.
func (t tgtd) Resize(_ context.Context, lun int, bytes int64) error {
	return os.Truncate(t.backing(lun), bytes)
}
