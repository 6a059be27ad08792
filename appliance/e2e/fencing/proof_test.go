package fencing

import (
	"context"
	"crypto/tls"
	"errors"
	"hash/crc64"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/fence"
	"lunar/appliance/fence/guard"
)

// rounds is how many deaths a test takes; `make fence-test` takes more.
func rounds(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("LUNAR_FENCE_RUNS")); err == nil && n > 0 {
		return n
	}
	return usual
}

// checksum is of what is behind the path, by direct I/O.
func (l *lab) checksum(b []byte) uint64 {
	l.t.Helper()
	if _, err := l.file.ReadAt(b, fsBytes); err != nil {
		l.t.Fatal(err)
	}
	return crc64.Checksum(b, crc64.MakeTable(crc64.ECMA))
}

func mapped(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, rawBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// still fails when anything reaches the LUN.
func (l *lab) still(b []byte) {
	l.t.Helper()
	sectors, sum := l.counter(sectorsWritten), l.checksum(b)
	for range 3 {
		time.Sleep(7 * time.Millisecond)
		if now := l.counter(sectorsWritten); now != sectors {
			l.t.Errorf("%d sectors were written after the proof", now-sectors)
			return
		}
		if l.checksum(b) != sum {
			l.t.Error("the LUN changed after the proof")
			return
		}
	}
}

func (l *lab) ask(c *tls.Config, incarnation uint64, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), limit)
	defer cancel()
	return guard.Ask(ctx, l.address, c, incarnation, "a test")
}

// A daemon with 128 direct writes under way dies, or stops, at any moment: after its guard's proof nothing changes any
// more. How long does the proof take, and had the death left writes under way?
func TestNothingAfterTheProof(t *testing.T) {
	for _, how := range []struct {
		name   string
		signal unix.Signal
	}{{"killed", unix.SIGKILL}, {"stopped", unix.SIGSTOP}} {
		t.Run(how.name, func(t *testing.T) {
			l, b := newLab(t), mapped(t)
			c := l.ca.client("other")
			var took []time.Duration
			left := 0
			for i := range rounds(3) {
				v := l.start("victim", uint64(i+1))
				time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
				began := time.Now()
				v.signal(how.signal)
				under := make(chan int64, 1)
				go func() {
					_ = v.cmd.Wait()
					under <- l.counter(inFlight)
				}()
				words, err := l.ask(c, uint64(i+1), 10*time.Second)
				took = append(took, time.Since(began))
				l.must(err)
				if i == 0 {
					t.Log(words)
				}
				if n := <-under; n > 0 {
					left++
				}
				l.still(b)
				v.end()
			}
			slices.Sort(took)
			t.Logf("%s: from the signal to the proof, %d runs: p50 %v, p99 %v, worst %v; writes were left under way in %d", how.name, len(took), took[len(took)/2],
				took[(len(took)*99+99)/100-1], took[len(took)-1], left)
			bar := 9 * time.Second // `make fence-test` holds 3 s; CI may be busy with other things
			if os.Getenv("LUNAR_FENCE_RUNS") != "" {
				bar = 3 * time.Second
			}
			if worst := took[len(took)-1]; worst > bar {
				t.Errorf("a proof took %v", worst)
			}
		})
	}
}

// The machine is off: nobody answers, and the wait decides. With the guard alive its proof comes first.
func TestLeaseAsks(t *testing.T) {
	l := newLab(t)
	c := l.ca.client("other")
	o := fence.Options{
		Volume: "Volume1", Device: l.path, Cluster: "c", Self: fence.Node{Name: "other", Number: 1, Incarnation: 1}, Admission: yes{},
		Log: slog.New(slog.DiscardHandler), AllowUnfenced: true,
		Lease: fence.LeaseOptions{TTL: 30 * time.Second, InFlight: time.Second, Margin: time.Second,
			Ask: func(ctx context.Context, n fence.Node) (string, error) {
				return guard.Ask(ctx, l.address, c, uint64(n.Incarnation), "it does not renew its session")
			}},
	}
	f, err := fence.Open(t.Context(), o)
	l.must(err)
	v := l.start("victim", 4)
	defer v.end()
	v.signal(unix.SIGSTOP)
	proof, err := f.Fence(t.Context(), fence.Victim{Node: fence.Node{Name: "victim", Number: 2, Incarnation: 4}})
	l.must(err)
	t.Log(proof.Took, proof.Detail)
	if proof.Took > 20*time.Second || !strings.Contains(proof.Detail, "guard proved") {
		t.Error("the guard's proof was not taken")
	}
	v.end()
	v = l.start("victim", 5)
	defer v.end()
	l.must(unix.Kill(v.guard, unix.SIGKILL))
	v.signal(unix.SIGKILL)
	o.Lease.TTL, o.Lease.Margin = time.Second, 100*time.Millisecond
	f, err = fence.Open(t.Context(), o)
	l.must(err)
	proof, err = f.Fence(t.Context(), fence.Victim{Node: fence.Node{Name: "victim", Number: 2, Incarnation: 5}})
	l.must(err)
	t.Log(proof.Took, proof.Detail)
	if proof.Took < 2100*time.Millisecond || proof.Took > 20*time.Second || !strings.Contains(proof.Detail, "waited 2.1s") {
		t.Error("the wait did not decide")
	}
}

type yes struct{}

func (yes) Admitted(context.Context, fence.Node) (bool, error) { return true, nil }

// Who is not of the cluster, or means another incarnation, ends nothing.
func TestGuardRefuses(t *testing.T) {
	l := newLab(t)
	out := l.ca.issue("evicted")
	l.ca.revoked = strconv.FormatInt(l.ca.serial, 16)
	v := l.start("victim", 9)
	defer v.end()
	member := l.ca.client("other")
	for _, incarnation := range []uint64{8, 10} {
		if _, err := l.ask(member, incarnation, 5*time.Second); !errors.Is(err, guard.ErrRefused) {
			t.Errorf("incarnation %d: %v", incarnation, err)
		}
	}
	foreign := newAuthority(t).client("other")
	foreign.InsecureSkipVerify = true
	revoked := member.Clone()
	cert, err := tls.LoadX509KeyPair(out+"/cert", out+"/key")
	l.must(err)
	revoked.Certificates = []tls.Certificate{cert}
	none := member.Clone()
	none.Certificates = nil
	for name, c := range map[string]*tls.Config{"foreign": foreign, "revoked": revoked, "none": none} {
		if words, err := l.ask(c, 9, 300*time.Millisecond); err == nil || errors.Is(err, guard.ErrRefused) {
			t.Errorf("certificate %s: %s %v", name, words, err)
		}
	}
	for _, line := range []string{"yield\n", "end 9\n", strings.Repeat("x", 1000), "end 9 \x01\n"} {
		if answer := l.say(member, line); strings.HasPrefix(answer, "ended") {
			t.Errorf("%.20q: %s", line, answer)
		}
	}
	if before := l.counter(sectorsWritten); !l.changes(before) {
		t.Error("the daemon was ended")
	}
	if _, err := l.ask(member, 9, 5*time.Second); err != nil {
		t.Error(err)
	}
}

func (l *lab) changes(before int64) bool {
	for range 100 {
		time.Sleep(10 * time.Millisecond)
		if l.counter(sectorsWritten) != before {
			return true
		}
	}
	return false
}

// say sends raw bytes, and returns what comes back.
func (l *lab) say(c *tls.Config, line string) string {
	l.t.Helper()
	conn, err := tls.Dial("tcp", l.address, c)
	l.must(err)
	defer conn.Close()
	_, err = conn.Write([]byte(line))
	l.must(err)
	l.must(conn.SetReadDeadline(time.Now().Add(5 * time.Second)))
	answer := make([]byte, 1000)
	n, _ := conn.Read(answer)
	return string(answer[:n])
}

// The daemon starts again within its guard's remaining time: the new guard has the port, and answers for both.
func TestRestartTakesThePort(t *testing.T) {
	l, b := newLab(t), mapped(t)
	c := l.ca.client("other")
	first := l.start("victim", 1)
	first.signal(unix.SIGKILL)
	_ = first.cmd.Wait()
	unmounted(t, l.path)
	l.still(b)
	second := l.start("victim", 2)
	defer second.end()
	words, err := l.ask(c, 1, 5*time.Second)
	for until := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(until); words, err = l.ask(c, 1, 5*time.Second) {
		time.Sleep(10 * time.Millisecond)
	}
	l.must(err)
	t.Log(words)
	for until := time.Now().Add(5 * time.Second); unix.Kill(first.guard, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the first guard still has the port")
		}
	}
	if words, err = l.ask(c, 1, 5*time.Second); err != nil || !strings.Contains(words, "earlier guard") {
		t.Fatal("the second guard does not know of the first:", words, err)
	}
	if before := l.counter(sectorsWritten); !l.changes(before) {
		t.Error("the second daemon was ended for the first")
	}
	words, err = l.ask(c, 2, 5*time.Second)
	l.must(err)
	t.Log(words)
	l.still(b)
	first.end()
}

// A database that was put back gives an incarnation's number again: what the guard before says of the earlier one is
// no word about the present one.
func TestNumberGivenAgain(t *testing.T) {
	l, b := newLab(t), mapped(t)
	c := l.ca.client("other")
	first := l.start("victim", 5)
	first.signal(unix.SIGKILL)
	_ = first.cmd.Wait()
	unmounted(t, l.path)
	l.still(b)
	second := l.start("victim", 5)
	defer second.end()
	for until := time.Now().Add(10 * time.Second); unix.Kill(first.guard, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the first guard still has the port")
		}
	}
	words, err := l.ask(c, 5, 20*time.Second)
	l.must(err)
	t.Log(words)
	if strings.Contains(words, "earlier guard") {
		t.Error("the second daemon is called dead by the word about the first")
	}
	l.still(b)
	first.end()
}
