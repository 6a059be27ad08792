package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// session is what a client's handshake led to.
type session struct {
	link       *link
	raw        net.Conn
	size       int64
	flags      Flags
	structured bool
}

// dial connects to an export: TCP, TLS where configured, GO.
func (o ClientOptions) dial(ctx context.Context, name string) (*session, error) {
	network, address := o.network()
	raw, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("nbd: connect to %s: %w: %w", o.Address, protocol.ErrUnreachable, err)
	}
	tune(raw)
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	s := &session{raw: raw}
	err = s.handshake(ctx, o, name)
	if !stop() && err == nil {
		err = fmt.Errorf("nbd: handshake: %w: %w", protocol.ErrUnreachable, context.Cause(ctx))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export %q on %s: %w", name, o.Address, unreached(err)), raw.Close())
	}
	return s, nil
}

// unreached makes a lost connection ErrUnreachable.
func unreached(err error) error {
	if err == nil || errors.Is(err, protocol.ErrStale) || errors.Is(err, protocol.ErrUnreachable) || errors.As(err, new(*refused)) {
		return err
	}
	return fmt.Errorf("nbd: %w: %w", protocol.ErrUnreachable, err)
}

// refused is a server's no to an option.
type refused struct {
	reply   uint32
	message string
}

var refusalErrors = map[uint32]error{
	repUnsup:    unix.EOPNOTSUPP,
	repPolicy:   unix.EACCES,
	repInvalid:  unix.EINVAL,
	repPlatform: unix.EIO,
	repTLSReqd:  unix.EACCES,
	repUnknown:  unix.ENOENT,
	repShutdown: protocol.ErrStale,
}

// Error tells what the server said.
func (r *refused) Error() string {
	return fmt.Sprintf("nbd: the server refuses (reply %#x): %s", r.reply, r.message)
}

// Unwrap is the reply's sentinel.
func (r *refused) Unwrap() error { return refusalErrors[r.reply] }

// handshake haggles; nothing is read ahead before it has ended.
func (s *session) handshake(ctx context.Context, o ClientOptions, name string) error {
	c := s.raw
	zeroes, err := greet(c)
	if err != nil {
		return err
	}
	var records *coalescer
	if o.TLS != nil {
		if _, err := ask(c, optStartTLS, nil, nil); err != nil {
			return fmt.Errorf("STARTTLS: %w", err)
		}
		records = newCoalescer(s.raw)
		t := tls.Client(records, o.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		c = t
	}
	switch _, err := ask(c, optStructuredReply, nil, nil); {
	case err == nil:
		s.structured = true
	case !errors.As(err, new(*refused)):
		return err
	}
	if err := s.goTo(c, name, zeroes); err != nil {
		return err
	}
	s.link = newLink(c, records)
	return nil
}

// greet exchanges magic numbers and flags; zeroes says that the old way ends with 124 of them.
func greet(c net.Conn) (zeroes bool, err error) {
	b, err := exactly(c, 18)
	if err != nil {
		return false, err
	}
	if be.Uint64(b) != magicInit || be.Uint64(b[8:]) != magicOption {
		return false, violation("it does not greet as an NBD server: %q", b[:16])
	}
	flags := be.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return false, violation("no fixed newstyle handshake: flags %#x", flags)
	}
	mine := uint32(flags & (flagFixedNewstyle | flagNoZeroes))
	_, err = c.Write(be.AppendUint32(nil, mine))
	return flags&flagNoZeroes == 0, err
}

// maxReplies bounds the answer to one option.
const maxReplies = 1024

// ask sends an option, hands each information to each, and waits for the last reply.
func ask(c net.Conn, kind uint32, data []byte, each func(reply uint32, data []byte) error) (last []byte, err error) {
	if _, err := c.Write(appendOption(nil, kind, data)); err != nil {
		return nil, err
	}
	for range maxReplies {
		reply, data, err := readOptionReply(c, kind)
		switch {
		case err != nil:
			return nil, err
		case reply == repAck:
			return data, nil
		case reply&repError != 0:
			return nil, &refused{reply, string(data[:min(len(data), maxString)])}
		case each == nil:
			return nil, violation("reply %d to option %d", reply, kind)
		}
		if err := each(reply, data); err != nil {
			return nil, err
		}
	}
	return nil, violation("more than %d replies to option %d", maxReplies, kind)
}

// goTo begins transmission: by GO, by EXPORT_NAME with an old server.
func (s *session) goTo(c net.Conn, name string, zeroes bool) error {
	told := false
	_, err := ask(c, optGo, goRequest{name, []uint16{infoBlockSize}}.append(nil), func(reply uint32, p []byte) error {
		if reply != repInfo || len(p) < 2 {
			return violation("reply %d to GO", reply)
		}
		if be.Uint16(p) != infoExport {
			return nil
		}
		if len(p) != 12 {
			return violation("an export's information of %d bytes", len(p))
		}
		told = true
		return s.export(be.Uint64(p[2:]), be.Uint16(p[10:]))
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return s.goOldWay(c, name, zeroes)
	}
	if err == nil && !told {
		err = violation("GO without an export's information")
	}
	return err
}

func (s *session) goOldWay(c net.Conn, name string, zeroes bool) error {
	if _, err := c.Write(appendOption(nil, optExportName, []byte(name))); err != nil {
		return err
	}
	n := 10
	if zeroes {
		n += 124
	}
	b, err := exactly(c, n)
	if err != nil {
		return err
	}
	return s.export(be.Uint64(b), be.Uint16(b[8:]))
}

func (s *session) export(size uint64, flags uint16) error {
	if size > 1<<63-1 || Flags(flags)&HasFlags == 0 {
		return violation("an export of %d bytes, flags %#x", size, flags)
	}
	s.size, s.flags = int64(size), Flags(flags)
	return nil
}
