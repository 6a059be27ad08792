package heartbeat

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"lunar/netft/beat"
	"lunar/netft/detector"
)

const (
	// probeTries are sent, each after probeWait without an answer to the one before.
	probeTries = 3
	probeWait  = 300 * time.Millisecond
	// ipHeaders are those before the datagram's bytes.
	ip4Headers = 20 + 8
	ip6Headers = 40 + 8
	// MinProbe is the smallest packet that ProbeMTU sends.
	MinProbe = ip6Headers + beat.Size + 1
	// MaxProbe is the largest.
	MaxProbe = 65535
)

// ErrTooBig says that packets of the size do not get through, or not back.
var ErrTooBig = errors.New("heartbeat: packets of this size are not answered")

// ProbeMTU sends packets of size bytes, IP header included, that may not be fragmented, and waits until the peer's
// daemon has answered one in the same size. It returns ErrTooBig if none is answered, and another error if the path is
// not known or has no address. A probe is a message signed with a key of its own, with bytes after it.
func (h *Heart) ProbeMTU(ctx context.Context, p detector.Path, size int) error {
	if size < MinProbe || size > MaxProbe {
		return fmt.Errorf("heartbeat: a probe of %d bytes: give %d to %d", size, MinProbe, MaxProbe)
	}
	answered := make(chan struct{}, 1)
	h.mu.Lock()
	h.nonce++
	nonce := h.nonce
	h.probes[nonce] = answered
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.probes, nonce)
		h.mu.Unlock()
	}()
	for range probeTries {
		if err := h.probe(p, nonce, size); err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("heartbeat: probe of %d bytes: %w", size, ctx.Err())
		case <-time.After(probeWait):
		}
	}
	return fmt.Errorf("%w: %d bytes", ErrTooBig, size)
}

func (h *Heart) probe(at detector.Path, nonce uint64, size int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.byPath[at]
	if p == nil {
		return fmt.Errorf("heartbeat: no path to node %d over network %d by %v", at.Peer, at.Network, at.Family)
	}
	s := h.sockets[door{p.index, at.Family}]
	if s == nil || !p.remote.IsValid() {
		return fmt.Errorf("heartbeat: no address for node %d over network %d by %v", at.Peer, at.Network, at.Family)
	}
	m := beat.Message{
		Kind: beat.Beat, From: h.o.Number, To: at.Peer, Network: at.Network, Family: beat.Family(at.Family),
		Incarnation: h.o.Incarnation, Sequence: nonce, Sent: uint64(Now()),
	}
	return h.sendProbe(s, &m, p.remote, size-headers(at.Family))
}

func headers(f detector.Family) int {
	if f == detector.IPv4 {
		return ip4Headers
	}
	return ip6Headers
}

func (h *Heart) sendProbe(s *socket, m *beat.Message, to netip.Addr, length int) error {
	err := s.send(h.sealProbe(m, length), sockaddr(to, s.index, h.o.Port))
	if errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("%w: %d bytes are more than the MTU of %s", ErrTooBig, length+headers(s.family), s.name)
	}
	if err != nil {
		return fmt.Errorf("heartbeat: probe over %s: %w", s.name, err)
	}
	return nil
}

// probeKey is that of probes and notices: one whose last bytes are cut off is no heartbeat to anybody.
func probeKey(key [beat.KeySize]byte) beat.Key {
	sum := sha256.Sum256(append([]byte("lunar heartbeat probe\x00"), key[:]...))
	return beat.NewKey([beat.KeySize]byte(sum[:]))
}

// sealProbe is the message of length bytes, more than a heartbeat has.
func (h *Heart) sealProbe(m *beat.Message, length int) []byte {
	b := make([]byte, length)
	h.probeKey.Seal((*[beat.Size]byte)(b), m)
	return b
}

// takeProbe answers a probe in its own size, or ends the wait for an answer.
func (h *Heart) takeProbe(s *socket, b []byte, from netip.Addr) {
	var m beat.Message
	if err := h.probeKey.Open(b[:beat.Size], &m); err != nil {
		h.refuse(err)
		return
	}
	if m.To != h.o.Number || detector.Family(m.Family) != s.family {
		h.counters.Misplaced++
		return
	}
	if m.Network != s.network {
		h.takeNotice(&m)
		return
	}
	if m.Kind == beat.Answer {
		if wait := h.probes[m.Sequence]; wait != nil && m.Echo == h.o.Incarnation {
			select {
			case wait <- struct{}{}:
			default:
			}
		}
		return
	}
	if h.byPath[detector.Path{Peer: m.From, Network: m.Network, Family: s.family}] == nil {
		h.counters.Unknown++
		return
	}
	reply := beat.Message{
		Kind: beat.Answer, From: h.o.Number, To: m.From, Network: m.Network, Family: m.Family, Age: beat.AgeUnknown,
		Incarnation: h.o.Incarnation, Sequence: m.Sequence, Sent: uint64(Now()), Echo: m.Incarnation,
	}
	if h.sendProbe(s, &reply, from, len(b)) != nil {
		h.counters.Unsent++
	}
}
