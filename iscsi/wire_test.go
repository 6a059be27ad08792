package iscsi

import (
	"bytes"
	"testing"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// The tests below talk to the server over a socket, one clause of RFC 7143 each; the clause is
// named at the test.

// good checks that a write was taken.
func (c *client) good() *answer {
	c.t.Helper()
	a := c.expect(pdu.OpSCSIResponse)
	if a.scsiStatus() != scsi.Good {
		c.t.Fatalf("status %v, sense %x", a.scsiStatus(), a.senseCode())
	}
	return a
}

// bad checks for CHECK CONDITION with one sense code.
func (c *client) bad(key, asc, ascq byte) *answer {
	c.t.Helper()
	a := c.expect(pdu.OpSCSIResponse)
	if want := [3]byte{key, asc, ascq}; a.scsiStatus() != scsi.CheckCondition || a.senseCode() != want {
		c.t.Fatalf("status %v, sense %x, want %x", a.scsiStatus(), a.senseCode(), want)
	}
	return a
}

func (c *client) rejected(why pdu.RejectReason) {
	c.t.Helper()
	a := c.expect(pdu.OpReject)
	if got := (pdu.Reject{Header: &a.Header}).Reason(); got != why || len(a.data) != pdu.HeaderLen {
		c.t.Fatalf("reject reason %#x with %d bytes, want %#x", got, len(a.data), why)
	}
}

// dataOut sends a Data-Out.
func (c *client) dataOut(itt, ttt, sn uint32, offset int, data []byte, final bool) {
	c.t.Helper()
	h := new(pdu.Header)
	h.Reset(pdu.OpDataOut, 0)
	if final {
		h.SetFlags(pdu.FlagFinal)
	}
	h.SetITT(itt)
	h.SetTTT(ttt)
	d := pdu.DataOut{Header: h}
	d.SetDataSN(sn)
	d.SetOffset(uint32(offset))
	c.send(h, data)
}

func (c *client) r2t(itt uint32, sn uint32, offset, length int) uint32 {
	c.t.Helper()
	a := c.expect(pdu.OpR2T)
	r := pdu.R2T{Header: &a.Header}
	if a.ITT() != itt || r.R2TSN() != sn || int(r.Offset()) != offset || int(r.Length()) != length {
		c.t.Fatalf("R2T tag %d number %d offset %d length %d, want %d %d %d %d",
			a.ITT(), r.R2TSN(), r.Offset(), r.Length(), itt, sn, offset, length)
	}
	return a.TTT()
}

func (f *fixture) holds(lba int, want []byte) {
	f.t.Helper()
	if !bytes.Equal(f.disk.peek(lba*512, len(want)), want) {
		f.t.Fatalf("the disk holds something else at block %d", lba)
	}
}

// §13.11: immediate data.
func TestImmediateData(t *testing.T) {
	f := newFixture(t)
	c := f.ready("MaxRecvDataSegmentLength", "8192")
	want := pattern(64*512, 1)
	c.send(c.command(write10(16, 64), pdu.FlagWrite, len(want)), want)
	c.good()
	f.holds(16, want)
	if got := c.read(16, 64); !bytes.Equal(got, want) {
		t.Fatal("read back something else")
	}
}

// §13.10: InitialR2T=No lets unsolicited Data-Out follow, up to FirstBurstLength.
func TestUnsolicitedData(t *testing.T) {
	f := newFixture(t)
	c := f.ready("InitialR2T", "No", "FirstBurstLength", "8192")
	want := pattern(32*512, 2)
	h := c.command(write10(5, 32), pdu.FlagWrite, len(want))
	h.SetFlags(h.Flags() &^ pdu.FlagFinal)
	c.send(h, want[:2048])
	c.dataOut(h.ITT(), pdu.NoTag, 0, 2048, want[2048:4096], false)
	c.dataOut(h.ITT(), pdu.NoTag, 1, 4096, want[4096:8192], true)
	ttt := c.r2t(h.ITT(), 0, 8192, len(want)-8192)
	c.dataOut(h.ITT(), ttt, 0, 8192, want[8192:], true)
	c.good()
	f.holds(5, want)
}

// §11.8, §13.17: several R2Ts at a time, each of MaxBurstLength, each with its own DataSN from 0.
func TestSeveralR2T(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No", "MaxOutstandingR2T", "3", "MaxBurstLength", "4096")
	want := pattern(40*512, 3)
	h := c.command(write10(100, 40), pdu.FlagWrite, len(want))
	c.send(h, nil)
	tags := make([]uint32, 5)
	for i := range 3 {
		tags[i] = c.r2t(h.ITT(), uint32(i), i*4096, 4096)
	}
	for i := range 5 {
		at := want[i*4096 : i*4096+4096]
		c.dataOut(h.ITT(), tags[i], 0, i*4096, at[:1000], false)
		c.dataOut(h.ITT(), tags[i], 1, i*4096+1000, at[1000:], true)
		if i+3 < 5 {
			tags[i+3] = c.r2t(h.ITT(), uint32(i+3), (i+3)*4096, 4096)
		}
	}
	c.good()
	f.holds(100, want)
}

// §13.11: data in the command PDU although ImmediateData=No: UNEXPECTED UNSOLICITED DATA, §11.4.7.2.
func TestImmediateDataRefused(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No")
	c.send(c.command(write10(0, 1), pdu.FlagWrite, 512), pattern(512, 4))
	c.bad(0xb, 0x0c, 0x0c)
	f.holds(0, make([]byte, 512))
}

// §13.10: unsolicited Data-Out although InitialR2T=Yes.
func TestUnsolicitedDataRefused(t *testing.T) {
	f := newFixture(t)
	c := f.ready("InitialR2T", "Yes")
	h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	h.SetFlags(h.Flags() &^ pdu.FlagFinal)
	c.send(h, nil)
	c.dataOut(h.ITT(), pdu.NoTag, 0, 0, pattern(1024, 4), true)
	c.bad(0xb, 0x0c, 0x0c)
	f.holds(0, make([]byte, 1024))
}

// §13.14: more unsolicited data than FirstBurstLength.
func TestFirstBurstExceeded(t *testing.T) {
	f := newFixture(t)
	c := f.ready("FirstBurstLength", "512")
	c.send(c.command(write10(0, 2), pdu.FlagWrite, 1024), pattern(1024, 4))
	c.bad(0xb, 0x0c, 0x0d)
	f.holds(0, make([]byte, 1024))
}

// §11.4.5: residuals of reads, EDTL against CDB both ways.
func TestReadResiduals(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	for _, x := range []struct {
		edtl, n int
		flag    byte
		count   uint32
	}{
		{512, 512, 0, 0}, {2048, 512, pdu.FlagUnderflow, 1536}, {100, 100, pdu.FlagOverflow, 412},
	} {
		h := c.command(read10(0, 1), pdu.FlagRead, x.edtl)
		c.send(h, nil)
		a := c.expect(pdu.OpDataIn)
		d := pdu.DataIn{Header: &a.Header}
		if len(a.data) != x.n || a.Flags()&6 != x.flag || d.Residual() != x.count || !d.HasStatus() {
			t.Errorf("EDTL %d: %d bytes, flags %#x, residual %d", x.edtl, len(a.data), a.Flags(), d.Residual())
		}
	}
}

// §11.4.5: residuals of writes; nothing beyond the CDB's range nor beyond EDTL is written.
func TestWriteResiduals(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	h := c.command(write10(10, 1), pdu.FlagWrite, 1024)
	c.send(h, pattern(1024, 5))
	a := c.good()
	if a.Flags()&6 != pdu.FlagUnderflow || (pdu.SCSIResponse{Header: &a.Header}).Residual() != 512 {
		t.Errorf("flags %#x residual %d", a.Flags(), pdu.SCSIResponse{Header: &a.Header}.Residual())
	}
	f.holds(10, pattern(1024, 5)[:512])
	f.holds(11, make([]byte, 512))
	h = c.command(write10(20, 2), pdu.FlagWrite, 512)
	c.send(h, pattern(512, 6))
	a = c.expect(pdu.OpSCSIResponse)
	if a.Flags()&6 != pdu.FlagOverflow || (pdu.SCSIResponse{Header: &a.Header}).Residual() != 512 {
		t.Errorf("flags %#x residual %d", a.Flags(), pdu.SCSIResponse{Header: &a.Header}.Residual())
	}
	f.holds(21, make([]byte, 512))
}

// §11.7.5, §7.9: a hole in DataSN ends the command with PROTOCOL SERVICE CRC ERROR at its F bit.
func TestDataSNHole(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No")
	h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	c.send(h, nil)
	ttt := c.r2t(h.ITT(), 0, 0, 1024)
	c.dataOut(h.ITT(), ttt, 0, 0, pattern(512, 1), false)
	c.dataOut(h.ITT(), ttt, 2, 512, pattern(512, 1), true)
	c.bad(0xb, 0x47, 0x05)
	f.holds(0, make([]byte, 1024))
}

// §11.7.6, §11.8.4: Data-Out that leaves what the R2T asked for never touches other memory.
func TestDataOutBounds(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No")
	for _, x := range []struct {
		name      string
		offset, n int
	}{
		{"too long", 0, 2048}, {"offset beyond", 4096, 512}, {"offset wraps", 0xfffffe00, 512},
		{"offset skips", 512, 512}, {"final too early", 0, 512}, {"far too long", 0, 200 << 10},
	} {
		h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
		c.send(h, nil)
		ttt := c.r2t(h.ITT(), 0, 0, 1024)
		c.dataOut(h.ITT(), ttt, 0, x.offset, pattern(x.n, 9), true)
		c.bad(0xb, 0x0c, 0x0d)
		if f.holds(0, make([]byte, 4096)); t.Failed() {
			t.Fatal(x.name)
		}
	}
}

// §11.8.4: a Data-Out without the F bit that runs over its burst, into the next one's place.
func TestBurstOverrun(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No", "MaxOutstandingR2T", "2", "MaxBurstLength", "512")
	h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	c.send(h, nil)
	first, second := c.r2t(h.ITT(), 0, 0, 512), c.r2t(h.ITT(), 1, 512, 512)
	c.dataOut(h.ITT(), first, 0, 0, pattern(1024, 1), false)
	c.dataOut(h.ITT(), first, 1, 1024, nil, true)
	c.dataOut(h.ITT(), second, 0, 512, pattern(512, 1), true)
	c.bad(0xb, 0x0c, 0x0d)
	f.holds(0, make([]byte, 1024))
}

// §11.7.4: a target transfer tag that is not outstanding.
func TestDataOutUnknownTag(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No")
	h := c.command(write10(0, 1), pdu.FlagWrite, 512)
	c.send(h, nil)
	ttt := c.r2t(h.ITT(), 0, 0, 512)
	c.dataOut(h.ITT(), ttt+1, 0, 0, pattern(512, 1), true)
	c.rejected(pdu.RejectField)
	c.dataOut(h.ITT()+50, ttt, 0, 0, pattern(512, 1), true) // no such task: dropped
	c.dataOut(h.ITT(), ttt, 0, 0, pattern(512, 2), true)
	c.good()
	f.holds(0, pattern(512, 2))
}

// §13.12, §13.13: Data-In is cut by the initiator's MaxRecvDataSegmentLength, with the F bit at
// each MaxBurstLength.
func TestDataInSegments(t *testing.T) {
	f := newFixture(t)
	c := f.ready("MaxRecvDataSegmentLength", "1024", "MaxBurstLength", "2560")
	copy(f.disk.data, pattern(10*512, 7))
	c.send(c.command(read10(0, 10), pdu.FlagRead, 5120), nil)
	for i, x := range []struct {
		n     int
		final bool
	}{{1024, false}, {1024, false}, {512, true}, {1024, false}, {1024, false}, {512, true}} {
		a := c.expect(pdu.OpDataIn)
		if len(a.data) != x.n || a.Final() != x.final || (pdu.DataIn{Header: &a.Header}).HasStatus() != (i == 5) {
			t.Fatalf("Data-In %d: %d bytes, flags %#x", i, len(a.data), a.Flags())
		}
	}
}

// §11.2.1.6: a data segment beyond the declared MaxRecvDataSegmentLength.
func TestSegmentTooLong(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxRecvData = 4096 })
	c := f.ready()
	c.send(c.command(write10(0, 16), pdu.FlagWrite, 8192), pattern(8192, 1))
	c.rejected(pdu.RejectProtocol)
	c.expectClosed()
}

// §11.18: a NOP-Out that is not immediate takes a CmdSN; the data comes back.
func TestNopOut(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	for _, immediate := range []bool{false, true} {
		h := c.request(pdu.OpNopOut, pdu.FlagFinal)
		h.SetTTT(pdu.NoTag)
		if immediate {
			h.SetImmediate()
			c.cmdSN--
		}
		c.send(h, []byte("are you there"))
		a := c.expect(pdu.OpNopIn)
		if a.ITT() != h.ITT() || a.TTT() != pdu.NoTag || string(a.data) != "are you there" || a.ExpCmdSN() != c.cmdSN {
			t.Errorf("immediate %v: %q, ExpCmdSN %d, want %d", immediate, a.data, a.ExpCmdSN(), c.cmdSN)
		}
	}
	c.read(0, 1)
}

// §4.2.2.2: every response takes the next StatSN.
func TestStatSN(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	var last uint32
	for i := range 10 {
		var h *pdu.Header
		if i%2 == 0 {
			h = c.command(cdb(0), 0, 0)
		} else {
			h = c.request(pdu.OpNopOut, pdu.FlagFinal)
		}
		c.send(h, nil)
		a := c.recv()
		if i > 0 && a.StatSN() != last+1 {
			t.Fatalf("StatSN %d after %d", a.StatSN(), last)
		}
		last = a.StatSN()
	}
}

// §4.2.2.1: commands run in the order of CmdSN; what lies outside the window or came before is
// ignored.
func TestCommandOrder(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.QueueDepth = 8 })
	c := f.ready()
	var all []*pdu.Header
	for range 4 {
		all = append(all, c.command(cdb(0), 0, 0))
	}
	far := c.command(cdb(0), 0, 0)
	far.SetCmdSN(c.cmdSN + 1000)
	c.cmdSN--
	c.send(far, nil)
	old := *all[0]
	old.SetCmdSN(c.cmdSN - 50)
	old.SetITT(9999)
	c.send(&old, nil)
	for _, i := range []int{3, 1, 2} {
		c.send(all[i], nil)
	}
	c.send(all[1], nil) // again: ignored, its tag is in use
	c.rejected(pdu.RejectTaskInUse)
	c.send(all[0], nil)
	for i := range 4 {
		if a := c.good(); a.ITT() != all[i].ITT() {
			t.Fatalf("answer %d is to tag %d, want %d", i, a.ITT(), all[i].ITT())
		}
	}
	c.read(0, 1)
}

// §4.2.2.1: MaxCmdSN does not move while commands hold all places.
func TestCommandWindow(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.QueueDepth = 4 })
	c := f.ready()
	f.disk.hold()
	for range 4 {
		c.send(c.command(read10(0, 1), pdu.FlagRead, 512), nil)
	}
	eventually(t, "four reads held", func() bool { return f.disk.held() == 4 })
	h := c.request(pdu.OpNopOut, pdu.FlagFinal)
	h.SetImmediate()
	c.cmdSN--
	c.send(h, nil)
	if a := c.expect(pdu.OpNopIn); a.MaxCmdSN() != c.cmdSN-1 || a.ExpCmdSN() != c.cmdSN {
		t.Errorf("window %d to %d, CmdSN %d", a.ExpCmdSN(), a.MaxCmdSN(), c.cmdSN)
	}
	f.disk.release()
	var last *answer
	for range 4 {
		last = c.expect(pdu.OpDataIn)
	}
	if last.MaxCmdSN() != c.cmdSN+3 {
		t.Errorf("MaxCmdSN %d, want %d", last.MaxCmdSN(), c.cmdSN+3)
	}
}

// §11.17.1: what the target does not do, it rejects.
func TestRejects(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	for _, x := range []struct {
		op  pdu.Opcode
		why pdu.RejectReason
	}{
		{pdu.OpSNACK, pdu.RejectSNACK}, {pdu.Opcode(0x1c), pdu.RejectNotSupported}, {pdu.OpSCSIResponse, pdu.RejectNotSupported},
		{pdu.OpLoginRequest, pdu.RejectNotSupported},
	} {
		h := c.request(x.op, pdu.FlagFinal)
		c.cmdSN--
		c.send(h, pattern(20, 1))
		c.rejected(x.why)
	}
	h := c.command(cdb(0), 0, 0)
	h.SetITT(pdu.NoTag)
	c.cmdSN--
	c.send(h, nil)
	c.rejected(pdu.RejectField)
	c.read(0, 1)
}

// §11.2.2: an additional header segment that leaves the header is rejected; a sound one is not.
func TestAHS(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	h := c.command(cdb(0), 0, 0)
	h.SetAHSLen(8)
	b := append(c.encode(h, nil), 0, 5, 2, 0, 0, 0, 2, 0)
	if _, err := c.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	c.good()
	h = c.command(cdb(0), 0, 0)
	c.cmdSN--
	h.SetAHSLen(8)
	if _, err := c.conn.Write(append(c.encode(h, nil), 0xff, 5, 2, 0, 0, 0, 2, 0)); err != nil {
		t.Fatal(err)
	}
	c.rejected(pdu.RejectProtocol)
	c.read(0, 1)
}

// §13.1: digests of header and data, both ways.
func TestDigests(t *testing.T) {
	f := newFixture(t)
	c := f.ready("HeaderDigest", "CRC32C", "DataDigest", "CRC32C", "MaxRecvDataSegmentLength", "1000")
	if !c.headerDigest || !c.dataDigest {
		t.Fatal("not negotiated")
	}
	want := pattern(100*512, 8)
	h := c.command(write10(0, 100), pdu.FlagWrite, len(want))
	c.send(h, want[:1023])
	ttt := c.r2t(h.ITT(), 0, 1023, len(want)-1023)
	c.dataOut(h.ITT(), ttt, 0, 1023, want[1023:2000], false)
	c.dataOut(h.ITT(), ttt, 1, 2000, want[2000:], true)
	c.good()
	if got := c.read(0, 100); !bytes.Equal(got, want) {
		t.Fatal("read back something else")
	}
}

// §7.7: after a header digest error the lengths cannot be trusted: the connection ends.
func TestHeaderDigestError(t *testing.T) {
	f := newFixture(t)
	c := f.ready("HeaderDigest", "CRC32C")
	b := c.encode(c.command(cdb(0), 0, 0), nil)
	b[49] ^= 1
	if _, err := c.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	c.expectClosed()
}

// §7.8: after a data digest error the PDU is rejected; a Data-Out's command ends with PROTOCOL
// SERVICE CRC ERROR, any other PDU may be sent again.
func TestDataDigestError(t *testing.T) {
	f := newFixture(t)
	c := f.ready("DataDigest", "CRC32C")
	h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	b := c.encode(h, pattern(512, 1))
	b[60] ^= 1
	if _, err := c.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	c.rejected(pdu.RejectDataDigest)
	c.send(h, pattern(512, 1))
	ttt := c.r2t(h.ITT(), 0, 512, 512)
	d := new(pdu.Header)
	d.Reset(pdu.OpDataOut, pdu.FlagFinal)
	d.SetITT(h.ITT())
	d.SetTTT(ttt)
	pdu.DataOut{Header: d}.SetOffset(512)
	b = c.encode(d, pattern(512, 1))
	b[60] ^= 1
	if _, err := c.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	c.rejected(pdu.RejectDataDigest)
	c.bad(0xb, 0x47, 0x05)
	f.holds(0, make([]byte, 1024))
}

// SAM-5 §4.7: LUNs beyond 255, in flat space addressing.
func TestHighLUN(t *testing.T) {
	f := newFixture(t)
	lu, err := scsi.NewLogicalUnit(f.disk, scsi.UnitOptions{NAA: []byte("\x61lunar-test-0002"), Serial: "2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.target.Map(1000, lu); err != nil {
		t.Fatal(err)
	}
	c := f.ready()
	h := c.command(cdb(0), 0, 0)
	h.SetLUN(pdu.EncodeLUN(1000))
	c.send(h, nil)
	c.bad(6, 0x29, 0x00)
	h = c.command(read10(0, 1), pdu.FlagRead, 512)
	h.SetLUN(pdu.EncodeLUN(1000))
	c.send(h, nil)
	c.collect(h.ITT(), 512)
	h = c.command(read10(0, 1), pdu.FlagRead, 512)
	h.SetLUN(pdu.EncodeLUN(1001))
	c.send(h, nil)
	c.bad(5, 0x25, 0x00)
}

// SPC-4: LUNs that come and go under I/O are told by REPORTED LUNS DATA HAS CHANGED.
func TestLUNsChange(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	lu, err := scsi.NewLogicalUnit(f.disk, scsi.UnitOptions{NAA: []byte("\x61lunar-test-0002"), Serial: "2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func() error{
		func() error { return f.target.Map(7, lu) }, func() error { return f.target.Unmap(7) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		c.send(c.command(cdb(0), 0, 0), nil)
		c.bad(6, 0x3f, 0x0e)
		c.read(0, 1)
	}
}
