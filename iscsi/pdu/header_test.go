package pdu

import (
	"math/rand/v2"
	"testing"
)

// TestFieldPlaces holds every setter to the bytes that RFC 7143 §11 gives its field.
func TestFieldPlaces(t *testing.T) {
	for _, c := range []struct {
		name     string
		from, to int // the bytes that may change
		set      func(h *Header)
	}{
		{"DataSegmentLength §11.2.1.6", 5, 8, func(h *Header) { h.SetDataLen(0xffffff) }},
		{"TotalAHSLength §11.2.1.5", 4, 5, func(h *Header) { h.SetAHSLen(1020) }},
		{"LUN §11.2.1.7", 8, 16, func(h *Header) { h.SetLUN(1<<64 - 1) }},
		{"ITT §11.2.1.8", 16, 20, func(h *Header) { h.SetITT(NoTag) }},
		{"TTT §11.7.4", 20, 24, func(h *Header) { h.SetTTT(NoTag) }},
		{"CmdSN §11.3.5", 24, 28, func(h *Header) { h.SetCmdSN(NoTag) }},
		{"ExpStatSN §11.3.5", 28, 32, func(h *Header) { h.SetExpStatSN(NoTag) }},
		{"StatSN §11.4.8", 24, 28, func(h *Header) { h.SetStatSN(NoTag) }},
		{"ExpCmdSN MaxCmdSN §11.4.9", 28, 36, func(h *Header) { h.SetWindow(NoTag, NoTag) }},
		{"EDTL §11.3.4", 20, 24, func(h *Header) { SCSICommand{h}.SetEDTL(NoTag) }},
		{"CDB §11.3.5", 32, 48, func(h *Header) {
			copy(SCSICommand{h}.CDB(), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
		}},
		{"Response §11.4.3", 2, 3, func(h *Header) { SCSIResponse{h}.SetResponse(0xff) }},
		{"Status §11.4.2", 3, 4, func(h *Header) { SCSIResponse{h}.SetStatus(0xff) }},
		{"ExpDataSN §11.4.10", 36, 40, func(h *Header) { SCSIResponse{h}.SetExpDataSN(NoTag) }},
		{"Residual §11.4.5", 44, 48, func(h *Header) { SCSIResponse{h}.SetResidual(NoTag) }},
		{"RefTag §11.5.4", 20, 24, func(h *Header) { TaskRequest{h}.SetRefTag(NoTag) }},
		{"RefCmdSN §11.5.5", 32, 36, func(h *Header) { TaskRequest{h}.SetRefCmdSN(NoTag) }},
		{"TMF response §11.6", 2, 3, func(h *Header) { TaskResponse{h}.SetResult(TaskRejected) }},
		{"DataSN §11.7.5", 36, 40, func(h *Header) { DataIn{h}.SetDataSN(NoTag); DataOut{h}.SetDataSN(NoTag) }},
		{"Offset §11.7.6", 40, 44, func(h *Header) { DataIn{h}.SetOffset(NoTag); DataOut{h}.SetOffset(NoTag) }},
		{"R2TSN §11.8.2", 36, 40, func(h *Header) { R2T{h}.SetR2TSN(NoTag) }},
		{"R2T length §11.8.4", 40, 48, func(h *Header) { R2T{h}.SetOffset(NoTag); R2T{h}.SetLength(NoTag) }},
		{"AsyncEvent §11.9.1", 36, 44, func(h *Header) { Async{h}.SetEvent(0xff, 0xffff, 0xffff, 0xffff) }},
		{"Version-min §11.12.4", 3, 4, func(h *Header) { LoginRequest{h}.SetVersionMin(0xff) }},
		{"TSIH §11.12.6", 14, 16, func(h *Header) { LoginRequest{h}.SetTSIH(0xffff); LoginResponse{h}.SetTSIH(0xffff) }},
		{"CID §11.12.7", 20, 22, func(h *Header) { LoginRequest{h}.SetCID(0xffff); LogoutRequest{h}.SetCID(0xffff) }},
		{"Status-Class §11.13.5", 36, 38, func(h *Header) { LoginResponse{h}.SetStatus(0xffff) }},
		{"versions §11.13.2", 2, 4, func(h *Header) { LoginResponse{h}.SetVersions(0xff, 0xff) }},
		{"Logout response §11.15.1", 2, 3, func(h *Header) { LogoutResponse{h}.SetResult(LogoutFailed) }},
		{"Time2Wait §11.15.3", 40, 44, func(h *Header) { LogoutResponse{h}.SetTimes(0xffff, 0xffff) }},
		{"Reject reason §11.17.1", 2, 3, func(h *Header) { Reject{h}.SetReason(0xff) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h Header
			c.set(&h)
			for i, b := range h {
				if b != 0 && (i < c.from || i >= c.to) {
					t.Errorf("byte %d is %#x", i, b)
				}
			}
			if h[c.from] == 0 && h[c.to-1] == 0 {
				t.Error("the field stayed empty")
			}
		})
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		var h Header
		op := Opcode(r.UintN(64))
		h.Reset(op, byte(r.Uint32()))
		n, lun, itt, sn := r.IntN(MaxDataLen+1), r.Uint64(), r.Uint32(), r.Uint32()
		h.SetDataLen(n)
		h.SetLUN(lun)
		h.SetITT(itt)
		h.SetCmdSN(sn)
		h.SetImmediate()
		if h.Opcode() != op || !h.Immediate() || h.DataLen() != n || h.LUN() != lun || h.ITT() != itt || h.CmdSN() != sn {
			t.Fatalf("% x", h[:])
		}
	}
}

func TestLoginFlags(t *testing.T) {
	h := new(Header)
	h.Reset(OpLoginRequest, LoginFlags(true, false, StageOperational, StageFull))
	l := LoginRequest{h}
	if !l.Transit() || l.Continue() || l.CurrentStage() != StageOperational || l.NextStage() != StageFull || h[1] != 0x87 {
		t.Errorf("byte 1 is %#x", h[1])
	}
}

func TestPad(t *testing.T) {
	for n, want := range []int{0, 3, 2, 1, 0, 3} {
		if Pad(n) != want {
			t.Errorf("Pad(%d) = %d, want %d", n, Pad(n), want)
		}
	}
}

func TestOpcodeNames(t *testing.T) {
	if OpR2T.String() != "R2T" || Opcode(0x3e).String() != "opcode 0x3e" {
		t.Error(OpR2T, Opcode(0x3e))
	}
}

// TestSerial holds the comparisons to RFC 1982 at the wrap.
func TestSerial(t *testing.T) {
	for _, c := range []struct {
		a, b uint32
		want bool
	}{
		{0, 1, true}, {1, 0, false}, {5, 5, false}, {0xffffffff, 0, true}, {0, 0xffffffff, false},
		{0, 1<<31 - 1, true}, {0, 1 << 31, false}, {1 << 31, 0, false}, {0xfffffff0, 10, true},
	} {
		if Before(c.a, c.b) != c.want {
			t.Errorf("Before(%#x, %#x) = %v", c.a, c.b, !c.want)
		}
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		sn, first, last uint32
		want            bool
	}{
		{5, 5, 5, true}, {6, 5, 5, false}, {4, 5, 9, false}, {9, 5, 9, true}, {10, 5, 9, false},
		{5, 5, 4, false}, {4, 5, 4, false}, // closed
		{0, 0xfffffffe, 2, true}, {3, 0xfffffffe, 2, false}, {0xfffffffd, 0xfffffffe, 2, false},
		{7, 5, 2, false},
	} {
		if InWindow(c.sn, c.first, c.last) != c.want {
			t.Errorf("InWindow(%#x, %#x, %#x) = %v", c.sn, c.first, c.last, !c.want)
		}
	}
}

func TestLUN(t *testing.T) {
	for _, n := range []uint32{0, 1, 255, 256, 1000, MaxFlatLUN, MaxFlatLUN + 1, 1<<24 - 1} {
		got, ok := DecodeLUN(EncodeLUN(n))
		if !ok || got != n {
			t.Errorf("LUN %d comes back as %d, %v", n, got, ok)
		}
	}
	for _, c := range []struct {
		raw  uint64
		n    uint32
		ok   bool
		what string
	}{
		{0x0005_0000_0000_0000, 5, true, "peripheral"},
		{0x4005_0000_0000_0000, 5, true, "flat space below 256"},
		{0x4100_0000_0000_0000, 256, true, "flat space"},
		{0x0105_0000_0000_0000, 0, false, "another bus"},
		{0x0005_0001_0000_0000, 0, false, "a second level"},
		{0x8005_0000_0000_0000, 0, false, "logical unit addressing"},
		{0xc101_0000_0000_0000, 0, false, "REPORT LUNS well known unit"},
	} {
		if n, ok := DecodeLUN(c.raw); ok != c.ok || ok && n != c.n {
			t.Errorf("%s: %d, %v", c.what, n, ok)
		}
	}
}

// TestDigest holds CRC32C to the examples of RFC 7143 Appendix A.4 (RFC 3720 B.4).
func TestDigest(t *testing.T) {
	up := make([]byte, 32)
	ones := make([]byte, 32)
	for i := range up {
		up[i], ones[i] = byte(i), 0xff
	}
	for _, c := range []struct {
		name string
		data []byte
		wire [4]byte
	}{
		{"zeroes", make([]byte, 32), [4]byte{0xaa, 0x36, 0x91, 0x8a}},
		{"ones", ones, [4]byte{0x43, 0xab, 0xa8, 0x62}},
		{"ascending", up, [4]byte{0x4e, 0x79, 0xdd, 0x46}},
	} {
		var wire [4]byte
		PutDigest(wire[:], DigestUpdate(Digest(c.data[:7]), c.data[7:]))
		if wire != c.wire || GetDigest(wire[:]) != Digest(c.data) {
			t.Errorf("%s: % x, want % x", c.name, wire, c.wire)
		}
	}
}
