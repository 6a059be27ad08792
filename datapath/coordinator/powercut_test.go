package coordinator_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/device/loopdev"
	"lunar/datapath/layout/protocol"
)

// TestPowerCutsAmongSnapshots cuts the power, which is the mount shut down without a flush of its log, at random moments
// of a run of snapshots, clones, deletions and diffs under writes. What was acknowledged is there after each, whole, and
// the file system is clean. LUNAR_RUNS is how many cuts there are.
func TestPowerCutsAmongSnapshots(t *testing.T) {
	cuts := 5
	_, _ = fmt.Sscan(os.Getenv("LUNAR_RUNS"), &cuts)
	seed := uint64(time.Now().UnixNano())
	_, _ = fmt.Sscan(os.Getenv("LUNAR_SEED"), &seed)
	t.Log("LUNAR_SEED", seed)
	c := &cutting{t: t, dice: rand.New(rand.NewPCG(seed, 0)), kept: map[string]byte{}}
	dev := format(t, coordinator.XFS, 400*mib, loopdev.Options{})
	for epoch := range uint64(cuts) {
		c.v = mountAt(t, dev, epoch+1)
		c.check()
		c.run()
		if err := c.v.Handover(ctx); err != nil {
			t.Fatal(err)
		}
		log := exec.Command("xfs_repair", "-n", dev.Path)
		if epoch+1 == uint64(cuts) {
			v := mountAt(t, dev, epoch+2) // replays the log
			if err := v.Close(ctx); err != nil {
				t.Fatal(err)
			}
			if out, err := log.CombinedOutput(); err != nil {
				t.Fatalf("xfs_repair -n: %v\n%s", err, out)
			}
		}
	}
	t.Logf("%d cuts, %d operations were acknowledged, %d snapshots are there", cuts, c.done, len(c.kept))
	if c.done == 0 {
		t.Error("nothing was acknowledged")
	}
}

// cutting is one such run. Each snapshot has an image as it was, all of one byte.
type cutting struct {
	t     *testing.T
	dice  *rand.Rand
	v     *volume
	fill  byte // that the image has
	next  int
	done  int
	kept  map[string]byte // acknowledged snapshots
	maybe string          // one whose creation or deletion was cut off
}

const cutSize = 256 << 10

// check wants each acknowledged snapshot to be there, with its content.
func (c *cutting) check() {
	c.t.Helper()
	there := map[string]bool{}
	for _, s := range c.v.snapshots(c.t) {
		there[strings.TrimPrefix(s, "a@")] = true
	}
	if c.maybe != "" {
		if !there[c.maybe] {
			delete(c.kept, c.maybe)
		} else if _, known := c.kept[c.maybe]; !known {
			if err := c.v.DeleteSnapshot(ctx, c.v.meta(), c.maybe, ""); err != nil {
				c.t.Fatal(err)
			}
			delete(there, c.maybe)
		}
		c.maybe = ""
	}
	for name, fill := range c.kept {
		if !there[name] {
			c.t.Fatalf("snapshot %s was acknowledged, and is lost", name)
		}
		if got := c.v.content(c.t, name, "a", cutSize); !bytes.Equal(got, bytes.Repeat([]byte{fill}, cutSize)) {
			c.t.Fatalf("snapshot %s has another content than %d: begins with %d", name, fill, got[0])
		}
	}
	if len(there) != len(c.kept) {
		c.t.Fatalf("there are %v, acknowledged are %v", there, c.kept)
	}
}

// run works until the cut.
func (c *cutting) run() {
	c.t.Helper()
	v := c.v
	if err := v.Create(ctx, v.meta(), "a", protocol.CreateOptions{Size: cutSize}); err != nil && !errors.Is(err, coordinator.ErrExists) {
		c.t.Fatal(err)
	}
	o := v.attach(c.t, "a")
	cut := time.AfterFunc(time.Duration(c.dice.IntN(250))*time.Millisecond+time.Millisecond, func() { _ = v.Shutdown() })
	defer cut.Stop()
	for {
		c.fill++
		if v.Write(ctx, o.call, bytes.Repeat([]byte{c.fill}, cutSize), 0, true) != nil {
			return
		}
		if err := c.one(); err != nil {
			return
		}
		c.done++
	}
}

// one is an operation of any kind.
func (c *cutting) one() error {
	v := c.v
	switch pick := c.dice.IntN(6); {
	case pick < 3 || len(c.kept) == 0:
		c.next++
		c.maybe = fmt.Sprint("s", c.next)
		if _, err := v.Snapshot(ctx, v.meta(), c.maybe, []string{"a"}); err != nil {
			return err
		}
		c.kept[c.maybe] = c.fill
	case pick == 3:
		c.maybe = c.any()
		if err := v.DeleteSnapshot(ctx, v.meta(), c.maybe, ""); err != nil {
			return err
		}
		delete(c.kept, c.maybe)
	case pick == 4:
		c.next++
		to := fmt.Sprint("clone", c.next)
		if err := v.CloneSnapshot(ctx, v.meta(), c.any(), "a", to); err != nil {
			return err
		}
		return v.Delete(ctx, v.meta(), to)
	default:
		_, err := v.Diff(ctx, "a", c.any(), c.any())
		return err
	}
	c.maybe = ""
	return nil
}

func (c *cutting) any() string {
	for name := range c.kept {
		return name
	}
	return ""
}

// A write that finds no block for itself fails, and leaves the image and its snapshot as they were; it goes on when
// there is room again.
func TestVolumeTooFullToUnshare(t *testing.T) {
	v := scratch(t, coordinator.XFS)
	o := v.image(t, "a", 32*mib)
	before := pattern(32*mib, 1)
	o.write(t, before, 0)
	v.take(t, "s", "a")
	for i, size := 0, int64(64*mib); size >= 4096; i++ {
		if err := v.Create(ctx, v.meta(), fmt.Sprint("fill", i), protocol.CreateOptions{Size: size, Thick: true}); err != nil {
			size /= 2
		}
	}
	var full error
	at := int64(0)
	for ; at < 32*mib && full == nil; at += 64 << 10 {
		full = v.Write(ctx, o.call, pattern(64<<10, 2), at, true)
	}
	if !errors.Is(full, coordinator.ErrNoSpace) || !strings.Contains(full.Error(), "delete or move images, or grow the volume") {
		t.Fatal(at, full)
	}
	at -= 64 << 10 // of the write that failed
	if got := o.read(t, at, int(32*mib-at)); !bytes.Equal(got, before[at:]) {
		t.Error("the write that failed has changed the image")
	}
	if err := v.Delete(ctx, v.meta(), "fill0"); err != nil {
		t.Fatal(err)
	}
	o.write(t, pattern(64<<10, 2), at)
	if !bytes.Equal(o.read(t, at, 64<<10), pattern(64<<10, 2)) || !bytes.Equal(v.content(t, "s", "a", 32*mib), before) {
		t.Error("the image or its snapshot has another content")
	}
}
