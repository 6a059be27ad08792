package device

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/device/loopdev"
)

func TestReservationKeyParts(t *testing.T) {
	k, err := NewReservationKey(0xbeef, 0x0102, 0x03040506)
	if err != nil || k != 0xbeef010203040506 || k.Cluster() != 0xbeef || k.Node() != 0x0102 || k.Incarnation() != 0x03040506 {
		t.Fatalf("%v: %v", k, err)
	}
	if k.String() != "0xbeef010203040506" || ReservationKey(0xa).String() != "0x000000000000000a" {
		t.Fatal(k, ReservationKey(0xa))
	}
	if _, err := NewReservationKey(0, 0, 0); err == nil {
		t.Fatal("a key of zero")
	}
}

// The parameter lists are those that sg_persist of sg3-utils 1.46 sends.
func TestReservationOutEncodes(t *testing.T) {
	for _, c := range []struct {
		out       reservationOut
		cdb, list string
	}{
		{reservationOut{action: outRegister, key: 0, actionKey: 0x123abc, aptpl: true}, "5f000000000000001800",
			"00000000000000000000000000123abc0000000001000000"},
		{reservationOut{action: outReserve, kind: WriteExclusiveAllRegistrants, key: 0xa}, "5f010700000000001800",
			"000000000000000a00000000000000000000000000000000"},
		{reservationOut{action: outPreemptAbort, kind: WriteExclusiveAllRegistrants, key: 0xa, actionKey: 0xb}, "5f050700000000001800",
			"000000000000000a000000000000000b0000000000000000"},
		{reservationOut{action: outRegisterIgnore, actionKey: 0xc}, "5f060000000000001800",
			"0000000000000000000000000000000c0000000000000000"},
	} {
		cdb, list := c.out.encode()
		if hex.EncodeToString(cdb) != c.cdb || hex.EncodeToString(list) != c.list {
			t.Errorf("%+v: %x %x", c.out, cdb, list)
		}
		if back, err := decodeOut(cdb, list); err != nil || back != c.out {
			t.Errorf("%+v came back as %+v: %v", c.out, back, err)
		}
	}
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeKeys(t *testing.T) {
	data := unhex(t, "00000007 00000010 000000000000000a 000000000000000b")
	r, whole, err := decodeKeys(data)
	if err != nil || r.Generation != 7 || whole != 24 || !slices.Equal(r.Keys, []ReservationKey{0xa, 0xb}) {
		t.Fatalf("%+v %d %v", r, whole, err)
	}
	if r, whole, err = decodeKeys(data[:16]); err != nil || whole != 24 || len(r.Keys) != 1 || r.Has(0xb) {
		t.Fatalf("cut: %+v %d %v", r, whole, err)
	}
	for _, bad := range []string{"", "00000001", "00000001 00000009 00", "00000001 fffffff8"} {
		if _, _, err := decodeKeys(unhex(t, bad)); !errors.Is(err, unix.EPROTO) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDecodeReservation(t *testing.T) {
	r, err := decodeReservation(unhex(t, "00000003 00000010 000000000000000a 00000000 00 07 0000"))
	if err != nil || r != (Reservation{3, 0xa, WriteExclusiveAllRegistrants}) || !r.Held() {
		t.Fatalf("%+v %v", r, err)
	}
	if r, err = decodeReservation(unhex(t, "00000003 00000000")); err != nil || r.Held() || r.Generation != 3 {
		t.Fatalf("%+v %v", r, err)
	}
	for _, bad := range []string{"", "00000003 00000010 00", "00000003 00000008 000000000000000a",
		"00000003 00000010 000000000000000a 00000000 00 02 0000"} {
		if _, err := decodeReservation(unhex(t, bad)); !errors.Is(err, unix.EPROTO) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDecodeCapabilities(t *testing.T) {
	c, err := decodeCapabilities(unhex(t, "0008 1d 90 ea01 0000")) // LIO's
	if err != nil || !c.APTPL || !c.AllPorts || c.APTPLActive || !c.Knows(WriteExclusiveAllRegistrants) || !c.Knows(ExclusiveAccessAllRegistrants) || c.Knows(2) {
		t.Fatalf("%+v %v", c, err)
	}
	if s := c.String(); !strings.Contains(s, "kept through a loss of power") || !strings.Contains(s, "Write Exclusive, All Registrants") {
		t.Fatal(s)
	}
	c, err = decodeCapabilities(unhex(t, "0008 00 80 2a00 0000"))
	if err != nil || c.APTPL || c.Knows(WriteExclusiveAllRegistrants) || !strings.Contains(c.String(), "without") {
		t.Fatalf("%+v %v", c, err)
	}
	if _, err = decodeCapabilities(unhex(t, "0008 00")); !errors.Is(err, unix.EPROTO) {
		t.Fatal(err)
	}
}

func TestSenseTellsWhatToDo(t *testing.T) {
	fixed := func(key byte, code uint16) []byte {
		s := make([]byte, 18)
		s[0], s[2], s[12], s[13] = 0x70, key, byte(code>>8), byte(code)
		return s
	}
	for _, c := range []struct {
		status byte
		sense  []byte
		want   error
	}{
		{statusGood, nil, nil},
		{statusConflict, nil, ErrReservationConflict},
		{statusConflict, nil, unix.EBADE},
		{statusBusy, nil, errAgain},
		{statusCheck, fixed(senseUnitAttention, 0x2a03), errAgain},
		{statusCheck, []byte{0x72, senseUnitAttention, 0x2a, 3, 0, 0, 0, 0}, errAgain},
		{statusCheck, fixed(senseIllegalRequest, ascInvalidCommand), ErrNoReservations},
		{statusCheck, fixed(senseIllegalRequest, ascRegistrationsFull), ErrRegistrationsFull},
		{statusCheck, fixed(senseIllegalRequest, ascInvalidFieldInList), unix.EINVAL},
		{statusCheck, nil, unix.EIO},
		{0x40, nil, unix.EIO},
	} {
		if err := statusError(c.status, c.sense); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("status %#x, sense %x: %v, want %v", c.status, c.sense, err, c.want)
		}
	}
}

// A loop device has none: each call says so instead of pretending.
func TestNoReservationsOnALoopDevice(t *testing.T) {
	l := loopdev.Scratch(t, 8<<20, loopdev.Options{})
	r, err := OpenReservations(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Wait()
	defer r.Close()
	ctx := t.Context()
	_, regErr := r.Register(ctx, 0, 1)
	_, keyErr := r.ReadKeys(ctx)
	_, resErr := r.ReadReservation(ctx)
	_, capErr := r.Capabilities(ctx)
	for i, err := range []error{regErr, keyErr, resErr, capErr, r.Reserve(ctx, 1, WriteExclusiveAllRegistrants),
		r.Release(ctx, 1, WriteExclusiveAllRegistrants), r.PreemptAbort(ctx, 1, 2, WriteExclusiveAllRegistrants)} {
		if !errors.Is(err, ErrNoReservations) || !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if got := r.Paths(); !slices.Equal(got, []string{l.Path}) {
		t.Error(got)
	}
}

func TestReservationsRefuseWhatIsNoDevice(t *testing.T) {
	if _, err := OpenReservations("/etc/hostname"); !errors.Is(err, ErrNotBlock) {
		t.Fatal(err)
	}
	if _, err := OpenReservations("/dev/does-not-exist"); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
}

// A command that hangs in the kernel holds neither its caller nor Close, only its own path.
func TestHungPath(t *testing.T) {
	l := loopdev.Scratch(t, 8<<20, loopdev.Options{})
	p, err := openReservationPath(l.Path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.do(ctx, func(context.Context) error { <-release; return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := p.readKeys(ctx); !errors.Is(err, ErrPathBusy) {
		t.Fatal(err)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.file.Stat(); err != nil {
		t.Fatal("closed under a command:", err)
	}
	close(release)
	p.pending.Wait()
	if _, err := p.file.Stat(); err == nil {
		t.Fatal("still open")
	}
}

func FuzzReservationData(f *testing.F) {
	f.Add([]byte{0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 7, 0, 0})
	f.Add([]byte{0, 8, 0x1d, 0x90, 0xea, 1, 0, 0})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, whole, err := decodeKeys(data); err == nil && (8+8*len(r.Keys) > len(data) || len(r.Keys) > registrationsBound || whole < 8+8*len(r.Keys)) {
			t.Fatalf("%d keys, %d bytes of %d", len(r.Keys), whole, len(data))
		}
		if r, err := decodeReservation(data); err == nil && r.Held() && r.Type.kernel() == 0 {
			t.Fatalf("type %d", r.Type)
		}
		if c, err := decodeCapabilities(data); err == nil && c.String() == "" {
			t.Fatal("no words")
		}
		parseSense(data)
		if len(data) < 10+outListBytes {
			return
		}
		if o, err := decodeOut(data[:10], data[10:]); err == nil {
			cdb, list := o.encode()
			if back, err := decodeOut(cdb, list); err != nil || back != o {
				t.Fatalf("%+v came back as %+v: %v", o, back, err)
			}
		}
	})
}
