package guest

import (
	"context"
	"fmt"

	"lunar/appliance/e2e/lab"
)

// volumeBytes is the sparse file below Lunar's volume.
const volumeBytes = 4 << 30

// lunar is our target: thin images on one XFS volume.
type lunar struct {
	onHost
	node *lab.Lunard
}

// StartLunar starts lunard with a new volume and exports a thin image per size; the lab ends it.
func StartLunar(ctx context.Context, l *lab.Lab, sizes ...int64) (Target, error) {
	disk, err := l.Loop("volume.raw", volumeBytes)
	if err != nil {
		return nil, err
	}
	node, err := l.Lunard(ctx, lab.Config{})
	if err != nil {
		return nil, err
	}
	commands := []string{"volume add " + disk.Path + " --name Volume1 --format xfs", "target create " + targetIQN}
	for i, size := range sizes {
		commands = append(commands,
			fmt.Sprintf("image create %s --size %d", image(i+1), size),
			fmt.Sprintf("target map %s %s --lun %d", targetIQN, image(i+1), i+1))
	}
	if err := node.Script(ctx, commands...); err != nil {
		return nil, fmt.Errorf("lunar: %w\n%s", err, node.Log())
	}
	return lunar{onHost{node.Ports[0]}, node}, nil
}

// Close leaves the daemon to the lab, which has it stop in order.
func (t lunar) Close() {}

func image(lun int) string { return fmt.Sprintf("Volume1/guest%d.img", lun) }

// Resize grows the image through the control API, as an operator would.
func (t lunar) Resize(ctx context.Context, lun int, bytes int64) error {
	return t.node.Script(ctx, fmt.Sprintf("image resize %s --size %d", image(lun), bytes))
}
