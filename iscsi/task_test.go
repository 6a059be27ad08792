package iscsi

import (
	"testing"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// manage sends a task management function, immediate, and returns its answer.
func (c *client) manage(fn pdu.TaskFunction, lun uint64, ref *pdu.Header) pdu.TaskResult {
	c.t.Helper()
	c.askManage(fn, lun, ref)
	a := c.expect(pdu.OpTaskResponse)
	return pdu.TaskResponse{Header: &a.Header}.Result()
}

func (c *client) askManage(fn pdu.TaskFunction, lun uint64, ref *pdu.Header) {
	c.t.Helper()
	h := c.request(pdu.OpTaskRequest, pdu.FlagFinal|byte(fn))
	c.cmdSN--
	h.SetImmediate()
	h.SetLUN(lun)
	h.SetTTT(pdu.NoTag)
	if ref != nil {
		r := pdu.TaskRequest{Header: h}
		r.SetRefTag(ref.ITT())
		r.SetRefCmdSN(ref.CmdSN())
	}
	c.send(h, nil)
}

// silence checks that nothing comes.
func (c *client) silence() {
	c.t.Helper()
	if a, err := c.tryRecv(50 * time.Millisecond); err == nil {
		c.t.Fatalf("got %v", a.Opcode())
	}
}

// heldReads starts n reads that stay in the backend.
func (f *fixture) heldReads(c *client, n int) (all []*pdu.Header) {
	f.t.Helper()
	f.disk.hold()
	for range n {
		h := c.command(read10(0, 1), pdu.FlagRead, 512)
		c.send(h, nil)
		all = append(all, h)
	}
	eventually(f.t, "the reads are in the backend", func() bool { return f.disk.held() >= n })
	return all
}

// §11.5.1 ABORT TASK: the answer waits until the task has left the backend; the task has none.
func TestAbortTask(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	all := f.heldReads(c, 2)
	c.askManage(pdu.AbortTask, 0, all[0])
	c.silence()
	f.disk.release()
	seen := map[pdu.Opcode]uint32{}
	for range 2 {
		a := c.recv()
		seen[a.Opcode()] = a.ITT()
	}
	if seen[pdu.OpDataIn] != all[1].ITT() || seen[pdu.OpTaskResponse] == 0 {
		t.Errorf("answers: %v", seen)
	}
	c.silence()
	c.read(0, 1)
}

// §11.5.1: a task that waits for data; data that still comes for it is dropped.
func TestAbortGatheringTask(t *testing.T) {
	f := newFixture(t)
	c := f.ready("ImmediateData", "No")
	h := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	c.send(h, nil)
	ttt := c.r2t(h.ITT(), 0, 0, 1024)
	if r := c.manage(pdu.AbortTask, 0, h); r != pdu.TaskComplete {
		t.Errorf("result %d", r)
	}
	c.dataOut(h.ITT(), ttt, 0, 0, pattern(1024, 1), true)
	c.silence()
	f.holds(0, make([]byte, 1024))
	if n := f.buffers.inUse(); n > 0 {
		t.Errorf("%d buffers are out", n)
	}
}

// §11.6.1: the answers about tasks that are not there.
func TestAbortAbsentTask(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	gone := c.command(cdb(0), 0, 0)
	c.send(gone, nil)
	c.good()
	if r := c.manage(pdu.AbortTask, 0, gone); r != pdu.TaskNoTask {
		t.Errorf("a task that has ended: %d", r)
	}
	lost := c.command(cdb(0), 0, 0) // never sent, its CmdSN is in the window
	if r := c.manage(pdu.AbortTask, 0, lost); r != pdu.TaskComplete {
		t.Errorf("a task that may yet come: %d", r)
	}
}

// §11.6.1: the CmdSN of a task that was lost and is aborted counts as received; the commands behind it run.
func TestAbortLostTask(t *testing.T) {
	f := newFixture(t)
	c := f.ready("DataDigest", "CRC32C")
	lost := c.command(write10(0, 1), pdu.FlagWrite, 512)
	wire := c.encode(lost, pattern(512, 1))
	wire[len(wire)-1]++
	if _, err := c.conn.Write(wire); err != nil {
		t.Fatal(err)
	}
	c.rejected(pdu.RejectDataDigest)
	later := c.command(cdb(0), 0, 0)
	c.send(later, nil)
	c.silence()
	c.askManage(pdu.AbortTask, 0, lost)
	for range 2 {
		if a := c.recv(); a.Opcode() == pdu.OpSCSIResponse && a.ITT() == later.ITT() && a.ExpCmdSN() == c.cmdSN {
			return
		}
	}
	t.Error("the command behind the lost one did not run")
}

func TestTaskFunctionsRefused(t *testing.T) {
	f := newFixture(t)
	c := f.ready()
	for _, x := range []struct {
		fn   pdu.TaskFunction
		lun  uint64
		want pdu.TaskResult
	}{
		{pdu.ClearACA, 0, pdu.TaskNotSupported}, {pdu.TaskReassign, 0, pdu.TaskNoReassign}, {0x44, 0, pdu.TaskRejected},
		{pdu.LUNReset, pdu.EncodeLUN(9), pdu.TaskNoLUN}, {pdu.AbortTaskSet, pdu.EncodeLUN(9), pdu.TaskNoLUN},
		{pdu.ClearTaskSet, pdu.EncodeLUN(9), pdu.TaskNoLUN},
	} {
		if r := c.manage(x.fn, x.lun, nil); r != x.want {
			t.Errorf("function %d: %d, want %d", x.fn, r, x.want)
		}
	}
}

// §11.5.1 ABORT TASK SET: the issuer's tasks end, in the backend or waiting for data; another
// session's do not.
func TestAbortTaskSet(t *testing.T) {
	f := newFixture(t)
	a, b := f.ready("ImmediateData", "No"), f.another("ImmediateData", "No")
	f.heldReads(a, 2)
	w := a.command(write10(0, 2), pdu.FlagWrite, 1024)
	a.send(w, nil)
	a.r2t(w.ITT(), 0, 0, 1024)
	other := b.command(read10(0, 1), pdu.FlagRead, 512)
	b.send(other, nil)
	eventually(t, "all reads held", func() bool { return f.disk.held() == 3 })
	a.askManage(pdu.AbortTaskSet, 0, nil)
	a.silence()
	f.disk.release()
	r := a.expect(pdu.OpTaskResponse)
	if (pdu.TaskResponse{Header: &r.Header}).Result() != pdu.TaskComplete {
		t.Error("not complete")
	}
	a.silence()
	b.collect(other.ITT(), 512)
	eventually(t, "the write's buffer is back", func() bool { return f.buffers.inUse() == 0 })
}

// another logs in as a second initiator.
func (f *fixture) another(pairs ...string) *client {
	f.t.Helper()
	c := f.dial()
	c.name += "2"
	c.isid[5]++
	c.login(pairs...)
	c.clearAttention()
	return c
}

// §11.5.1, SAM-5 §5.6: what ends the tasks of all sessions; the others learn by a unit attention.
func TestResets(t *testing.T) {
	for _, x := range []struct {
		name string
		fn   pdu.TaskFunction
	}{{"CLEAR TASK SET", pdu.ClearTaskSet}, {"LUN RESET", pdu.LUNReset}, {"TARGET WARM RESET", pdu.TargetWarmReset}} {
		t.Run(x.name, func(t *testing.T) {
			f := newFixture(t)
			a, b := f.ready(), f.another("ImmediateData", "No")
			f.heldReads(b, 2)
			w := b.command(write10(0, 2), pdu.FlagWrite, 1024)
			b.send(w, nil)
			b.r2t(w.ITT(), 0, 0, 1024)
			a.askManage(x.fn, 0, nil)
			a.silence()
			f.disk.release()
			r := a.expect(pdu.OpTaskResponse)
			if (pdu.TaskResponse{Header: &r.Header}).Result() != pdu.TaskComplete {
				t.Error("not complete")
			}
			b.silence()
			eventually(t, "the write's buffer is back", func() bool { return f.buffers.inUse() == 0 })
			b.send(b.command(cdb(0), 0, 0), nil)
			got := b.expect(pdu.OpSCSIResponse).senseCode()
			if got[0] != 6 || got[1] != 0x29 && got[1] != 0x2f {
				t.Errorf("unit attention %x", got)
			}
			b.read(0, 1)
		})
	}
}

// §11.5.1 TARGET COLD RESET: every connection to the target ends after the answer.
func TestColdReset(t *testing.T) {
	f := newFixture(t)
	a, b := f.ready(), f.another()
	if r := a.manage(pdu.TargetColdReset, 0, nil); r != pdu.TaskComplete {
		t.Errorf("result %d", r)
	}
	a.expectClosed()
	b.expectClosed()
}

// resetDuringData resets the unit while b's Data-Out of n bytes is half received; rest is what is missing.
func (f *fixture) resetDuringData(b *client, n int) (rest []byte) {
	f.t.Helper()
	a := f.ready()
	h := b.command(write10(0, n/512), pdu.FlagWrite, n)
	b.send(h, nil)
	ttt := b.r2t(h.ITT(), 0, 0, n)
	d := new(pdu.Header)
	d.Reset(pdu.OpDataOut, pdu.FlagFinal)
	d.SetITT(h.ITT())
	d.SetTTT(ttt)
	wire := b.encode(d, pattern(n, 1))
	if _, err := b.conn.Write(wire[:1000]); err != nil {
		f.t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if r := a.manage(pdu.LUNReset, 0, nil); r != pdu.TaskComplete {
		f.t.Errorf("result %d", r)
	}
	return wire[1000:]
}

// A reset while another session's Data-Out is half received must leave the buffer alone until the
// rest is in.
func TestResetDuringData(t *testing.T) {
	f := newFixture(t)
	const n = 128 << 10
	b := f.another("ImmediateData", "No")
	if _, err := b.conn.Write(f.resetDuringData(b, n)); err != nil {
		t.Fatal(err)
	}
	b.clearAttention()
	f.holds(0, make([]byte, n))
	eventually(t, "the buffer is back", func() bool { return f.buffers.inUse() == 0 })
}

// §4.2.2.1: whose last command another initiator clears in silence hears that its window is open again.
func TestClearedCommandsReopenTheWindow(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.QueueDepth = 1 })
	a, b := f.ready(), f.another("ImmediateData", "No")
	w := b.command(write10(0, 2), pdu.FlagWrite, 1024)
	b.send(w, nil)
	b.r2t(w.ITT(), 0, 0, 1024)
	if r := a.manage(pdu.ClearTaskSet, 0, nil); r != pdu.TaskComplete {
		t.Errorf("result %d", r)
	}
	if n := b.expect(pdu.OpNopIn); n.ITT() != pdu.NoTag || n.TTT() != pdu.NoTag || n.MaxCmdSN() != b.cmdSN {
		t.Errorf("MaxCmdSN %d, want %d", n.MaxCmdSN(), b.cmdSN)
	}
}

// The connection is lost instead, and the buffer comes back.
func TestResetDuringDataThatStops(t *testing.T) {
	f := newFixture(t)
	b := f.another("ImmediateData", "No")
	f.resetDuringData(b, 128<<10)
	b.conn.Close()
	eventually(t, "the buffer is back", func() bool { return f.server.Connections() == 1 && f.buffers.inUse() == 0 })
}

// setTAS sets the control mode page's TAS bit.
func (c *client) setTAS() {
	c.t.Helper()
	page := []byte{0, 0, 0, 0, 0x0a, 10, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0}
	h := c.command([]byte{0x1a, 0x08, 0x0a, 0, 16, 0}, pdu.FlagRead, 16)
	c.send(h, nil)
	copy(page[4:], c.collect(h.ITT(), 16)[4:])
	page[4] &= 0x3f
	page[9] |= 0x40
	c.send(c.command([]byte{0x15, 0x10, 0, 0, 16, 0}, pdu.FlagWrite, 16), page)
	if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.Good {
		c.t.Fatalf("MODE SELECT: %v %x", a.scsiStatus(), a.senseCode())
	}
}

// SPC-4 §7.5.8 TAS: another initiator's command that still gathers its data is told TASK ABORTED, or
// ends in silence and its initiator hears of it by a unit attention.
func TestOthersLearnOfAbortedGathering(t *testing.T) {
	for _, x := range []struct {
		name string
		fn   pdu.TaskFunction
		tas  bool
	}{
		{"CLEAR TASK SET", pdu.ClearTaskSet, false},
		{"CLEAR TASK SET with TAS", pdu.ClearTaskSet, true},
		{"LUN RESET with TAS", pdu.LUNReset, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := newFixture(t)
			a := f.ready()
			if x.tas {
				a.setTAS()
			}
			b := f.another("ImmediateData", "No")
			w := b.command(write10(0, 2), pdu.FlagWrite, 1024)
			b.send(w, nil)
			ttt := b.r2t(w.ITT(), 0, 0, 1024)
			if r := a.manage(x.fn, 0, nil); r != pdu.TaskComplete {
				t.Errorf("result %d", r)
			}
			if x.tas {
				if r := b.expect(pdu.OpSCSIResponse); r.scsiStatus() != scsi.TaskAborted || r.ITT() != w.ITT() {
					t.Errorf("status %v", r.scsiStatus())
				}
			}
			if _, err := b.conn.Write(dataOutPDU(w.ITT(), ttt, 0, 0, pattern(1024, 1))); err != nil {
				t.Fatal(err)
			}
			b.send(b.command(cdb(0), 0, 0), nil)
			r := b.expect(pdu.OpSCSIResponse)
			if x.fn == pdu.LUNReset {
				b.clearAttention()
			} else if told := r.scsiStatus() == scsi.CheckCondition && r.senseCode()[1] == 0x2f; told == x.tas {
				t.Errorf("status %v", r.scsiStatus())
			}
			f.holds(0, make([]byte, 1024))
			eventually(t, "the buffer is back", func() bool { return f.buffers.inUse() == 0 })
		})
	}
}
