package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout/protocol"
)

// handshake is the server's side of option haggling. What a client chose before STARTTLS is forgotten
// at STARTTLS; nothing is read ahead, so that nothing said in the clear counts after it.
type handshake struct {
	*serverConn
	wire       net.Conn // TCP, then TLS
	records    *coalescer
	peer       Peer
	noZeroes   bool
	structured bool
	meta       selection
}

// errDone ends the haggling: the client went, or was told to.
var errDone = errors.New("nbd: the client ended the handshake")

// maxOptions bounds what one connection may ask.
const maxOptions = 1024

// run ends with an open export, or an error after which nothing more can be said.
func (h *handshake) run() error {
	_ = h.wire.SetDeadline(time.Now().Add(h.srv.opts.Limits.Handshake))
	hello := be.AppendUint64(nil, magicInit)
	hello = be.AppendUint64(hello, magicOption)
	hello = be.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.wire.Write(hello); err != nil {
		return err
	}
	b, err := exactly(h.wire, 4)
	if err != nil {
		return err
	}
	flags := be.Uint32(b)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 || flags&flagFixedNewstyle == 0 {
		return violation("client flags %#x", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		if done, err := h.option(); done || err != nil {
			return err
		}
	}
	return violation("more than %d options", maxOptions)
}

// optionTable has what a server does for each option; done means that transmission begins.
var optionTable = map[uint32]func(h *handshake, o option) (done bool, err error){
	optExportName:      (*handshake).exportName,
	optAbort:           (*handshake).abort,
	optList:            (*handshake).list,
	optStartTLS:        (*handshake).startTLS,
	optInfo:            (*handshake).info,
	optGo:              (*handshake).info,
	optStructuredReply: (*handshake).structuredReply,
	optListMeta:        (*handshake).metaContext,
	optSetMeta:         (*handshake).metaContext,
}

func (h *handshake) option() (done bool, err error) {
	o, err := readOption(h.wire)
	if err != nil {
		return false, err
	}
	do, known := optionTable[o.kind]
	secure := h.records != nil || !h.srv.opts.RequireTLS
	switch {
	case !secure && o.kind == optExportName:
		return false, violation("EXPORT_NAME without TLS, which is required")
	case !secure && o.kind != optAbort && o.kind != optStartTLS:
		return false, h.reply(o, repTLSReqd, "TLS is required: ask for STARTTLS")
	case !known:
		return false, h.reply(o, repUnsup, "")
	case o.skipped && o.kind == optExportName:
		return false, violation("a name that is too long")
	case o.skipped && o.kind != optAbort:
		return false, h.reply(o, repTooBig, fmt.Sprintf("more than %d bytes of data", maxOption))
	}
	return do(h, o)
}

func (h *handshake) reply(o option, reply uint32, data string) error {
	_, err := h.wire.Write(appendOptionReply(nil, o.kind, reply, []byte(data)))
	return err
}

func (h *handshake) abort(o option) (bool, error) {
	_ = h.reply(o, repAck, "") // it may be gone already
	return false, errDone
}

func (h *handshake) startTLS(o option) (bool, error) {
	switch {
	case len(o.data) > 0 || h.records != nil:
		return false, h.reply(o, repInvalid, "STARTTLS with data, or a second time")
	case h.srv.opts.TLS == nil:
		return false, h.reply(o, repPolicy, "this server has no TLS")
	}
	if err := h.reply(o, repAck, ""); err != nil {
		return false, err
	}
	records := newCoalescer(h.raw)
	c := tls.Server(records, h.srv.opts.TLS)
	if err := c.HandshakeContext(h.ctx); err != nil {
		return false, fmt.Errorf("nbd: TLS: %w", err)
	}
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
		h.peer.Name = certs[0].Subject.CommonName
	}
	h.wire, h.records, h.structured, h.meta = c, records, false, selection{}
	return false, nil
}

func (h *handshake) structuredReply(o option) (bool, error) {
	if len(o.data) > 0 {
		return false, h.reply(o, repInvalid, "STRUCTURED_REPLY has no data")
	}
	h.structured = true
	return false, h.reply(o, repAck, "")
}

func (h *handshake) list(o option) (bool, error) {
	switch {
	case len(o.data) > 0:
		return false, h.reply(o, repInvalid, "LIST has no data")
	case h.srv.opts.List == nil:
		return false, h.reply(o, repPolicy, "this server does not list its exports")
	}
	var b []byte
	for _, name := range h.srv.opts.List(h.ctx, h.peer) {
		b = appendOptionReply(b, o.kind, repServer, appendString(nil, name))
	}
	_, err := h.wire.Write(appendOptionReply(b, o.kind, repAck, nil))
	return false, err
}

// refusals maps an error of open to an option reply; what is not here is a matter of policy.
var refusals = []struct {
	err   error
	reply uint32
}{
	{protocol.ErrStale, repShutdown},
	{protocol.ErrUnreachable, repShutdown},
	{unix.ESHUTDOWN, repShutdown},
	{context.Canceled, repShutdown},
	{context.DeadlineExceeded, repShutdown},
	{unix.ENOENT, repUnknown},
	{unix.EINVAL, repInvalid},
	{unix.EIO, repPlatform},
}

func refusal(err error) uint32 {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return r.reply
		}
	}
	return repPolicy
}

// info answers INFO and GO.
func (h *handshake) info(o option) (bool, error) {
	g, ok := parseGo(o.data)
	if !ok {
		return false, h.reply(o, repInvalid, "malformed")
	}
	going := o.kind == optGo
	x, err := h.open(g.name, going)
	if err != nil {
		return false, h.reply(o, refusal(err), err.Error())
	}
	flags := h.flags(x.Info())
	if _, err = h.wire.Write(h.infos(o, g, x, flags)); err != nil || !going {
		return false, errors.Join(err, x.Close())
	}
	h.begin(x, g.name, flags)
	return true, nil
}

// infos are all replies to a successful GO or INFO.
func (h *handshake) infos(o option, g goRequest, x Export, flags Flags) []byte {
	in := x.Info()
	p := be.AppendUint16(nil, infoExport)
	p = be.AppendUint64(p, uint64(x.Size()))
	b := appendOptionReply(nil, o.kind, repInfo, be.AppendUint16(p, uint16(flags)))
	p = be.AppendUint16(nil, infoBlockSize)
	p = be.AppendUint32(p, in.block())
	p = be.AppendUint32(p, in.preferred())
	b = appendOptionReply(b, o.kind, repInfo, be.AppendUint32(p, MaxPayload))
	if slices.Contains(g.infos, infoName) {
		b = appendOptionReply(b, o.kind, repInfo, append(be.AppendUint16(nil, infoName), g.name...))
	}
	if slices.Contains(g.infos, infoDescription) && in.Description != "" {
		b = appendOptionReply(b, o.kind, repInfo, append(be.AppendUint16(nil, infoDescription), in.Description...))
	}
	return appendOptionReply(b, o.kind, repAck, nil)
}

func (i Info) block() uint32     { return max(i.Block, 1) }
func (i Info) preferred() uint32 { return max(i.Preferred, i.Block, alignment) }

// exportName answers the option of old clients, which knows no refusal but the end.
func (h *handshake) exportName(o option) (bool, error) {
	x, err := h.open(string(o.data), true)
	if err != nil {
		return false, err
	}
	flags := h.flags(x.Info())
	b := be.AppendUint64(nil, uint64(x.Size()))
	b = be.AppendUint16(b, uint16(flags))
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := h.wire.Write(b); err != nil {
		return false, errors.Join(err, x.Close())
	}
	h.begin(x, string(o.data), flags)
	return true, nil
}

func (h *handshake) flags(i Info) Flags {
	f := HasFlags | SendFlush | SendFUA | CanMultiConn | SendCache
	if h.structured {
		f |= SendDF
	}
	if i.ReadOnly {
		return f | ReadOnly
	}
	return f | SendTrim | SendWriteZeroes | SendFastZero
}

// open finds the export. For a node that goes it also ends the operations of the node's earlier sets.
func (h *handshake) open(text string, going bool) (Export, error) {
	if h.srv.isStopped() {
		return nil, fmt.Errorf("nbd: the server is being stopped: %w", unix.ESHUTDOWN)
	}
	if len(text) > maxString {
		return nil, fmt.Errorf("nbd: a name of %d bytes: %w", len(text), unix.EINVAL)
	}
	ctx, cancel := context.WithTimeout(h.ctx, h.srv.opts.Limits.Handshake)
	defer cancel()
	name, err := ParseName(text)
	node := err == nil && name.Node != ""
	if node && h.peer.Name != "" && string(name.Node) != h.peer.Name {
		return nil, fmt.Errorf("nbd: the certificate of %q does not let it connect as node %q: %w", h.peer.Name, name.Node, unix.EACCES)
	}
	x, err := h.srv.opts.Open(ctx, text, h.peer)
	if err != nil || !node || !going {
		return x, err
	}
	h.leave = func() { h.srv.sets.leave(name, h.serverConn) }
	if err := h.srv.sets.admit(ctx, name, h.serverConn); err != nil {
		h.leave()
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// begin makes the connection ready for transmission.
func (h *handshake) begin(x Export, name string, flags Flags) {
	c := h.serverConn
	c.export, c.flags, c.structured = x, flags, h.structured
	if h.meta.export == name {
		c.contexts = h.meta.contexts
	}
	c.block = int64(x.Info().block())
	c.link = newLink(h.wire, h.records)
	_ = h.wire.SetDeadline(time.Time{})
}
