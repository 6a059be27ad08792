package beat

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/dchest/siphash"
)

const (
	// Port is the UDP port of heartbeats.
	Port = 3343
	// Size is the length of every heartbeat in bytes.
	Size = 72
	// Version is the only version of the format.
	Version = 1
	// KeySize is the length of a cluster's heartbeat key in bytes.
	KeySize = 16
)

// Kind tells a beat from an answer.
type Kind uint8

// The kinds of a heartbeat.
const (
	// Beat is sent by a daemon, at its period.
	Beat Kind = 1
	// Answer is sent back for each new beat, by the receiver's kernel or, without one, by its daemon.
	Answer Kind = 2
)

// Flags are properties of one heartbeat.
type Flags uint16

// FromKernel says that the kernel made this answer, whether the daemon lives or not.
const FromKernel Flags = 1

// Family is the IP version that carries a heartbeat.
type Family uint8

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// AgeUnknown is the Age of a daemon that never beat, or whose age does not fit.
const AgeUnknown Age = math.MaxUint32

// Age is how long ago a daemon last beat, in µs.
type Age uint32

// AgeOf rounds down to µs. Negative is 0; an hour and more than fits is AgeUnknown.
func AgeOf(d time.Duration) Age {
	return Age(min(uint64(max(d, 0)/time.Microsecond), uint64(AgeUnknown)))
}

// Duration is the age; ok is false if it is AgeUnknown.
func (a Age) Duration() (d time.Duration, ok bool) {
	return time.Duration(a) * time.Microsecond, a != AgeUnknown
}

// Message is a heartbeat's content. The package comment gives each field's meaning.
type Message struct {
	Kind        Kind
	Flags       Flags
	From, To    uint16
	Network     uint16
	Family      Family
	Age         Age
	Incarnation uint64
	Sequence    uint64
	Sent        uint64
	Echo        uint64
	Hold        uint64
}

// Errors of Open, and of Validate: ErrContent only.
var (
	ErrLength  = errors.New("beat: not 72 bytes")
	ErrMagic   = errors.New("beat: not a heartbeat of ours")
	ErrVersion = errors.New("beat: unknown version")
	ErrForeign = errors.New("beat: of another cluster")
	ErrForged  = errors.New("beat: wrong tag")
	ErrContent = errors.New("beat: a field has a value that is not allowed")
)

const (
	magic      = 0x4c4e4842 // "LNHB"
	tagged     = Size - 8
	knownFlags = FromKernel
)

// clusterName is what a key signs to name its cluster on the wire.
var clusterName = []byte("lunar heartbeat cluster\x00")

// Key is a cluster's heartbeat key, ready for use. The zero Key is the key of 16 zeroes.
type Key struct {
	k0, k1  uint64
	cluster uint32
}

// NewKey reads the 16 bytes as SipHash does: two little-endian words.
func NewKey(key [KeySize]byte) Key {
	k := Key{k0: binary.LittleEndian.Uint64(key[:8]), k1: binary.LittleEndian.Uint64(key[8:])}
	k.cluster = uint32(siphash.Hash(k.k0, k.k1, clusterName))
	return k
}

// Cluster is the number by which the heartbeats of this key's cluster are told from others'.
func (k *Key) Cluster() uint32 { return k.cluster }

// Seal writes m, signed, to dst. It does not check m: see Validate.
func (k *Key) Seal(dst *[Size]byte, m *Message) {
	order := binary.BigEndian
	order.PutUint32(dst[0:], magic)
	dst[4], dst[5] = Version, byte(m.Kind)
	order.PutUint16(dst[6:], uint16(m.Flags))
	order.PutUint32(dst[8:], k.cluster)
	order.PutUint16(dst[12:], m.From)
	order.PutUint16(dst[14:], m.To)
	order.PutUint16(dst[16:], m.Network)
	dst[18], dst[19] = byte(m.Family), 0
	order.PutUint32(dst[20:], uint32(m.Age))
	order.PutUint64(dst[24:], m.Incarnation)
	order.PutUint64(dst[32:], m.Sequence)
	order.PutUint64(dst[40:], m.Sent)
	order.PutUint64(dst[48:], m.Echo)
	order.PutUint64(dst[56:], m.Hold)
	binary.LittleEndian.PutUint64(dst[tagged:], k.tag(dst[:tagged]))
}

// Open checks src and fills m, or returns one of this package's errors and leaves m alone. Whether the heartbeat is
// for this node, and new, is for the caller to check.
func (k *Key) Open(src []byte, m *Message) error {
	if err := k.authentic(src); err != nil {
		return err
	}
	got := parse(src)
	if src[19] != 0 {
		return ErrContent
	}
	if err := got.Validate(); err != nil {
		return err
	}
	*m = got
	return nil
}

func (k *Key) authentic(src []byte) error {
	switch {
	case len(src) != Size:
		return ErrLength
	case binary.BigEndian.Uint32(src) != magic:
		return ErrMagic
	case src[4] != Version:
		return ErrVersion
	case binary.BigEndian.Uint32(src[8:]) != k.cluster:
		return ErrForeign
	case binary.LittleEndian.Uint64(src[tagged:]) != k.tag(src[:tagged]):
		return ErrForged
	}
	return nil
}

func parse(src []byte) Message {
	order := binary.BigEndian
	return Message{
		Kind:        Kind(src[5]),
		Flags:       Flags(order.Uint16(src[6:])),
		From:        order.Uint16(src[12:]),
		To:          order.Uint16(src[14:]),
		Network:     order.Uint16(src[16:]),
		Family:      Family(src[18]),
		Age:         Age(order.Uint32(src[20:])),
		Incarnation: order.Uint64(src[24:]),
		Sequence:    order.Uint64(src[32:]),
		Sent:        order.Uint64(src[40:]),
		Echo:        order.Uint64(src[48:]),
		Hold:        order.Uint64(src[56:]),
	}
}

// Validate returns ErrContent if a receiver would refuse m.
func (m *Message) Validate() error {
	allowed := knownFlags
	if m.Kind == Beat {
		allowed = 0
	}
	switch {
	case m.Kind != Beat && m.Kind != Answer,
		m.Flags&^allowed != 0,
		m.Family != IPv4 && m.Family != IPv6,
		m.From == 0 || m.To == 0 || m.From == m.To,
		m.Incarnation == 0 || m.Sequence == 0:
		return ErrContent
	}
	return nil
}

func (k *Key) tag(b []byte) uint64 { return siphash.Hash(k.k0, k.k1, b) }
