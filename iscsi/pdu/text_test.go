package pdu

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseText(t *testing.T) {
	got, err := ParseText([]byte("InitiatorName=iqn.x:y\x00HeaderDigest=CRC32C,None\x00\x00X-a=b=c\x00Empty=\x00"))
	want := []Pair{{"InitiatorName", "iqn.x:y"}, {"HeaderDigest", "CRC32C,None"}, {"X-a", "b=c"}, {"Empty", ""}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestParseTextRefuses(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"no =", "HeaderDigest\x00"},
		{"no key", "=None\x00"},
		{"key with blank", "Header Digest=None\x00"},
		{"long key", strings.Repeat("k", MaxKeyLen+1) + "=1\x00"},
		{"long value", "k=" + strings.Repeat("v", MaxValueLen+1) + "\x00"},
		{"long text", strings.Repeat("k=vvvvvvvvvvvv\x00", MaxText/14)},
		{"many pairs", strings.Repeat("k=v\x00", MaxPairs+1)},
	} {
		if _, err := ParseText([]byte(c.text)); !errors.Is(err, ErrText) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestAssembler(t *testing.T) {
	var a Assembler
	if got, err := a.Add([]byte("Initiator"), true); got != nil || err != nil || !a.Pending() {
		t.Fatal(got, err)
	}
	if got, err := a.Add([]byte("Name=x\x00"), false); string(got) != "InitiatorName=x\x00" || err != nil || a.Pending() {
		t.Fatalf("%q %v", got, err)
	}
	big := bytes.Repeat([]byte{'x'}, MaxText/2+1)
	_, _ = a.Add(big, true)
	if _, err := a.Add(big, true); !errors.Is(err, ErrText) || a.Pending() {
		t.Errorf("no bound: %v", err)
	}
}

func FuzzParseText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.1993-08.org.debian:01:abc\x00SessionType=Normal\x00AuthMethod=CHAP,None\x00"))
	f.Add([]byte("CHAP_A=5,7\x00CHAP_N=user\x00CHAP_R=0x0123\x00"))
	f.Add([]byte("SendTargets=All\x00"))
	f.Add([]byte("\x00\x00=\x00a=\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, err := ParseText(b)
		if err != nil {
			if !errors.Is(err, ErrText) {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		for _, p := range pairs {
			again = AppendPair(again, p.Key, p.Value)
		}
		if len(again) > MaxText { // a missing last NUL makes it one byte longer
			return
		}
		if back, err := ParseText(again); err != nil || !slices.Equal(back, pairs) {
			t.Fatalf("%q became %q: %v", pairs, back, err)
		}
	})
}

func FuzzAHS(f *testing.F) {
	f.Add([]byte{0, 5, 2, 0, 0, 0, 16, 0})
	f.Add([]byte{0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{0xff, 0xff, 1, 0})
	f.Add([]byte{0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		left := len(b)
		for len(b) > 0 {
			seg, rest, err := NextAHS(b)
			if err != nil {
				if !errors.Is(err, ErrAHS) {
					t.Fatal(err)
				}
				return
			}
			if len(rest) >= left || len(seg.Value) == 0 || len(seg.Value) > left {
				t.Fatalf("%d bytes left of %d", len(rest), left)
			}
			b, left = rest, len(rest)
		}
	})
}

func FuzzLUN(f *testing.F) {
	f.Add(uint64(0))
	f.Add(uint64(0x41ff) << 48)
	f.Add(uint64(0xd200_0100_0000_0000))
	f.Fuzz(func(t *testing.T, raw uint64) {
		n, ok := DecodeLUN(raw)
		if !ok {
			return
		}
		if back, ok := DecodeLUN(EncodeLUN(n)); !ok || back != n {
			t.Fatalf("%#x is %d, which comes back as %d", raw, n, back)
		}
	})
}
