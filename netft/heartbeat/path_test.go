package heartbeat

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/beat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func of(incarnation, sequence uint64, sent time.Duration) *beat.Message {
	return &beat.Message{Kind: beat.Beat, From: 2, To: 1, Network: 1, Family: beat.IPv4, Incarnation: incarnation, Sequence: sequence, Sent: uint64(sent)}
}

// TestTakeBeat goes through the receiver's rule of package beat.
func TestTakeBeat(t *testing.T) {
	p := &path{stamp: kernel.Stamp{}}
	at := time.Second
	for _, c := range []struct {
		incarnation, sequence uint64
		fresh                 bool
		count                 func(s *kernel.Stamp) uint64
		want                  uint64
	}{
		{5, 1, true, func(s *kernel.Stamp) uint64 { return s.Beats }, 1},
		{5, 1, false, func(s *kernel.Stamp) uint64 { return s.Duplicates }, 1},
		{5, 4, true, func(s *kernel.Stamp) uint64 { return s.Gaps }, 2},
		{5, 3, false, func(s *kernel.Stamp) uint64 { return s.Reordered }, 1},
		{5, 3, false, func(s *kernel.Stamp) uint64 { return s.Duplicates }, 2},
		{4, 9, false, func(s *kernel.Stamp) uint64 { return s.Replayed }, 1},
		{5, 200, true, func(s *kernel.Stamp) uint64 { return s.Gaps }, 197},
		{5, 4, false, func(s *kernel.Stamp) uint64 { return s.Replayed }, 2},
		{6, 1, true, func(s *kernel.Stamp) uint64 { return s.Restarts }, 1},
		{5, 201, false, func(s *kernel.Stamp) uint64 { return s.Replayed }, 3},
	} {
		before := p.stamp.LastBeat
		at += time.Second
		if got := p.takeBeat(of(c.incarnation, c.sequence, at), at); got != c.fresh {
			t.Errorf("%d/%d: new %v, want %v", c.incarnation, c.sequence, got, c.fresh)
		}
		if got := c.count(&p.stamp); got != c.want {
			t.Errorf("%d/%d: counted %d, want %d", c.incarnation, c.sequence, got, c.want)
		}
		if moved := p.stamp.LastBeat != before; moved != c.fresh {
			t.Errorf("%d/%d: the stamp moved: %v", c.incarnation, c.sequence, moved)
		}
	}
}

// TestUnconfirmed proves that beats alone, which may be a recording, show nothing.
func TestUnconfirmed(t *testing.T) {
	h := &Heart{o: Options{Number: 1, Incarnation: 9}}
	p := &path{}
	p.takeBeat(of(5, 1, time.Second), 2*time.Second)
	if got := Judged(&p.stamp); got.Seen != 0 || got.Incarnation != 0 {
		t.Errorf("judged by a beat that nobody confirmed: %+v", got)
	}
	m := p.next(h, 3*time.Second)
	answer := &beat.Message{Kind: beat.Answer, Incarnation: 5, Sequence: m.Sequence, Echo: m.Sent, Hold: uint64(400 * time.Millisecond), Age: beat.AgeOf(time.Second)}
	wrong := *answer
	wrong.Echo++
	if p.takeAnswer(&wrong, 4*time.Second) || !p.takeAnswer(answer, 4*time.Second) || p.takeAnswer(answer, 5*time.Second) {
		t.Error("an answer counts once, and only if it is ours")
	}
	got := Judged(&p.stamp)
	if got.Seen != 4*time.Second || got.Heard != 4*time.Second || got.Daemon != 3*time.Second || got.Incarnation != 5 {
		t.Errorf("judged %+v", got)
	}
	if p.stamp.LastRTT != 600*time.Millisecond || p.stamp.Unsolicited != 2 || p.stamp.RTT[29] != 1 {
		t.Errorf("round trip %v, %d unsolicited, %v", p.stamp.LastRTT, p.stamp.Unsolicited, p.stamp.RTT)
	}
}

// TestOldAnswer proves that an answer of a daemon that is gone confirms nothing of the new one.
func TestOldAnswer(t *testing.T) {
	h := &Heart{o: Options{Number: 1, Incarnation: 9}}
	p := &path{}
	m := p.next(h, time.Second)
	p.takeBeat(of(6, 1, time.Second), 2*time.Second)
	p.takeAnswer(&beat.Message{Kind: beat.Answer, Incarnation: 5, Sequence: m.Sequence, Echo: m.Sent}, 2*time.Second)
	if p.stamp.Confirmed {
		t.Error("incarnation 6 is confirmed by an answer of 5")
	}
}
