package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/fence"
	"lunar/datapath/device"
)

// area is what the writers write to, bytes from the LUN's start.
const area = 16 << 20

// registry is the cluster in this process: it admits one incarnation of each node.
type registry struct{ victim atomic.Uint32 }

// Admitted implements fence.Admission.
func (r *registry) Admitted(_ context.Context, n fence.Node) (bool, error) {
	return n.Number == 1 || n.Incarnation == r.victim.Load(), nil
}

type probe struct {
	registry       registry
	victimDevice   string
	disk           *os.File // the fencer's
	raw            [2]*device.Reservations
	victim, fencer *fence.Fencer
	incarnation    uint32
}

func open(ctx context.Context, victim, own string) (*probe, error) {
	p := &probe{victimDevice: victim}
	for i, name := range []string{victim, own} {
		var err error
		if p.raw[i], err = device.OpenReservations(name); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open(own, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p.disk = os.NewFile(uintptr(fd), own)
	p.fencer, err = p.node(ctx, p.raw[1], own, fence.Node{Name: "fencer", Number: 1, Incarnation: 1})
	if err == nil {
		fmt.Println(p.fencer.Describe())
	}
	return p, err
}

func (p *probe) node(ctx context.Context, lun fence.LUN, name string, self fence.Node) (*fence.Fencer, error) {
	return fence.Open(ctx, fence.Options{Volume: "Volume1", Device: name, Cluster: "probe", Self: self, Admission: &p.registry,
		Log: slog.New(slog.DiscardHandler), LUN: lun})
}

// victimNode is the victim's present incarnation.
func (p *probe) victimNode() fence.Node {
	return fence.Node{Name: "victim", Number: 2, Incarnation: p.incarnation}
}

func (p *probe) key() device.ReservationKey {
	k, _ := device.NewReservationKey(fence.ClusterHash("probe"), 2, p.incarnation) // never zero
	return k
}

// reborn admits the victim's next incarnation.
func (p *probe) reborn(ctx context.Context) (err error) {
	p.incarnation++
	p.registry.victim.Store(p.incarnation)
	if p.victim, err = p.node(ctx, p.raw[0], p.victimDevice, p.victimNode()); err != nil {
		return err
	}
	return p.victim.Admit(ctx)
}

func (p *probe) admit(ctx context.Context) error {
	if err := errors.Join(p.fencer.Admit(ctx), p.reborn(ctx)); err != nil {
		return err
	}
	keys, err := p.raw[1].ReadKeys(ctx)
	if err != nil {
		return err
	}
	held, err := p.raw[0].ReadReservation(ctx)
	if err != nil || held.Type != device.WriteExclusiveAllRegistrants || len(keys.Keys) != 2 || !keys.Has(p.key()) {
		return fmt.Errorf("keys %v, reservation %+v: %w", keys, held, err)
	}
	fmt.Printf("    keys %v, generation %d, %v\n", keys.Keys, keys.Generation, held.Type)
	return nil
}

// fence fences the victim's incarnation.
func (p *probe) fence(ctx context.Context) (fence.Proof, error) {
	p.registry.victim.Store(0)
	return p.fencer.Fence(ctx, fence.Victim{Node: p.victimNode()})
}

// sum is the checksum of the area as the fencer reads it.
func (p *probe) sum() (string, error) {
	h, b := sha256.New(), aligned(1<<20)
	for at := int64(0); at < area; at += int64(len(b)) {
		if _, err := io.ReadFull(io.NewSectionReader(p.disk, at, int64(len(b))), b); err != nil {
			return "", err
		}
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// fill writes the fencer's own pattern over the area.
func (p *probe) fill(pattern byte) error {
	b := aligned(1 << 20)
	for i := range b {
		b[i] = pattern ^ byte(i>>9)
	}
	for at := int64(0); at < area; at += int64(len(b)) {
		if _, err := p.disk.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

func (p *probe) sensitive(context.Context) error {
	if err := p.fill(1); err != nil {
		return err
	}
	before, err := p.sum()
	if err != nil {
		return err
	}
	counts, err := during(p.victimDevice, func() error { time.Sleep(2 * time.Second); return nil })
	if err != nil {
		return err
	}
	after, err := p.sum()
	if err == nil && before == after {
		err = errors.New("nothing changed: the test would prove nothing")
	}
	fmt.Printf("    %d writes of %d hostile writers went through\n", counts.Good, writers)
	return err
}

// rounds fences the victim under its writes, ten times; in the first the writers go on for 10 s.
func (p *probe) rounds(ctx context.Context) error {
	var took []time.Duration
	for round := range 10 {
		hold := 500 * time.Millisecond
		if round == 0 {
			hold = 10 * time.Second
		}
		t, err := p.round(ctx, byte(round), hold)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		took = append(took, t)
		if err := p.reborn(ctx); err != nil {
			return fmt.Errorf("round %d: come back: %w", round, err)
		}
	}
	slices.Sort(took)
	_, counted := sectorsWritten()
	fmt.Printf("    no late write, by checksums%s\n", map[bool]string{true: " and by the count of the disk below the LUN"}[counted])
	fmt.Printf("    fenced in %v (median), %v (worst)\n", took[len(took)/2], took[len(took)-1])
	return nil
}

func (p *probe) round(ctx context.Context, pattern byte, hold time.Duration) (took time.Duration, err error) {
	var proven time.Duration
	counts, err := during(p.victimDevice, func() error {
		time.Sleep(time.Second)
		proof, err := p.fence(ctx)
		before, counted := sectorsWritten()
		proven, took = now(), proof.Took
		if err != nil {
			return err
		}
		time.Sleep(hold / 2)
		if after, _ := sectorsWritten(); counted && after != before {
			return fmt.Errorf("%d sectors reached the disk below the LUN after the proof", after-before)
		}
		return p.unchanged(pattern, hold/2)
	})
	switch {
	case err != nil:
		return took, err
	case counts.Good == 0 || counts.Refused == 0 || counts.Other != 0:
		return took, fmt.Errorf("writes: %+v", counts)
	}
	// A writer's thread may run long after its write completed, so its clock proves nothing by itself.
	fmt.Printf("    proof after %v; %d writes before, %d refused; the last writer heard of success %v after the proof\n",
		took, counts.Good, counts.Refused, counts.LastGood-proven)
	return took, nil
}

// sectorsWritten is what the disk below the target's first LUN was given; false when it is not in this machine.
func sectorsWritten() (n int64, ok bool) {
	names, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, name := range names {
		if b, err := os.ReadFile(name); err != nil || string(b) != "backing1\n" {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(name)), "stat"))
		if fields := strings.Fields(string(stat)); err == nil && len(fields) > 6 {
			n, err = strconv.ParseInt(fields[6], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// unchanged fills the area and looks again after hold.
func (p *probe) unchanged(pattern byte, hold time.Duration) error {
	if err := p.fill(pattern); err != nil {
		return err
	}
	before, err := p.sum()
	if err != nil {
		return err
	}
	time.Sleep(hold)
	after, err := p.sum()
	if err != nil || before != after {
		return fmt.Errorf("checksum was %s, is %s: %w", before, after, err)
	}
	return nil
}

func (p *probe) staysOut(ctx context.Context) error {
	if _, err := p.fence(ctx); err != nil {
		return err
	}
	if err := p.victim.Check(ctx); !errors.Is(err, fence.ErrFenced) {
		return fmt.Errorf("check says %w", err)
	}
	if err := p.victim.Admit(ctx); !errors.Is(err, fence.ErrFenced) {
		return fmt.Errorf("admit says %w", err)
	}
	keys, err := p.raw[1].ReadKeys(ctx)
	if err == nil && keys.Has(p.key()) {
		err = errors.New("its key is back")
	}
	return err
}

func (p *probe) retried(ctx context.Context) error {
	own, err := device.NewReservationKey(fence.ClusterHash("probe"), 1, 1)
	if err != nil {
		return err
	}
	if err := p.raw[1].PreemptAbort(ctx, own, p.key(), device.WriteExclusiveAllRegistrants); !errors.Is(err, device.ErrReservationConflict) {
		return fmt.Errorf("the retry says %w", err)
	}
	_, err = p.fence(ctx)
	return err
}

// sweep lets the victim register against the rules, as broken software would.
func (p *probe) sweep(ctx context.Context) error {
	if _, err := p.raw[0].RegisterIgnore(ctx, p.key()); err != nil {
		return err
	}
	gone, err := p.fencer.Sweep(ctx, []fence.Node{{Name: "fencer", Number: 1, Incarnation: 1}})
	if err != nil || len(gone) != 1 || gone[0] != p.key() {
		return fmt.Errorf("swept %v: %w", gone, err)
	}
	counts, err := during(p.victimDevice, func() error { time.Sleep(time.Second); return nil })
	if err == nil && counts.Good > 0 {
		err = fmt.Errorf("%d writes went through", counts.Good)
	}
	return err
}

func (p *probe) returns(ctx context.Context) error {
	if err := p.reborn(ctx); err != nil {
		return err
	}
	counts, err := during(p.victimDevice, func() error { time.Sleep(time.Second); return nil })
	if err == nil && (counts.Good == 0 || counts.Refused > 0) {
		err = fmt.Errorf("writes: %+v", counts)
	}
	return err
}
