package fence

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device"
)

var errPath = errors.New("path failed")

// everyone admits all nodes but those that were evicted.
type everyone struct{ evicted atomic.Uint32 }

func (e *everyone) Admitted(_ context.Context, n Node) (bool, error) {
	return uint32(n.Number) != e.evicted.Load(), nil
}

func node(number uint16) Node {
	return Node{Name: "node" + string(rune('0'+number)), Number: number, Incarnation: 1}
}

func fencer(t *testing.T, l LUN, n Node, a Admission) *Fencer {
	t.Helper()
	f, err := Open(t.Context(), Options{Volume: "Volume1", Device: "/dev/sdx", Cluster: "c", Self: n, Admission: a,
		Log: slog.New(slog.DiscardHandler), LUN: l, Drain: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAdmitFenceCheck(t *testing.T) {
	l, all := newLUN(), &everyone{}
	a, b := fencer(t, &initiator{lun: l, name: "a"}, node(1), all), fencer(t, &initiator{lun: l, name: "b"}, node(2), all)
	for _, f := range []*Fencer{a, b, a} {
		if err := f.Admit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if l.kind != kind || !l.mayWrite("a") || !l.mayWrite("b") || l.mayWrite("stranger") {
		t.Fatal("wrong reservation", l.kind, l.keys)
	}
	all.evicted.Store(2)
	p, err := a.Fence(t.Context(), Victim{Node: node(2)})
	if err != nil || p.Method != Reservations || p.Volume != "Volume1" || l.mayWrite("b") {
		t.Fatalf("%+v %v", p, err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	all.evicted.Store(0)
	if err := b.Admit(t.Context()); !errors.Is(err, ErrFenced) || l.mayWrite("b") {
		t.Fatal("a fenced incarnation came back:", err)
	}
	again := node(2)
	again.Incarnation = 2
	b = fencer(t, &initiator{lun: l, name: "b"}, again, all)
	if err := b.Admit(t.Context()); err != nil || !l.mayWrite("b") {
		t.Fatal(err)
	}
	if _, err := a.Fence(t.Context(), Victim{Node: node(2)}); err != nil || !l.mayWrite("b") {
		t.Fatal("fencing the old incarnation took the new one out:", err)
	}
	all.evicted.Store(2)
	if _, err := a.Fence(t.Context(), Victim{Node: again}); err != nil {
		t.Fatal(err)
	}
	if err := a.Leave(t.Context()); err != nil || l.mayWrite("b") {
		t.Fatal("the last one to leave let the fenced one in:", err)
	}
	if err := errors.Join(a.Admit(t.Context()), a.Eject(t.Context())); err != nil || l.kind != 0 {
		t.Fatal(err)
	}
}

// The answer to the first preempt is lost, and the second gets a conflict: the proof comes all the same.
func TestRetriedPreemptConflicts(t *testing.T) {
	l, all := newLUN(), &everyone{}
	var preempts int
	a := &initiator{lun: l, name: "a", after: func(command string) error {
		if command == "preempt" {
			if preempts++; preempts == 1 {
				return errPath
			}
		}
		return nil
	}}
	fa, fb := fencer(t, a, node(1), all), fencer(t, &initiator{lun: l, name: "b"}, node(2), all)
	if err := errors.Join(fa.Admit(t.Context()), fb.Admit(t.Context())); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := fa.Fence(t.Context(), Victim{Node: node(2)}); err != nil || preempts != 1 || l.mayWrite("b") {
		t.Fatal(err, preempts)
	}
	if took := time.Since(began); took < 20*time.Millisecond {
		t.Fatal("did not wait for what the lost preempt may not have ended:", took)
	}
}

// A LUN that says yes to the preempt and keeps the key gets no proof.
func TestNoProofWhileTheKeyIsThere(t *testing.T) {
	l, all := newLUN(), &everyone{}
	a := &liar{initiator{lun: l, name: "a"}}
	fa, fb := fencer(t, a, node(1), all), fencer(t, &initiator{lun: l, name: "b"}, node(2), all)
	if err := errors.Join(fa.Admit(t.Context()), fb.Admit(t.Context())); err != nil {
		t.Fatal(err)
	}
	if p, err := fa.Fence(short(t), Victim{Node: node(2)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%+v %v", p, err)
	}
}

type liar struct{ initiator }

func (*liar) PreemptAbort(context.Context, device.ReservationKey, device.ReservationKey, device.ReservationType) error {
	return nil
}

// The node is evicted and fenced between the cluster's yes and its registration.
func TestEvictedWhileRegistering(t *testing.T) {
	l, all := newLUN(), &everyone{}
	fa := fencer(t, &initiator{lun: l, name: "a"}, node(1), all)
	if err := fa.Admit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := &initiator{lun: l, name: "b", before: func(command string) error {
		if command != "register-ignore" {
			return nil
		}
		all.evicted.Store(2)
		_, err := fa.Fence(t.Context(), Victim{Node: node(2)})
		return err
	}}
	fb := fencer(t, b, node(2), all)
	if err := fb.Admit(t.Context()); !errors.Is(err, ErrNotAdmitted) || l.mayWrite("b") {
		t.Fatal(err)
	}
}

func TestSweepAndForeignKeys(t *testing.T) {
	l, all := newLUN(), &everyone{}
	fa := fencer(t, &initiator{lun: l, name: "a"}, node(1), all)
	if err := fa.Admit(t.Context()); err != nil {
		t.Fatal(err)
	}
	stray, _ := device.NewReservationKey(ClusterHash("c"), 7, 9)
	if err := l.register("x", 0, stray, false); err != nil {
		t.Fatal(err)
	}
	gone, err := fa.Sweep(t.Context(), []Node{node(1), node(2)})
	if err != nil || len(gone) != 1 || gone[0] != stray || l.mayWrite("x") {
		t.Fatal(gone, err)
	}
	if err := l.register("x", 0, 0xabc, false); err != nil {
		t.Fatal(err)
	}
	if _, err = fa.Sweep(t.Context(), nil); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "0x0000000000000abc") {
		t.Fatal(err)
	}
	fb := fencer(t, &initiator{lun: l, name: "b"}, node(2), all)
	if err := fb.Admit(t.Context()); !errors.Is(err, ErrForeign) || l.mayWrite("b") {
		t.Fatal(err)
	}
}

func TestForeignReservation(t *testing.T) {
	l := newLUN()
	l.kind = device.WriteExclusive
	f := fencer(t, &initiator{lun: l, name: "a"}, node(1), &everyone{})
	if err := f.Admit(t.Context()); !errors.Is(err, ErrForeign) || len(l.keys) != 0 {
		t.Fatal(err, l.keys)
	}
}

// A path that lost its registration is registered only while the node is idle.
func TestPaths(t *testing.T) {
	l := newLUN()
	p := &twoPaths{initiator{lun: l, name: "a"}, initiator{lun: l, name: "a2"}}
	f := fencer(t, p, node(1), &everyone{})
	if err := f.Admit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Paths(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	delete(l.keys, "a2") // the target's port forgot it
	l.mu.Unlock()
	if err := f.Paths(t.Context(), false); !errors.Is(err, ErrPathUnregistered) || l.mayWrite("a2") {
		t.Fatal(err)
	}
	if err := f.Paths(t.Context(), true); err != nil || !l.mayWrite("a2") {
		t.Fatal(err)
	}
	l.mu.Lock()
	clear(l.keys)
	l.mu.Unlock()
	if err := f.Paths(t.Context(), true); !errors.Is(err, ErrFenced) || l.mayWrite("a") || l.mayWrite("a2") {
		t.Fatal(err)
	}
}

type twoPaths struct {
	initiator
	second initiator
}

func (p *twoPaths) both(do func(i *initiator) (device.PathErrors, error)) (device.PathErrors, error) {
	all := device.PathErrors{}
	for _, i := range []*initiator{&p.initiator, &p.second} {
		if _, err := do(i); err != nil {
			all[i.name] = err
		}
	}
	if len(all) == 2 {
		return all, all.Err()
	}
	return all, nil
}

func (p *twoPaths) Register(ctx context.Context, old, key device.ReservationKey) (device.PathErrors, error) {
	return p.both(func(i *initiator) (device.PathErrors, error) { return i.Register(ctx, old, key) })
}

func (p *twoPaths) RegisterIgnore(ctx context.Context, key device.ReservationKey) (device.PathErrors, error) {
	return p.both(func(i *initiator) (device.PathErrors, error) { return i.RegisterIgnore(ctx, key) })
}

func base() Options {
	return Options{Volume: "V", Device: "/dev/loop7", Cluster: "c", Self: node(1), Admission: &everyone{}, Log: slog.New(slog.DiscardHandler)}
}

func TestRefusesAnUnfencedDevice(t *testing.T) {
	o := base()
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrUnfenced) || !strings.Contains(err.Error(), "--allow-unfenced") {
		t.Fatal(err)
	}
	o.AllowUnfenced = true
	if _, err := Open(t.Context(), o); err == nil {
		t.Fatal("a lease without times")
	}
	o.Lease = LeaseOptions{TTL: time.Second, InFlight: time.Second, Margin: 100 * time.Millisecond}
	f, err := Open(t.Context(), o)
	if err != nil || f.Method() != Lease || !f.Weak() || !strings.Contains(f.Describe(), "WEAK") || !strings.Contains(f.Describe(), "2.1s") {
		t.Fatal(err, f)
	}
	o.Method = "prayer"
	if _, err := Open(t.Context(), o); err == nil {
		t.Fatal("an unknown method")
	}
}

func TestLeaseWaits(t *testing.T) {
	o := base()
	o.AllowUnfenced, o.Lease = true, LeaseOptions{TTL: 200 * time.Millisecond, InFlight: 30 * time.Millisecond, Margin: 10 * time.Millisecond}
	f, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		silent, min time.Duration
	}{{0, 240 * time.Millisecond}, {200 * time.Millisecond, 40 * time.Millisecond}, {220 * time.Millisecond, 20 * time.Millisecond}, {time.Second, 0}, {-100 * time.Millisecond, 340 * time.Millisecond}} {
		shortest := time.Hour // a busy machine may be late, but not each time
		for range 20 {
			p, err := f.Fence(t.Context(), Victim{Node: node(2), Silent: c.silent})
			if err != nil || p.Took < c.min {
				t.Errorf("%+v %v", p, err)
			}
			if shortest = min(shortest, p.Took); shortest <= c.min+150*time.Millisecond {
				break
			}
		}
		if shortest > c.min+150*time.Millisecond {
			t.Errorf("silent for %v: it took %v", c.silent, shortest)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := f.Fence(ctx, Victim{Node: node(2)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := f.Fence(t.Context(), Victim{Node: node(1)}); err == nil {
		t.Fatal("fenced itself")
	}
}

func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAgent(t *testing.T) {
	o := base()
	log := filepath.Join(t.TempDir(), "log")
	o.Agent.Command = []string{script(t, `echo "$@" >>`+log+`; [ "$(wc -l <`+log+`)" -ge 3 ]`), "--fast"}
	f, err := Open(t.Context(), o)
	if err != nil || f.Method() != Agent || f.Weak() {
		t.Fatal(err)
	}
	if _, err := f.Fence(t.Context(), Victim{Node: node(2)}); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(log)
	if want := strings.Repeat("--fast off node2 /dev/loop7\n", 3); string(got) != want {
		t.Fatalf("%q", got)
	}
}

func TestAgentFails(t *testing.T) {
	o := base()
	o.Agent.Command = []string{script(t, "echo no route to the switch >&2; exit 3")}
	f, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Fence(short(t), Victim{Node: node(2)}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no route to the switch") || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatal(err)
	}
	o.Agent.Command = []string{"/nonexistent"}
	if _, err := Open(t.Context(), o); err == nil {
		t.Fatal("an agent that is not there")
	}
}

// An agent that hangs is killed at its time-out, with its children.
func TestAgentHangs(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	o := base()
	o.Agent = AgentOptions{Command: []string{script(t, "sleep 3600 & echo $! >"+pid+"; echo waiting; wait")}, Timeout: 2 * time.Second}
	f, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := f.Fence(ctx, Victim{Node: node(2)}); err == nil || !strings.Contains(err.Error(), "waiting") {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Fatal("took", took)
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(text)) + "/stat")
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(until) {
			t.Fatal("the agent's child still runs")
		}
	}
}
