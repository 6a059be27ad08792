package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// maxImmediate is how much data a command can carry here: what every target has to take in one PDU.
const maxImmediate = pdu.DefaultMaxData

// ErrPath says that the path was lost: the command may have taken effect or not.
var ErrPath = errors.New("path lost")

// Answer is how a command ended.
type Answer struct {
	Status scsi.Status
	Sense  uint32 // key, ASC and ASCQ
	Data   []byte
}

const keyUnitAttention = 0x6

// Key is the sense key.
func (a *Answer) Key() byte { return byte(a.Sense >> 16) }

// Err is nil for GOOD.
func (a *Answer) Err() error {
	if a.Status == scsi.Good {
		return nil
	}
	return fmt.Errorf("status %#02x, sense %06x", uint8(a.Status), a.Sense)
}

// Session is an initiator's session with LUN 0 of a target; one goroutine uses it.
type Session struct {
	conn  net.Conn
	cmdSN uint32
	stat  uint32 // ExpStatSN
	limit time.Duration
}

// Login opens a session. The initiator's name and isid make the I_T nexus; limit bounds each command.
func Login(ctx context.Context, portal, target, name string, isid uint32, limit time.Duration) (*Session, error) {
	dialer := net.Dialer{Timeout: min(limit, time.Second)}
	conn, err := dialer.DialContext(ctx, "tcp", portal)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPath, err)
	}
	s := &Session{conn: conn, cmdSN: 1, limit: limit}
	if err := s.login(target, name, isid); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *Session) login(target, name string, isid uint32) error {
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	h.SetImmediate()
	id := pdu.LoginRequest{Header: &h}.ISID()
	id[0] = 0x80
	binary.BigEndian.PutUint32(id[2:], isid)
	h.SetCmdSN(s.cmdSN)
	var keys []byte
	for _, p := range []pdu.Pair{{Key: "InitiatorName", Value: name}, {Key: "TargetName", Value: target}, {Key: "SessionType", Value: "Normal"}} {
		keys = pdu.AppendPair(keys, p.Key, p.Value)
	}
	if err := s.send(&h, keys); err != nil {
		return err
	}
	answer, _, err := s.receive()
	if err != nil {
		return err
	}
	if status := (pdu.LoginResponse{Header: &answer}).Status(); status != pdu.LoginSuccess {
		return fmt.Errorf("%w: login to %s: status %04x", ErrPath, target, uint16(status))
	}
	return nil
}

// Close ends the connection, and with it the session.
func (s *Session) Close() { _ = s.conn.Close() }

func (s *Session) send(h *pdu.Header, data []byte) error {
	h.SetDataLen(len(data))
	h.SetExpStatSN(s.stat)
	packet := append(append(h[:], data...), make([]byte, pdu.Pad(len(data)))...)
	if err := s.conn.SetDeadline(time.Now().Add(s.limit)); err != nil {
		return fmt.Errorf("%w: %w", ErrPath, err)
	}
	if _, err := s.conn.Write(packet); err != nil {
		return fmt.Errorf("%w: %w", ErrPath, err)
	}
	return nil
}

func (s *Session) receive() (h pdu.Header, data []byte, err error) {
	if _, err = io.ReadFull(s.conn, h[:]); err == nil {
		data = make([]byte, h.DataLen()+pdu.Pad(h.DataLen()))
		_, err = io.ReadFull(s.conn, data)
	}
	if err != nil {
		return h, nil, fmt.Errorf("%w: %w", ErrPath, err)
	}
	if h.Opcode() != pdu.OpDataIn || (pdu.DataIn{Header: &h}).HasStatus() {
		s.stat = h.StatSN() + 1
	}
	return h, data[:h.DataLen()], nil
}

// Do runs a CDB with at most 8 KiB of data out; want is how much data it may return. An error wraps ErrPath,
// and the session is of no use after it.
func (s *Session) Do(cdb, out []byte, want int) (a Answer, err error) {
	if len(out) > maxImmediate {
		return a, fmt.Errorf("%d bytes of data out, %d at most", len(out), maxImmediate)
	}
	var h pdu.Header
	h.Reset(pdu.OpSCSICommand, pdu.FlagFinal)
	switch {
	case want > 0:
		h.SetFlags(pdu.FlagFinal | pdu.FlagRead)
	case len(out) > 0:
		h.SetFlags(pdu.FlagFinal | pdu.FlagWrite)
	}
	h.SetITT(s.cmdSN)
	h.SetCmdSN(s.cmdSN)
	s.cmdSN++
	command := pdu.SCSICommand{Header: &h}
	command.SetEDTL(uint32(max(want, len(out))))
	copy(command.CDB(), cdb)
	if err := s.send(&h, out); err != nil {
		return a, err
	}
	return s.answer()
}

func (s *Session) answer() (a Answer, err error) {
	for {
		h, data, err := s.receive()
		if err != nil {
			return a, err
		}
		switch h.Opcode() {
		case pdu.OpDataIn:
			a.Data = append(a.Data, data...)
			if d := (pdu.DataIn{Header: &h}); d.HasStatus() {
				a.Status = scsi.Status(d.Status())
				return a, nil
			}
		case pdu.OpSCSIResponse:
			a.Status = scsi.Status(pdu.SCSIResponse{Header: &h}.Status())
			if len(data) >= 16 {
				a.Sense = uint32(data[4]&0xF)<<16 | uint32(data[14])<<8 | uint32(data[15])
			}
			return a, nil
		case pdu.OpNopIn:
			if err := s.pong(&h); err != nil {
				return a, err
			}
		default:
			return a, fmt.Errorf("%w: got %v", ErrPath, h.Opcode())
		}
	}
}

// pong answers a ping of the target.
func (s *Session) pong(ping *pdu.Header) error {
	if ping.TTT() == pdu.NoTag {
		return nil
	}
	var h pdu.Header
	h.Reset(pdu.OpNopOut, pdu.FlagFinal)
	h.SetImmediate()
	h.SetLUN(ping.LUN())
	h.SetITT(pdu.NoTag)
	h.SetTTT(ping.TTT())
	h.SetCmdSN(s.cmdSN)
	return s.send(&h, nil)
}
