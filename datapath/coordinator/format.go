package coordinator

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"lunar/datapath/device"
)

// FormatOptions says what Format makes.
type FormatOptions struct {
	FS    FSType // default XFS
	Label string // 12 bytes at most
	Force bool   // also when the device holds something; never when it is in use
}

// maxLabel is what an XFS label has room for; ext4's is longer.
const maxLabel = 12

// Validate tells what is wrong with o.
func (o FormatOptions) Validate() error {
	if _, ok := makers[o.withDefaults().FS]; !ok {
		return fmt.Errorf("format as %q: give xfs or ext4: %w", o.FS, ErrUnsupported)
	}
	if len(o.Label) > maxLabel || strings.HasPrefix(o.Label, "-") {
		return fmt.Errorf("label %q: give %d bytes at most, not beginning with a dash: %w", o.Label, maxLabel, ErrUnsupported)
	}
	return nil
}

func (o FormatOptions) withDefaults() FormatOptions {
	if o.FS == "" {
		o.FS = XFS
	}
	return o
}

// makers is the command that makes each file system. The log has 64 MiB, so that its replay after a
// crash takes a second or two and not many.
var makers = map[FSType][]string{
	XFS:  {"mkfs.xfs", "-q", "-f", "-m", "reflink=1", "-l", "size=64m"},
	Ext4: {"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-J", "size=64"},
}

// minVolume is what mkfs.xfs wants at least.
const minVolume = 300 << 20

// checkSize refuses what mkfs would refuse with words of its own.
func checkSize(dev *device.Device) error {
	size, err := dev.Size()
	if err == nil && size < minVolume {
		return fmt.Errorf("format %s: %w: the device has %d MiB, a volume needs %d", dev.Path, ErrSize, size>>20, minVolume>>20)
	}
	return err
}

// Format makes a file system on dev. It refuses a device that is in use (device.ErrInUse), and one
// that holds something (device.ErrHolds) unless Force is set; the error says what is there.
func Format(ctx context.Context, dev *device.Device, o FormatOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	o = o.withDefaults()
	if err := dev.InUse(); err != nil {
		return fmt.Errorf("format: %w", err)
	}
	found, err := dev.Probe()
	if err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if len(found) > 0 && !o.Force {
		return fmt.Errorf("format %s: %w: %s", dev.Path, device.ErrHolds, inWords(found))
	}
	if err := checkSize(dev); err != nil {
		return err
	}
	args := makers[o.FS]
	if o.Label != "" {
		args = append(args[:len(args):len(args)], "-L", o.Label)
	}
	out, err := exec.CommandContext(ctx, args[0], append(args[1:], "--", dev.Path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format %s: %s: %w: %s", dev.Path, args[0], err, firstLine(out))
	}
	return nil
}

func inWords(found []device.Content) string {
	words := make([]string, len(found))
	for i, c := range found {
		words[i] = c.String()
	}
	return strings.Join(words, ", ")
}

// firstLine is what mkfs has to say; its usage may follow.
func firstLine(out []byte) string {
	const most = 200
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line[:min(len(line), most)]
}

// volumeType tells which file system is on the device.
func volumeType(dev *device.Device) (FSType, error) {
	found, err := dev.Probe()
	if err != nil {
		return "", err
	}
	var types []FSType
	for _, c := range found {
		if _, ok := makers[FSType(c.Type)]; ok {
			types = append(types, FSType(c.Type))
		}
	}
	switch {
	case len(types) == 1:
		return types[0], nil
	case len(found) == 0:
		return "", fmt.Errorf("device %s is empty: %w: format it as xfs or ext4", dev.Path, ErrNoVolume)
	default:
		return "", fmt.Errorf("device %s: %w: %w: %s", dev.Path, ErrNoVolume, device.ErrHolds, inWords(found))
	}
}
