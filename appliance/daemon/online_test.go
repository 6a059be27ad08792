package daemon

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"lunar/appliance/api"
)

// follower collects what a node tells of a volume.
type follower struct {
	mu    sync.Mutex // guards lines
	lines []api.VolumeLine
	ended chan error
}

func follow(t *testing.T, c *api.Client, volume string) *follower {
	t.Helper()
	f := &follower{ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		f.ended <- c.FollowVolume(ctx, volume, func(l api.VolumeLine) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.lines = append(f.lines, l)
			return nil
		})
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

func (f *follower) last() api.VolumeLine {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) == 0 {
		return api.VolumeLine{}
	}
	return f.lines[len(f.lines)-1]
}

func TestOffLine(t *testing.T) {
	b := newBench(t)
	dev := b.disk()
	ctx, c := t.Context(), b.start()
	b.served(dev)
	must(t, qemuIO(t, b.portal(), "", "write -P 3 0 1M", "flush"))

	f := follow(t, c, "Volume1")
	eventually(t, 10*time.Second, "the line tells the coordinator", func() bool {
		l := f.last()
		return l.State == api.Direct && l.Coordinator == "n1" && l.Epoch > 0
	})
	must(t, c.OfflineVolume(ctx, "Volume1", false))
	must(t, c.OfflineVolume(ctx, "Volume1", false)) // again is no error
	must(t, <-f.ended)
	if end := f.last().End; !strings.Contains(end, "lunarctl volume online Volume1") {
		t.Errorf("the last line says %q", end)
	}
	must(t, exec.Command("xfs_repair", "-n", dev).Run()) // nobody has the device
	if err := qemuIO(t, b.portal(), "", "read 0 4k"); err == nil {
		t.Error("the LUN is still served")
	}
	status := b.daemon.describe()
	if !strings.Contains(status, "Serving 0 volumes, 1 targets, 1 LUNs") || !strings.Contains(status, "taken off line: Volume1") {
		t.Errorf("status %q", status)
	}

	c = b.restart() // the wish outlives it
	v, err := c.Volume(ctx, "Volume1")
	must(t, err)
	if v.State != api.StateAbsent || !strings.Contains(v.Reason, "taken off line") {
		t.Fatalf("after a restart it is %s, %s", v.State, v.Reason)
	}
	_, err = c.OnlineVolume(ctx, "Volume1")
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "read -P 3 0 1M"))
	if status := b.daemon.describe(); !strings.Contains(status, "Serving 1 volumes") || !strings.Contains(status, "coordinates Volume1") {
		t.Errorf("status %q", status)
	}
}

func TestOffLineRefused(t *testing.T) {
	dev := disk(t)
	p := newProcess(t)
	p.start(nil, nil)
	c := p.client()
	defer c.Close()
	ctx := t.Context()
	(&bench{t: t, client: c}).served(dev)
	p.initiator("write -P 1 0 4k\n")
	eventually(t, 10*time.Second, "the initiator is logged in", func() bool {
		s, err := c.Sessions(ctx)
		return err == nil && len(s.Sessions) == 1 && s.Sessions[0].Target == iqn
	})
	refused(t, c.OfflineVolume(ctx, "Volume1", false), api.Refused, "is logged in to target "+iqn, "--force")
	_, err := c.OnlineVolume(ctx, "Volume1") // it is on line
	must(t, err)
	must(t, c.OfflineVolume(ctx, "Volume1", true))
	refused(t, c.OfflineVolume(ctx, "None", true), api.NotFound, "None")
	_, err = c.OnlineVolume(ctx, "None")
	refused(t, err, api.NotFound, "None")
}

// A follower is told of a rename and of an eject, and does not hold up the end of the daemon.
func TestFollowEnds(t *testing.T) {
	b := newBench(t)
	dev := b.disk()
	ctx, c := t.Context(), b.start()
	_, err := c.AddVolume(ctx, api.AddVolume{Device: dev, Format: "xfs"})
	must(t, err)
	f := follow(t, c, "Volume1")
	eventually(t, 10*time.Second, "a first line", func() bool { return f.last().Volume != "" })
	must(t, c.RenameVolume(ctx, "Volume1", "Fast"))
	must(t, <-f.ended)
	if end := f.last().End; end != "it is volume Fast now" {
		t.Errorf("the last line says %q", end)
	}
	f = follow(t, c, "Fast")
	eventually(t, 10*time.Second, "a first line", func() bool { return f.last().Volume != "" })
	began := time.Now()
	c = b.restart()
	if err := <-f.ended; api.CodeOf(err) != api.Unreachable {
		t.Errorf("the follower of a daemon that stopped ends with %v", err)
	}
	t.Logf("restarted within %v", time.Since(began))
	f = follow(t, c, "Fast")
	eventually(t, 10*time.Second, "a first line", func() bool { return f.last().Volume != "" })
	must(t, c.EjectVolume(ctx, "Fast"))
	must(t, <-f.ended)
	if end := f.last().End; end != "it was ejected" {
		t.Errorf("the last line says %q", end)
	}
}
