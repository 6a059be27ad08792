package iscsi

import (
	"fmt"
	"maps"
	"slices"

	"lunar/iscsi/pdu"
)

// textExchange is a text negotiation of the full feature phase, RFC 7143 §11.10: one at a time.
type textExchange struct {
	in   pdu.Assembler
	rest []byte // of an answer that needs several PDUs
	tag  uint32 // target transfer tag of the exchange, while it lasts
	open bool
}

// runText answers a Text Request.
func runText(c *conn, h *pdu.Header, data []byte) {
	x := &c.text
	if reason := x.check(h); reason != 0 {
		c.text = textExchange{tag: x.tag}
		c.rejectPDU(h, reason)
		return
	}
	if h.TTT() == pdu.NoTag {
		c.text = textExchange{tag: x.tag}
	}
	if x.open && len(x.rest) > 0 && len(data) == 0 {
		c.sendText(h)
		return
	}
	text, err := x.in.Add(data, h.Continue())
	if err == nil && !h.Continue() {
		err = c.negotiateText(text)
	}
	if err != nil {
		c.text = textExchange{tag: x.tag}
		c.rejectPDU(h, pdu.RejectProtocol)
		return
	}
	c.sendText(h)
}

func (x *textExchange) check(h *pdu.Header) pdu.RejectReason {
	switch {
	case h.Final() && h.Continue():
		return pdu.RejectProtocol
	case h.TTT() != pdu.NoTag && (!x.open || h.TTT() != x.tag):
		return pdu.RejectField
	}
	return 0
}

// negotiateText makes the answers. Only what RFC 7143 §13 allows in the full feature phase is
// negotiated there.
func (c *conn) negotiateText(text []byte) error {
	pairs, err := pdu.ParseText(text)
	if err != nil {
		return err
	}
	n := newNegotiation(c.opts())
	n.params = c.params
	for _, p := range pairs {
		switch {
		case p.Key == "SendTargets":
			c.text.rest = c.sendTargets(c.text.rest, p.Value)
		case p.Key == "MaxRecvDataSegmentLength", p.Key == "InitiatorAlias", operational[p.Key] == nil && !identifying[p.Key]:
			if !n.take(p) {
				return fmt.Errorf("%w: key %s twice", errProtocol, p.Key)
			}
		default:
			n.answer(p.Key, pdu.Rejected)
		}
	}
	c.text.rest = append(c.text.rest, n.out...)
	c.params.MaxRecvData = n.params.MaxRecvData
	return nil
}

// sendText sends as much of the answer as one PDU may hold; the initiator asks for the rest with
// an empty request.
func (c *conn) sendText(req *pdu.Header) {
	x := &c.text
	n := min(len(x.rest), c.params.MaxRecvData)
	f := c.frame(pdu.OpTextResponse, 0, req.ITT())
	f.data, x.rest = x.rest[:n:n], x.rest[n:]
	switch {
	case len(x.rest) > 0:
		f.head().SetFlags(pdu.FlagContinue)
		x.open = true
	case req.Final():
		f.head().SetFlags(pdu.FlagFinal)
		x.open = false
	default:
		x.open = true
	}
	f.head().SetTTT(pdu.NoTag)
	if x.open {
		if x.tag++; x.tag == pdu.NoTag {
			x.tag = 0
		}
		f.head().SetTTT(x.tag)
	}
	f.stat = statTake
	c.send(f)
}

// sendTargets answers SendTargets, RFC 7143 Appendix C: All in discovery sessions, a name, or
// nothing for the session's own target.
func (c *conn) sendTargets(out []byte, value string) []byte {
	s := c.session
	own := ""
	if s.export != nil {
		own = s.export.Name
	}
	switch {
	case value == "All" && s.discovery:
		return c.allTargets(out)
	case value == "" && !s.discovery, !s.discovery && value == own:
		return c.targetRecord(out, s.export)
	case value == "All", value == "", !s.discovery:
		return pdu.AppendPair(out, "SendTargets", pdu.Rejected)
	}
	return c.targetRecord(out, c.reactor.server.export(value))
}

func (c *conn) allTargets(out []byte) []byte {
	exports := *c.reactor.server.exports.Load()
	for _, name := range slices.Sorted(maps.Keys(exports)) {
		out = c.targetRecord(out, exports[name])
	}
	return out
}

// targetRecord adds a target and its addresses, if the initiator may know of it.
func (c *conn) targetRecord(out []byte, e *Export) []byte {
	if e == nil || !e.allows(c.session.key.initiator) {
		return out
	}
	out = pdu.AppendPair(out, "TargetName", e.Name)
	for _, p := range *c.reactor.server.portals.Load() {
		out = pdu.AppendPair(out, "TargetAddress", fmt.Sprintf("%s,%d", p.address(c.local), p.group()))
	}
	for _, p := range *c.reactor.server.peers.Load() {
		out = pdu.AppendPair(out, "TargetAddress", fmt.Sprintf("%s,%d", p.Address, p.Group))
	}
	return out
}
