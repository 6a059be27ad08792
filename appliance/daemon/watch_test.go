package daemon

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
	"lunar/datapath/layout"
	"lunar/iscsi/scsi"
)

const (
	aluaChanged      = 0x062A06 // ASYMMETRIC ACCESS STATE CHANGED
	thresholdReached = 0x063807 // THIN PROVISIONING SOFT THRESHOLD REACHED
)

// portGroup is what REPORT TARGET PORT GROUPS says of the first group.
func (i *initiator) portGroup() (id uint16, state scsi.AccessState) {
	i.t.Helper()
	r := i.command(cdb16(0xA3, 0x0A, 6, 64), nil, 64)
	if r.status != scsi.Good || len(r.data) < 12 {
		i.t.Fatalf("REPORT TARGET PORT GROUPS: status %v, sense %06x, % x", r.status, r.sense, r.data)
	}
	return binary.BigEndian.Uint16(r.data[6:]), scsi.AccessState(r.data[4] & 0xF)
}

// TestMomentWithoutCoordinator: a node whose path went with the coordinator's refuses no command while another
// coordinator is chosen, and sends initiators away when there is none for long.
func TestMomentWithoutCoordinator(t *testing.T) {
	v, start := &volumeState{}, time.Now()
	for _, step := range []struct {
		state api.State
		after time.Duration
		want  scsi.AccessState
	}{
		{api.Direct, 0, scsi.ActiveOptimized},
		{api.StateAbsent, time.Second, scsi.ActiveNonOptimized},
		{api.StateAbsent, 5 * time.Second, scsi.ActiveNonOptimized},
		{api.Redirected, 6 * time.Second, scsi.ActiveNonOptimized},
		{api.StateAbsent, 14 * time.Second, scsi.ActiveNonOptimized},
		{api.StateAbsent, 24 * time.Second, scsi.Unavailable},
		{api.Direct, 25 * time.Second, scsi.ActiveOptimized},
	} {
		if got := v.access(step.state, start.Add(step.after)); got != step.want {
			t.Errorf("%s after %v: access state %X, want %X", step.state, step.after, got, step.want)
		}
	}
}

func TestRedirectShowsInALUA(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	i := login(t, b.portal(), initiatorName, iqn)
	i.ready()
	for _, step := range []struct {
		on   bool
		want scsi.AccessState
	}{{true, scsi.ActiveNonOptimized}, {false, scsi.ActiveOptimized}} {
		must(t, b.client.RedirectVolume(t.Context(), "Volume1", step.on))
		if seen := i.ready(); !slices.Equal(seen, []uint32{aluaChanged}) {
			t.Errorf("redirect %v: unit attentions %06x", step.on, seen)
		}
		if id, state := i.portGroup(); id != 1 || state != step.want {
			t.Errorf("redirect %v: group %d is in state %X, want %X", step.on, id, state, step.want)
		}
	}
	b.daemon.node.look(t.Context(), true)
	if seen := i.ready(); len(seen) != 0 {
		t.Errorf("nothing changed: unit attentions %06x", seen)
	}
}

// The wish to redirect outlives a restart, and so does what initiators are told.
func TestRedirectShowsInALUAAfterRestart(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	must(t, b.client.RedirectVolume(t.Context(), "Volume1", true))
	b.restart()
	i := login(t, b.portal(), initiatorName, iqn)
	i.ready()
	if _, state := i.portGroup(); state != scsi.ActiveNonOptimized {
		t.Errorf("state %X", state)
	}
}

// A volume that others fill warns the initiators of its thin LUNs.
func TestThresholdIsTold(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	_, err := b.client.ChangeImage(t.Context(), "Volume1/disk.img", api.ChangeImage{Size: 1 << 30})
	must(t, err)
	i := login(t, b.portal(), initiatorName, iqn)
	b.daemon.node.look(t.Context(), true)
	i.ready()
	_, err = b.client.CreateImage(t.Context(), api.CreateImage{Image: "Volume1/fat.img", Size: 330 << 20, Thick: true})
	must(t, err)
	eventually(t, 30*time.Second, "the threshold is told", func() bool { return slices.Contains(i.ready(), thresholdReached) })
}

// copyList is EXTENDED COPY's parameter list for one segment of whole blocks.
func copyList(from, to string, blocks uint16) []byte {
	p := make([]byte, 16, 128)
	p[1] = 2 << 3 // discard the status
	binary.BigEndian.PutUint16(p[2:], 64)
	binary.BigEndian.PutUint32(p[8:], 28)
	for _, naa := range []string{from, to} {
		id, _ := hex.DecodeString(naa)
		d := make([]byte, 32)
		d[0], d[4], d[5], d[7], d[30] = 0xE4, 1, 3, byte(len(id)), 2
		copy(d[8:], id)
		p = append(p, d...)
	}
	s := make([]byte, 28)
	s[0], s[3], s[7] = 0x02, 24, 1
	binary.BigEndian.PutUint16(s[10:], blocks)
	return append(p, s...)
}

// TestExtendedCopyBetweenTargets copies from a LUN to one of another target by its name: by sharing the
// blocks, and only where the initiator might log in.
func TestExtendedCopyBetweenTargets(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	ctx := t.Context()
	const other = iqn + "-2"
	_, err := b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/copy.img", Size: 64 << 20})
	must(t, err)
	_, err = b.client.CreateTarget(ctx, other)
	must(t, err)
	to, err := b.client.Map(ctx, other, api.Map{Image: "Volume1/copy.img"})
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "write -P 0x5a 0 1M", "flush"))
	from := b.lun(iqn)

	i := login(t, b.portal(), initiatorName, iqn)
	i.ready()
	list := copyList(from.NAA, to.NAA, 2048)
	extended := cdb16(0x83, 0, 10, uint32(len(list)))
	must(t, b.client.Allow(ctx, other, "iqn.2026-01.io.lunar:somebody"))
	if r := i.command(extended, list, 0); r.status == scsi.Good {
		t.Error("copied to a LUN that the initiator may not reach")
	}
	must(t, b.client.Allow(ctx, other, initiatorName))
	if r := i.command(extended, list, 0); r.status != scsi.Good {
		t.Fatalf("status %v, sense %06x", r.status, r.sense)
	}
	target := b.daemon.node.units[unitKey{b.daemon.node.sortedVolumes()[0].record.ID, "copy.img"}].image
	p := make([]byte, 1<<20)
	_, err = target.ReadAt(p, 0)
	must(t, err)
	shared := target.Layout().Is(layout.Range{Len: 1 << 20}, func(s layout.State) bool { return s == layout.Shared })
	if !bytes.Equal(p, bytes.Repeat([]byte{0x5a}, 1<<20)) || !shared {
		t.Errorf("not copied, or not shared: %v", target.Layout().Extents())
	}
}

// lun is LUN 0 of a target.
func (b *bench) lun(target string) api.LUN {
	b.t.Helper()
	targets, err := b.client.Targets(b.t.Context())
	must(b.t, err)
	for _, t := range targets {
		if t.Name == target {
			return t.LUNs[0]
		}
	}
	b.t.Fatalf("no target %s", target)
	return api.LUN{}
}

// still is a backend that only tells its size.
type still struct{ scsi.Backend }

func (still) Size() int64               { return 1 << 40 }
func (still) Space() (used, free int64) { return 1 << 30, 1 << 41 }

// BenchmarkLook is a look at 1,000 targets with a LUN each.
func BenchmarkLook(b *testing.B) {
	n := newNode("n1", nil)
	for i := range 1000 {
		name := fmt.Sprintf("iqn.2026-01.io.lunar:%d", i)
		lu, err := scsi.NewLogicalUnit(still{}, scsi.UnitOptions{NAA: []byte("\x30lunar01"), Serial: "1", Thin: true})
		if err != nil {
			b.Fatal(err)
		}
		u := &unit{lu: lu}
		n.units[unitKey{path: name}] = u
		n.targets[name] = &target{name: name, scsi: scsi.NewTarget(name, scsi.TargetOptions{}), luns: map[uint16]*lun{0: {unit: u}}}
	}
	b.ReportAllocs()
	for b.Loop() {
		n.look(b.Context(), true)
	}
}

// A LUN that shrinks under its volume is told, before anybody wonders about the errors of initiators.
func TestShrunkDeviceIsTold(t *testing.T) {
	b := newBench(t)
	device := b.disk()
	b.start()
	b.served(device)
	reason := func() string {
		v, err := b.client.Volume(t.Context(), "Volume1")
		must(t, err)
		return v.Reason
	}
	limit(t, device, 400<<20)
	eventually(t, 30*time.Second, "the alarm", func() bool { return strings.Contains(reason(), "shrank from 512MiB to 400MiB") })
	limit(t, device, 0)
	eventually(t, 30*time.Second, "the end of the alarm", func() bool { return reason() == "" })
}

// limit makes a loop device smaller than its file; 0 ends that.
func limit(t *testing.T, path string, size uint64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	must(t, err)
	info.Sizelimit = size
	must(t, unix.IoctlLoopSetStatus64(int(f.Fd()), info))
}

// TestPathForgottenBesideALook: a volume that goes off line while a look at it is under way leaves no word of its path,
// for which an eject on another node would wait for ever.
func TestPathForgottenBesideALook(t *testing.T) {
	b := newBench(t)
	c, ctx := b.start(), t.Context()
	_, err := c.AddVolume(ctx, api.AddVolume{Device: b.disk(), Format: "xfs"})
	must(t, err)
	n := b.daemon.node
	v := n.sortedVolumes()[0]
	p, release := v.borrow()
	done := make(chan error)
	go func() { done <- v.offLine(ctx, ejected) }()
	eventually(t, 30*time.Second, "the volume waits for the look", func() bool {
		p, release := v.tryBorrow()
		release()
		return p == nil
	})
	n.publishPath(v, p)
	release()
	must(t, <-done)
	m := n.membership.Load()
	m.session.SetPath("later", true)
	var paths map[string]bool
	eventually(t, 30*time.Second, "what is said later is told", func() bool {
		view, err := m.elections.View(ctx)
		paths = view.Nodes[n.name].Paths
		return err == nil && paths["later"]
	})
	if _, told := paths[v.id]; told {
		t.Errorf("the node still tells of its path to a volume that is off line: %v", paths)
	}
}
