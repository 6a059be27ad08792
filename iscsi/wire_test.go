package iscsi

import (
	"bytes"
	"testing"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

func TestReadWrite(t *testing.T) {
	f := newFixture(t)
	c := f.ready("MaxRecvDataSegmentLength", "8192")
	want := pattern(64*512, 1)
	h := c.command(write10(16, 64), pdu.FlagWrite, len(want))
	c.send(h, want)
	if a := c.expect(pdu.OpSCSIResponse); a.scsiStatus() != scsi.Good {
		t.Fatalf("status %v sense %x", a.scsiStatus(), a.senseCode())
	}
	if !bytes.Equal(f.disk.peek(16*512, len(want)), want) {
		t.Fatal("the disk holds something else")
	}
	if got := c.read(16, 64); !bytes.Equal(got, want) {
		t.Fatal("read back something else")
	}
}
