package hostile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"lunar/iscsi/pdu"
)

const (
	blocks    = 8 // of one READ: 4 KiB
	ioLimit   = 10 * time.Second
	rightCode = 0x00 // GOOD
)

var errAnswer = errors.New("an answer that does not fit")

// session is an initiator's session with one command under way at a time.
type session struct {
	conn   net.Conn
	head   pdu.Header // of the command, used anew
	answer pdu.Header
	data   [blocks*512 + 3]byte
	sn     uint32
	seen   uint32 // StatSN
	reads  uint64
}

// login opens session number n of the target, from an address; keys are pairs that it offers besides.
func login(from, portal, target string, n int, keys ...string) (*session, error) {
	conn, err := dial(from, portal)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, sn: 1}
	if err := s.enter(target, n, keys...); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("session %d: %w", n, err)
	}
	return s, nil
}

func dial(from, portal string) (net.Conn, error) {
	d := net.Dialer{Timeout: ioLimit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.Dial("tcp", portal)
}

// loginRequest goes straight to the full feature phase.
func loginRequest(target string, n int, keys ...string) []byte {
	text := pdu.AppendPair(nil, "InitiatorName", fmt.Sprintf("iqn.2026-01.lunar.test:host%d", n))
	text = pdu.AppendPair(text, "TargetName", target)
	text = pdu.AppendPair(text, "SessionType", "Normal")
	for i := 0; i < len(keys); i += 2 {
		text = pdu.AppendPair(text, keys[i], keys[i+1])
	}
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	h.SetImmediate()
	binary.BigEndian.PutUint32(h[10:], uint32(n)) // of the ISID
	h[8] = 0x80
	h.SetCmdSN(1)
	h.SetDataLen(len(text))
	return append(append(h[:], text...), make([]byte, pdu.Pad(len(text)))...)
}

// enter logs in and takes the unit attention that greets a new session.
func (s *session) enter(target string, n int, keys ...string) error {
	if _, err := s.conn.Write(loginRequest(target, n, keys...)); err != nil {
		return err
	}
	if err := s.receive(); err != nil {
		return err
	}
	if status := (pdu.LoginResponse{Header: &s.answer}).Status(); status != pdu.LoginSuccess {
		return fmt.Errorf("%w: login status %#04x", errAnswer, uint16(status))
	}
	_, err := s.read(0)
	return err
}

// receive takes one PDU, its data into s.data.
func (s *session) receive() error {
	if err := s.conn.SetReadDeadline(time.Now().Add(ioLimit)); err != nil {
		return err
	}
	if _, err := io.ReadFull(s.conn, s.answer[:]); err != nil {
		return err
	}
	n := s.answer.DataLen()
	if n+pdu.Pad(n) > len(s.data) {
		return fmt.Errorf("%w: %d bytes", errAnswer, n)
	}
	s.seen = s.answer.StatSN()
	_, err := io.ReadFull(s.conn, s.data[:n+pdu.Pad(n)])
	return err
}

// read reads 4 KiB; good is false on a status other than GOOD.
func (s *session) read(lba uint32) (good bool, err error) {
	h := pdu.SCSICommand{Header: &s.head}
	h.Reset(pdu.OpSCSICommand, pdu.FlagFinal|pdu.FlagRead|1)
	h.SetITT(s.sn)
	h.SetCmdSN(s.sn)
	h.SetExpStatSN(s.seen + 1)
	h.SetEDTL(blocks * 512)
	cdb := h.CDB()
	cdb[0], cdb[8] = 0x28, blocks // READ(10)
	binary.BigEndian.PutUint32(cdb[2:], lba)
	s.sn++
	if _, err := s.conn.Write(s.head[:]); err != nil {
		return false, err
	}
	if err := s.receive(); err != nil {
		return false, err
	}
	switch s.answer.Opcode() {
	case pdu.OpDataIn, pdu.OpSCSIResponse:
		return s.answer[3] == rightCode, nil
	}
	return false, fmt.Errorf("%w: %v", errAnswer, s.answer.Opcode())
}
