package beat

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dchest/siphash"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew")

func testKey() (k [KeySize]byte) {
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

func sample() Message {
	return Message{
		Kind: Beat, From: 7, To: 3, Network: 2, Family: IPv6, Age: 1500,
		Incarnation: 0x0102030405060708, Sequence: 41, Sent: 1_000_000_007, Echo: 999, Hold: 12,
	}
}

// TestSipHash holds the library to the reference vectors of SipHash-2-4, for the lengths that are used here.
func TestSipHash(t *testing.T) {
	k := NewKey(testKey())
	in := make([]byte, 64)
	for i := range in {
		in[i] = byte(i)
	}
	vectors := map[int]uint64{0: 0x726fdb47dd0e0e31, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5, 63: 0x958a324ceb064572}
	for n, want := range vectors {
		if got := k.tag(in[:n]); got != want {
			t.Errorf("%d bytes: got %#x, want %#x", n, got, want)
		}
	}
}

func TestThereAndBack(t *testing.T) {
	k := NewKey(testKey())
	answer := sample()
	answer.Kind, answer.Flags, answer.Age = Answer, FromKernel, AgeUnknown
	for _, want := range []Message{sample(), answer} {
		var b [Size]byte
		var got Message
		k.Seal(&b, &want)
		if err := k.Open(b[:], &got); err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

// TestEveryBitCounts flips each bit of a heartbeat: none may be accepted.
func TestEveryBitCounts(t *testing.T) {
	k, m := NewKey(testKey()), sample()
	var b [Size]byte
	k.Seal(&b, &m)
	for bit := range Size * 8 {
		bad := b
		bad[bit/8] ^= 1 << (bit % 8)
		var got Message
		if err := k.Open(bad[:], &got); err == nil || got != (Message{}) {
			t.Errorf("bit %d: %v, %+v", bit, err, got)
		}
	}
}

func TestOtherKey(t *testing.T) {
	k, m := NewKey(testKey()), sample()
	var b [Size]byte
	k.Seal(&b, &m)
	other := NewKey([KeySize]byte{1})
	if other.Cluster() == k.Cluster() {
		t.Fatal("two keys name one cluster")
	}
	var got Message
	if err := other.Open(b[:], &got); !errors.Is(err, ErrForeign) {
		t.Errorf("got %v, want %v", err, ErrForeign)
	}
}

func TestNoAllocation(t *testing.T) {
	k, m := NewKey(testKey()), sample()
	var b [Size]byte
	if n := testing.AllocsPerRun(100, func() { k.Seal(&b, &m); _ = k.Open(b[:], &m) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAge(t *testing.T) {
	cases := map[time.Duration]Age{
		-time.Second: 0, 0: 0, 1999: 1, time.Second: 1_000_000, 71 * time.Minute: 4_260_000_000,
		72 * time.Minute: AgeUnknown, time.Duration(1<<63 - 1): AgeUnknown,
	}
	for d, want := range cases {
		if got := AgeOf(d); got != want {
			t.Errorf("%v: got %d, want %d", d, got, want)
		}
	}
	if d, ok := Age(1500).Duration(); d != 1500*time.Microsecond || !ok {
		t.Errorf("got %v, %v", d, ok)
	}
	if _, ok := AgeUnknown.Duration(); ok {
		t.Error("an unknown age has a duration")
	}
}

// golden is a packet's payload, and what a receiver of key 00…0f makes of it.
type golden struct {
	name string
	want error
	data []byte
}

// goldens are the cases of testdata/golden.txt. Node 3 receives them on network 2 by IPv6.
func goldens() []golden {
	k := NewKey(testKey())
	seal := func(change func(*Message)) []byte {
		m := sample()
		change(&m)
		var b [Size]byte
		k.Seal(&b, &m)
		return b[:]
	}
	resign := func(at int, value byte) []byte {
		b := seal(func(*Message) {})
		b[at] = value
		binary.LittleEndian.PutUint64(b[Size-8:], siphash.Hash(k.k0, k.k1, b[:Size-8]))
		return b
	}
	beat := seal(func(*Message) {})
	wrong := bytes.Clone(beat)
	wrong[40] ^= 1
	other, m, foreign := NewKey([KeySize]byte{1}), sample(), [Size]byte{}
	other.Seal(&foreign, &m)
	return []golden{
		{"beat", nil, beat},
		{"answer", nil, seal(func(m *Message) { m.Kind = Answer })},
		{"answer-of-kernel", nil, seal(func(m *Message) { m.Kind, m.Flags, m.Age = Answer, FromKernel, AgeUnknown })},
		{"short", ErrLength, beat[:Size-1]},
		{"long", ErrLength, append(bytes.Clone(beat), 0)},
		{"magic", ErrMagic, resign(0, 'X')},
		{"version", ErrVersion, resign(4, 2)},
		{"foreign", ErrForeign, foreign[:]},
		{"forged", ErrForged, wrong},
		{"kind", ErrContent, resign(5, 3)},
		{"kind-zero", ErrContent, resign(5, 0)},
		{"flags", ErrContent, resign(6, 1)},
		{"beat-of-kernel", ErrContent, resign(7, 1)},
		{"family", ErrContent, resign(18, 5)},
		{"reserved", ErrContent, resign(19, 1)},
		{"from-zero", ErrContent, seal(func(m *Message) { m.From = 0 })},
		{"from-itself", ErrContent, seal(func(m *Message) { m.From = m.To })},
		{"incarnation-zero", ErrContent, seal(func(m *Message) { m.Incarnation = 0 })},
		{"sequence-zero", ErrContent, seal(func(m *Message) { m.Sequence = 0 })},
	}
}

var names = map[error]string{
	nil: "ok", ErrLength: "length", ErrMagic: "magic", ErrVersion: "version",
	ErrForeign: "foreign", ErrForged: "forged", ErrContent: "content",
}

func TestGolden(t *testing.T) {
	var text strings.Builder
	text.WriteString("# name, what Open says, the bytes. Written by go test ./netft/beat -update; read by bpf/heartbeat too.\n")
	k := NewKey(testKey())
	for _, g := range goldens() {
		var m Message
		if err := k.Open(g.data, &m); !errors.Is(err, g.want) {
			t.Errorf("%s: got %v, want %v", g.name, err, g.want)
		}
		fmt.Fprintf(&text, "%s %s %s\n", g.name, names[g.want], hex.EncodeToString(g.data))
	}
	const file = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != text.String() {
		t.Error("the format is not what testdata/golden.txt holds: a change of it needs a new version")
	}
}

// FuzzOpen holds Open to: no panic, and what it accepts is what Seal writes.
func FuzzOpen(f *testing.F) {
	for _, g := range goldens() {
		f.Add(g.data, true)
		f.Add(g.data, false)
	}
	k := NewKey(testKey())
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		if sign && len(data) == Size {
			data = bytes.Clone(data)
			binary.BigEndian.PutUint32(data[8:], k.cluster)
			binary.LittleEndian.PutUint64(data[tagged:], k.tag(data[:tagged]))
		}
		var m Message
		if err := k.Open(data, &m); err != nil {
			if m != (Message{}) {
				t.Fatalf("%v, but it filled %+v", err, m)
			}
			return
		}
		var back [Size]byte
		k.Seal(&back, &m)
		if !bytes.Equal(back[:], data) {
			t.Fatalf("accepted %x, sealed %x", data, back)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k, m := NewKey(testKey()), sample()
	var out [Size]byte
	for b.Loop() {
		k.Seal(&out, &m)
	}
}

func BenchmarkOpen(b *testing.B) {
	k, m := NewKey(testKey()), sample()
	var out [Size]byte
	k.Seal(&out, &m)
	for b.Loop() {
		_ = k.Open(out[:], &m)
	}
}
