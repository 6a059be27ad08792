package daemon

import (
	"os/exec"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
)

// overhaul has the volume checked as a repair does, with a limit of its own.
func (r *repairable) overhaul(what api.Repair, limit time.Duration) *overhaul {
	r.t.Helper()
	o := &overhaul{request: what, say: func(api.RepairStep) {}, ctx: r.ctx, limit: limit, done: make(chan struct{})}
	must(r.t, r.daemon.node.sortedVolumes()[0].seat.Load().overhaulSoon(o))
	select {
	case <-o.done:
	case <-r.ctx.Done():
		r.t.Fatal("the check does not end")
	}
	must(r.t, o.fatal)
	return o
}

// A check that would have I/O wait for too long is given up, which changes nothing; the volume serves on. With --wait it
// takes as long as it takes.
func TestRepairWaitsNoLongerThanItMay(t *testing.T) {
	b := newRepairable(t, "xfs")
	b.thick()
	o := b.overhaul(api.Repair{}, time.Nanosecond)
	refused(t, o.err, api.Refused, "the check was given up", "--wait")
	if o.result.Damaged || o.unfinished {
		t.Errorf("%+v", o)
	}
	b.hasThick()
	o = b.overhaul(api.Repair{Wait: true}, time.Nanosecond)
	if must(t, o.err); !o.result.Checked || o.result.Damaged {
		t.Errorf("with --wait: %+v", o.result)
	}
	b.hasThick()
}

// A repair is not begun when it would have I/O wait for too long, or could write after its node was fenced.
func TestRepairsThatAreNotBegun(t *testing.T) {
	began := func(ago time.Duration) *overhaul { return &overhaul{began: time.Now().Add(-ago), limit: waitLimit} }
	waiting := began(time.Hour)
	waiting.request.Wait = true
	s := newRepairable(t, "ext4").daemon.node.sortedVolumes()[0].seat.Load()
	alone, several := &parts{}, &parts{fencer: &fencing{}}
	for name, row := range map[string]struct {
		p     *parts
		o     *overhaul
		check time.Duration
		words []string // of the refusal; nil: it is begun
	}{
		"a short one":                           {alone, began(0), time.Second, nil},
		"the longest":                           {alone, began(0), 9 * time.Second, nil},
		"one that takes too long":               {alone, began(0), 10 * time.Second, []string{"its repair may take 41s", "40s", "--wait"}},
		"one whose check took most of the time": {alone, began(35 * time.Second), 2 * time.Second, []string{"its repair may take 9s", "--wait"}},
		"one that may wait":                     {alone, waiting, time.Hour, nil},
		"one where nothing was served":          {alone, &overhaul{limit: waitLimit}, time.Hour, nil},
		"ext4 of several nodes":                 {several, waiting, time.Second, []string{"several nodes", "eject the volume", "e2fsck -f"}},
	} {
		err := s.mayMend(row.p, row.o, row.check)
		if row.words == nil {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		t.Log(name)
		refused(t, err, api.Refused, row.words...)
	}
}

// unreplayable leaves a volume that nobody has mounted with a log that cannot be replayed: a change of a file in it, whose
// inode is none any more. What ends with the shell is its mount too.
const unreplayable = `
mount -t xfs "$1" "$2"
echo x >"$2/lost"
inode=$(stat -c %i "$2/lost")
umount "$2"
mount -t xfs "$1" "$2"
echo y >>"$2/lost"
xfs_io -x -c 'shutdown -f' "$2"
umount "$2"
xfs_db -x -c "inode $inode" -c 'write -d core.magic 0' "$1"
`

// A log that cannot be replayed is given up by order alone.
func TestRepairGivesALogUpByOrder(t *testing.T) {
	b := newRepairable(t, "xfs")
	b.thick()
	b.stop()
	out, err := exec.CommandContext(b.ctx, "unshare", "--mount", "sh", "-ec", unreplayable, "sh", b.device, t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.start()
	_, err = b.repair(api.Repair{})
	refused(t, err, api.Refused, "cannot be replayed", "lunarctl volume repair Volume1 --force")
	record, err := b.daemon.node.db.Volume(b.ctx, b.daemon.node.sortedVolumes()[0].id)
	if must(t, err); record.Mending != (*cluster.Mending)(nil) {
		t.Errorf("what was refused is said to be under way: %+v", record.Mending)
	}
	done, err := b.repair(api.Repair{Force: true})
	if must(t, err); !done.Damaged || !done.Repaired {
		t.Errorf("%+v", done)
	}
	b.hasThick()
	b.stop()
	must(t, exec.CommandContext(b.ctx, "xfs_repair", "-n", b.device).Run())
}
