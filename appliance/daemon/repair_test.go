package daemon

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/datapath/device/loopdev"
)

// damage breaks what an XFS that nobody has mounted counts.
func damage(t *testing.T, device string, commands ...string) {
	t.Helper()
	args := []string{"-x"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out, err := exec.Command("xfs_db", append(args, device)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// repairable is a volume of a node of its own.
type repairable struct {
	*bench
	device string
	ctx    context.Context //nolint:containedctx // of the test, whose helpers all need it
}

func newRepairable(t *testing.T, fs string) *repairable {
	t.Helper()
	device := loopdev.Scratch(t, 400<<20, loopdev.Options{}).Path
	b := newBench(t)
	b.start()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	_, err := b.client.AddVolume(ctx, api.AddVolume{Device: device, Format: fs})
	must(t, err)
	return &repairable{b, device, ctx}
}

func (r *repairable) repair(what api.Repair) (api.RepairResult, error) {
	r.t.Helper()
	var steps []string
	out, err := r.client.RepairVolume(r.ctx, "Volume1", what, func(s api.RepairStep) { steps = append(steps, s.Phase+": "+s.Text) })
	r.t.Logf("%+v, %v\n%s", out, err, strings.Join(steps, "\n"))
	return out, err
}

// thick makes an image that has its blocks.
func (r *repairable) thick() {
	r.t.Helper()
	_, err := r.client.CreateImage(r.ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 4 << 20, Thick: true})
	must(r.t, err)
}

// hasThick looks for that image.
func (r *repairable) hasThick() {
	r.t.Helper()
	im, err := r.client.Image(r.ctx, "Volume1/disk.img")
	if err != nil || im.Size != 4<<20 {
		r.t.Errorf("%+v, %v", im, err)
	}
}

// A volume is checked while it is exported; damage is found, told, and repaired when that is asked for.
func TestRepairOfAnExportedVolume(t *testing.T) {
	b := newRepairable(t, "xfs")
	_, err := b.client.CreateImage(b.ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 32 << 20})
	must(t, err)
	_, err = b.client.CreateTarget(b.ctx, iqn)
	must(t, err)
	_, err = b.client.Map(b.ctx, iqn, api.Map{Image: "Volume1/disk.img"})
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "write -P 7 0 16M"))
	out, err := b.repair(api.Repair{Trim: true, Defragment: []string{"Volume1/disk.img"}})
	must(t, err)
	if out.Damaged || !out.Checked || out.WaitedNS == 0 || out.Coordinator != "n1" || len(out.Defragmented) != 1 || out.Trimmed == 0 {
		t.Errorf("a sound volume: %+v", out)
	}
	must(t, qemuIO(t, b.portal(), "", "read -P 7 0 16M", "write -P 8 16M 1M"))

	b.stop()
	damage(t, b.device, "agi 0", "write -d freecount 3")
	b.start()
	out, err = b.repair(api.Repair{CheckOnly: true})
	must(t, err)
	if !out.Damaged || out.Repaired || len(out.Findings) == 0 {
		t.Errorf("a damaged volume, looked at: %+v", out)
	}
	out, err = b.repair(api.Repair{})
	must(t, err)
	if !out.Damaged || !out.Repaired {
		t.Errorf("a damaged volume: %+v", out)
	}
	out, err = b.repair(api.Repair{CheckOnly: true})
	must(t, err)
	if out.Damaged {
		t.Errorf("a repaired volume: %+v", out)
	}
	must(t, qemuIO(t, b.portal(), "", "read -P 7 0 16M", "read -P 8 16M 1M"))
	_, err = b.repair(api.Repair{NoCheck: true})
	refused(t, err, api.Invalid, "nothing is left to do", "--trim")
	_, err = b.repair(api.Repair{NoCheck: true, Defragment: []string{"Volume1/none.img"}})
	refused(t, err, api.NotFound, "none.img", "")
	b.stop()
	must(t, exec.Command("xfs_repair", "-n", b.device).Run())
}

// A volume that no node can mount is repaired too.
func TestRepairOfAVolumeThatDoesNotMount(t *testing.T) {
	b := newRepairable(t, "xfs")
	b.thick()
	b.stop()
	damage(t, b.device, "agf 0", "write -d freeblks 17", "agf 1", "write -d magicnum 0")
	b.start()
	out, err := b.repair(api.Repair{})
	must(t, err)
	if !out.Damaged || !out.Repaired || out.Coordinator != "n1" {
		t.Errorf("%+v", out)
	}
	b.hasThick()
}

// A repair that was cut off is ended before the volume is mounted, and told.
func TestRepairThatWasCutOffIsEnded(t *testing.T) {
	b := newRepairable(t, "xfs")
	n := b.daemon.node
	_, err := n.db.UpdateVolume(b.ctx, n.sortedVolumes()[0].id, func(v *cluster.Volume) error {
		v.Mending = &cluster.Mending{Node: "n2", Epoch: 1, Since: time.Now()}
		return nil
	})
	must(t, err)
	b.stop()
	damage(t, b.device, "agi 0", "write -d freecount 3")
	b.start()
	defer b.stop()
	eventually(t, 10*time.Second, "the log tells of it", func() (told bool) {
		must(t, b.client.Log(b.ctx, "Volume1", false, func(e api.Event) error {
			told = told || e.Kind == "volume.repaired" && strings.Contains(e.Text, "began on node n2")
			return nil
		}))
		return told
	})
	out, err := b.repair(api.Repair{CheckOnly: true})
	if err != nil || out.Damaged {
		t.Errorf("%+v, %v", out, err)
	}
	record, err := b.daemon.node.db.Volume(b.ctx, b.daemon.node.sortedVolumes()[0].id)
	if err != nil || record.Mending != nil {
		t.Errorf("%+v, %v", record, err)
	}
}

// ext4's own tool is used for ext4.
func TestRepairOfExt4(t *testing.T) {
	b := newRepairable(t, "ext4")
	b.stop()
	if out, err := exec.Command("debugfs", "-w", "-R", "set_bg 1 free_blocks_count 7", b.device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.start()
	out, err := b.repair(api.Repair{Trim: true})
	must(t, err)
	if !out.Damaged || !out.Repaired || out.FileSystem != "ext4" || out.Trimmed == 0 {
		t.Errorf("%+v", out)
	}
	b.stop()
	must(t, exec.Command("e2fsck", "-f", "-n", b.device).Run())
}
