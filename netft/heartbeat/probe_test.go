package heartbeat

import (
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	kernel "lunar/bpf/heartbeat"
	"lunar/netft/beat"
	"lunar/netft/detector"
)

// TestCutProbe has a recorded notice, and a probe, come again over the network that they name, as long as a heartbeat is.
// Taken for one, its high number would make a replay of every true one after it.
func TestCutProbe(t *testing.T) {
	at := detector.Path{Peer: 1, Network: 7, Family: detector.IPv4}
	h := &Heart{
		o:   Options{Number: 2, Incarnation: 9, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Interval: time.Second},
		key: beat.NewKey([beat.KeySize]byte{1}), probeKey: probeKey([beat.KeySize]byte{1}),
		byPath: map[detector.Path]*path{at: {stamp: kernel.Stamp{Path: kernelPath(at)}}},
	}
	s := &socket{door: door{1, detector.IPv4}, network: 7, fd: -1}
	m := beat.Message{Kind: beat.Beat, From: 1, To: 2, Network: 7, Family: beat.IPv4, Incarnation: 5, Sequence: 1 << 40, Echo: 9}
	from := netip.MustParseAddr("10.0.0.1")
	h.take(s, h.sealProbe(&m, noticeSize)[:beat.Size], from, Now())
	if got := h.byPath[at].stamp; got.Sequence != 0 || got.Beats != 0 || h.counters.Foreign != 1 {
		t.Fatalf("a notice without its last byte: sequence %d, %d beats, %+v", got.Sequence, got.Beats, h.counters)
	}
	var b [beat.Size]byte
	m.Sequence = 1
	h.key.Seal(&b, &m)
	h.take(s, append(b[:], 0), from, Now())
	if h.counters.Foreign != 2 {
		t.Fatalf("a heartbeat with a byte more: %+v", h.counters)
	}
	h.take(s, b[:], from, Now())
	if got := h.byPath[at].stamp; got.Sequence != 1 || got.Beats != 1 {
		t.Fatalf("the true one: sequence %d, %d beats", got.Sequence, got.Beats)
	}
}
