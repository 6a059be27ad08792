package daemon

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

const initiatorName = "iqn.2026-01.io.lunar:initiator"

// initiator is a raw iSCSI initiator for commands that no tool sends: one at a time, data out as
// immediate data.
type initiator struct {
	t     *testing.T
	conn  net.Conn
	cmdSN uint32
}

// login opens a session with a target; user and secret are not supported.
func login(t *testing.T, portal, name, target string) *initiator {
	t.Helper()
	conn, err := net.Dial("tcp", portal)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	i := &initiator{t: t, conn: conn, cmdSN: 1}
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	h.SetImmediate()
	*pdu.LoginRequest{Header: &h}.ISID() = [6]byte{0x80, 0, 0, 0, 0, 1}
	h.SetCmdSN(i.cmdSN)
	var keys []byte
	for _, p := range []pdu.Pair{{Key: "InitiatorName", Value: name}, {Key: "TargetName", Value: target}, {Key: "SessionType", Value: "Normal"}} {
		keys = pdu.AppendPair(keys, p.Key, p.Value)
	}
	i.send(&h, keys)
	answer, _ := i.receive()
	if s := (pdu.LoginResponse{Header: &answer}).Status(); s != pdu.LoginSuccess {
		t.Fatalf("login of %s to %s: status %04x", name, target, uint16(s))
	}
	return i
}

func (i *initiator) send(h *pdu.Header, data []byte) {
	i.t.Helper()
	h.SetDataLen(len(data))
	packet := append(append(h[:], data...), make([]byte, pdu.Pad(len(data)))...)
	_, err := i.conn.Write(packet)
	must(i.t, err)
}

func (i *initiator) receive() (h pdu.Header, data []byte) {
	i.t.Helper()
	must(i.t, i.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.ReadFull(i.conn, h[:])
	must(i.t, err)
	data = make([]byte, h.DataLen()+pdu.Pad(h.DataLen()))
	_, err = io.ReadFull(i.conn, data)
	must(i.t, err)
	return h, data[:h.DataLen()]
}

// result is how a command ended.
type result struct {
	status scsi.Status
	data   []byte
	sense  uint32 // key, ASC and ASCQ
}

// command runs a CDB on LUN 0; want is how much data it may return.
func (i *initiator) command(cdb []byte, out []byte, want int) (r result) {
	i.t.Helper()
	var h pdu.Header
	h.Reset(pdu.OpSCSICommand, pdu.FlagFinal)
	if want > 0 {
		h.SetFlags(pdu.FlagFinal | pdu.FlagRead)
	} else if len(out) > 0 {
		h.SetFlags(pdu.FlagFinal | pdu.FlagWrite)
	}
	h.SetITT(i.cmdSN)
	h.SetCmdSN(i.cmdSN)
	i.cmdSN++
	v := pdu.SCSICommand{Header: &h}
	v.SetEDTL(uint32(max(want, len(out))))
	copy(v.CDB(), cdb)
	i.send(&h, out)
	for {
		answer, data := i.receive()
		switch answer.Opcode() {
		case pdu.OpDataIn:
			r.data = append(r.data, data...)
			if d := (pdu.DataIn{Header: &answer}); d.HasStatus() {
				r.status = scsi.Status(d.Status())
				return r
			}
		case pdu.OpSCSIResponse:
			r.status = scsi.Status(pdu.SCSIResponse{Header: &answer}.Status())
			if len(data) >= 16 {
				r.sense = uint32(data[4]&0xF)<<16 | uint32(data[14])<<8 | uint32(data[15])
			}
			return r
		default:
			i.t.Fatalf("got %v", answer.Opcode())
		}
	}
}

// ready takes the unit attentions away and returns their senses.
func (i *initiator) ready() (attentions []uint32) {
	i.t.Helper()
	for range 8 {
		r := i.command(make([]byte, 6), nil, 0)
		if r.status == scsi.Good {
			return attentions
		}
		attentions = append(attentions, r.sense)
	}
	i.t.Fatalf("the unit stays unready: %06x", attentions)
	return nil
}

func cdb16(opcode, action byte, at int, length uint32) []byte {
	c := make([]byte, 16)
	c[0], c[1] = opcode, action
	binary.BigEndian.PutUint32(c[at:], length)
	return c
}
