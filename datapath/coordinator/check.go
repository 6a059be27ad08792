package coordinator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

// ErrDirtyLog says that a file system cannot be repaired before its log was replayed, and its log cannot be replayed.
var ErrDirtyLog = errors.New("the file system's log has changes that cannot be replayed")

// Findings is what a check or a repair says of a file system.
type Findings struct {
	Damaged bool
	Words   []string // what is wrong, at most maxWords lines of the tool's own
	More    int      // lines that were left out
}

const (
	maxWords = 50
	maxWord  = 200 // bytes
)

// Told is told what a check or a repair is doing, a line at a time.
type Told func(step string)

// tool is a command of the file system's own.
type tool struct {
	args   []string
	quiet  []string // what begins so is neither a step nor a finding
	step   string   // what begins so is a step
	status func(code int) (damaged bool, err error)
}

// errTool is an exit code that says nothing of the file system.
var errTool = errors.New("the tool failed")

// What xfs_repair(8) and e2fsck(8) say by their exit codes.
func xfsStatus(code int) (bool, error) {
	if code > 1 {
		return false, errTool
	}
	return code == 1, nil
}

func xfsRepairStatus(code int) (bool, error) {
	switch code {
	case 0:
		return false, nil
	case 2:
		return false, ErrDirtyLog
	}
	return false, errTool
}

const (
	e2Corrected, e2Reboot, e2Left, e2Failed = 1, 2, 4, 8
)

func e2Status(code int) (bool, error) {
	if code >= e2Failed {
		return false, errTool
	}
	return code != 0, nil
}

func e2RepairStatus(code int) (bool, error) {
	if code&^(e2Corrected|e2Reboot) != 0 {
		return true, errTool
	}
	return false, nil
}

var (
	xfsQuiet = []string{"        - ", "done", "No modify flag set", "Maximum metadata LSN", "Format log to cycle"}
	e2Quiet  = []string{"e2fsck ", "/dev/"}
)

// checkers look, menders change. Each opens the device exclusively or not at all; xfs_repair writes around the
// page cache, so that nothing of it is under way when it has ended.
var (
	checkers = map[FSType]tool{
		XFS:  {[]string{"xfs_repair", "-n"}, xfsQuiet, "Phase ", xfsStatus},
		Ext4: {[]string{"e2fsck", "-f", "-n"}, e2Quiet, "Pass ", e2Status},
	}
	menders = map[FSType]tool{
		XFS:  {[]string{"xfs_repair"}, xfsQuiet, "Phase ", xfsRepairStatus},
		Ext4: {[]string{"e2fsck", "-f", "-y"}, e2Quiet, "Pass ", e2RepairStatus},
	}
)

// Clean tells whether a repair of the file system leaves nothing behind in this machine's memory that is written
// later, also when it is cut off: XFS's tool writes around the page cache, ext4's does not.
func (fs FSType) Clean() bool { return fs == XFS }

// Check looks for damage in the file system on dev, which nobody has mounted, and writes nothing. It may be ended at any time.
func Check(ctx context.Context, dev *device.Device, told Told) (Findings, error) {
	return runTool(ctx, dev, checkers, told)
}

// Mend repairs the file system on dev, and looks whether that was enough; what it found and changed is the answer.
// The caller makes sure, as for a mount, that no other node touches dev. The tool dies with this process, and with
// ctx: then only another Mend makes the file system usable. ErrDirtyLog: mount it first; force gives the log's
// changes up instead.
func Mend(ctx context.Context, dev *device.Device, force bool, told Told) (Findings, error) {
	all := menders
	if force {
		all = map[FSType]tool{Ext4: menders[Ext4], XFS: menders[XFS]}
		zero := all[XFS]
		zero.args = append(slices.Clone(zero.args), "-L")
		all[XFS] = zero
	}
	found, err := runTool(ctx, dev, all, told)
	if err != nil {
		return found, err
	}
	after, err := Check(ctx, dev, told)
	if err == nil && after.Damaged {
		after, err = runTool(ctx, dev, menders, told) // what was repaired last may have shown more
		if err == nil {
			after, err = Check(ctx, dev, told)
		}
	}
	if err == nil && after.Damaged {
		err = fmt.Errorf("the file system on %s is still damaged after its repair: %s: restore the volume from a backup",
			dev.Path, strings.Join(after.Words, "; "))
	}
	return found, err
}

// Replay mounts the volume and unmounts it, so that its log is empty.
func Replay(ctx context.Context, dev *device.Device, twin bool) error {
	if err := dev.InUse(); err != nil {
		return err
	}
	fs, err := volumeType(dev)
	if err != nil {
		return err
	}
	m, err := attach(dev, fs, twin)
	if err != nil {
		return err
	}
	return m.unmount(ctx, dev, false)
}

// runTool runs the tool for the file system that is on dev.
func runTool(ctx context.Context, dev *device.Device, all map[FSType]tool, told Told) (found Findings, err error) {
	if err := dev.InUse(); err != nil {
		return found, err
	}
	fs, err := volumeType(dev)
	if err != nil {
		return found, err
	}
	t := all[fs]
	name := strings.Join(t.args, " ") + " " + dev.Path
	if err := forgetPages(dev); err != nil {
		return found, err
	}
	code, err := t.run(ctx, dev.Path, func(line string) { t.hear(line, &found, told) })
	err = errors.Join(err, forgetPages(dev))
	if ctx.Err() != nil {
		return found, fmt.Errorf("%s: %w", name, ctx.Err())
	}
	if err != nil {
		return found, fmt.Errorf("%s: %w", name, err)
	}
	found.Damaged, err = t.status(code)
	if err != nil {
		return found, fmt.Errorf("%s: exit code %d: %w: %s", name, code, err, strings.Join(found.Words, "; "))
	}
	return found, nil
}

// forgetPages empties the page cache of the device itself, by which e2fsck and ext4 see it: what other nodes have
// written since is not there.
func forgetPages(dev *device.Device) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev.Fd()), unix.BLKFLSBUF, 0); errno != 0 {
		return fmt.Errorf("empty the page cache of %s: %w", dev.Path, errno)
	}
	return nil
}

// hear sorts a line.
func (t *tool) hear(line string, found *Findings, told Told) {
	if strings.HasPrefix(line, t.step) {
		told(line)
		return
	}
	if strings.TrimSpace(line) == "" || slices.ContainsFunc(t.quiet, func(q string) bool { return strings.HasPrefix(line, q) }) {
		return
	}
	if len(found.Words) >= maxWords {
		found.More++
		return
	}
	found.Words = append(found.Words, line[:min(len(line), maxWord)])
}

// run runs the tool and hands on what it says. It is killed with this process: the kernel does that at the end of
// the thread that started it, so that thread stays.
func (t *tool) run(ctx context.Context, device string, line func(string)) (code int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	cmd := exec.CommandContext(ctx, t.args[0], append(t.args[1:len(t.args):len(t.args)], device)...)
	cmd.Stdout, cmd.Stderr = in, in
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(err, in.Close())
	}
	err = in.Close()
	heard := readLines(out, line)
	if waited := cmd.Wait(); waited != nil && !errors.As(waited, new(*exec.ExitError)) {
		err = errors.Join(err, waited)
	}
	if ctx.Err() == nil && err == nil && !cmd.ProcessState.Exited() {
		err = fmt.Errorf("it was ended: %v", cmd.ProcessState)
	}
	return cmd.ProcessState.ExitCode(), errors.Join(err, heard)
}

// readLines hands lines on until all of r is read; what is too long for one is cut.
func readLines(r io.Reader, line func(string)) error {
	b := bufio.NewReaderSize(r, 4096)
	for {
		part, more, err := b.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line(string(part))
		for more && err == nil {
			_, more, err = b.ReadLine()
		}
	}
}
