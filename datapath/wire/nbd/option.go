package nbd

import (
	"io"
	"unicode/utf8"
)

// option is what a client asks during the handshake.
type option struct {
	kind uint32
	data []byte
	// skipped says that the data was too long to look at, and read over.
	skipped bool
}

// readOption reads an option, maxOption bytes of data at most.
func readOption(r io.Reader) (o option, err error) {
	head, err := exactly(r, optionSize)
	if err != nil {
		return o, err
	}
	if magic := be.Uint64(head); magic != magicOption {
		return o, violation("an option begins with %#x", magic)
	}
	o.kind = be.Uint32(head[8:])
	switch n := be.Uint32(head[12:]); {
	case n > maxSkip:
		return o, violation("option %d has %d bytes of data", o.kind, n)
	case n > maxOption:
		o.skipped = true
		_, err = io.CopyN(io.Discard, r, int64(n))
		return o, err
	default:
		o.data, err = exactly(r, int(n))
		return o, err
	}
}

func appendOption(b []byte, kind uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendOptionReply(b []byte, kind, reply uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, reply)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// readOptionReply reads a reply to the option kind.
func readOptionReply(r io.Reader, kind uint32) (reply uint32, data []byte, err error) {
	head, err := exactly(r, optReplySize)
	if err != nil {
		return 0, nil, err
	}
	if magic := be.Uint64(head); magic != magicOptReply {
		return 0, nil, violation("an option reply begins with %#x", magic)
	}
	if got := be.Uint32(head[8:]); got != kind {
		return 0, nil, violation("a reply to option %d, asked was %d", got, kind)
	}
	n := be.Uint32(head[16:])
	if n > maxReply {
		return 0, nil, violation("an option reply of %d bytes", n)
	}
	data, err = exactly(r, int(n))
	return be.Uint32(head[12:]), data, err
}

// goRequest is the data of GO and INFO.
type goRequest struct {
	name  string
	infos []uint16
}

func (g goRequest) append(b []byte) []byte {
	b = appendString(b, g.name)
	b = be.AppendUint16(b, uint16(len(g.infos)))
	for _, i := range g.infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

func parseGo(p []byte) (g goRequest, ok bool) {
	if g.name, p, ok = cutString(p); !ok || len(p) < 2 {
		return g, false
	}
	n := int(be.Uint16(p))
	if p = p[2:]; len(p) != 2*n {
		return g, false
	}
	for ; len(p) > 0; p = p[2:] {
		g.infos = append(g.infos, be.Uint16(p))
	}
	return g, true
}

// metaRequest is the data of SET_META_CONTEXT and LIST_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func parseMeta(p []byte) (m metaRequest, ok bool) {
	if m.name, p, ok = cutString(p); !ok || len(p) < 4 {
		return m, false
	}
	n := be.Uint32(p)
	p = p[4:]
	for ; n > 0; n-- {
		var q string
		if q, p, ok = cutString(p); !ok {
			return m, false
		}
		m.queries = append(m.queries, q)
	}
	return m, len(p) == 0
}

func appendString(b []byte, s string) []byte {
	b = be.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// cutString takes a string with its length off p.
func cutString(p []byte) (s string, rest []byte, ok bool) {
	if len(p) < 4 {
		return "", p, false
	}
	n := be.Uint32(p)
	p = p[4:]
	if n > maxString || int(n) > len(p) || !utf8.Valid(p[:n]) {
		return "", p, false
	}
	return string(p[:n]), p[n:], true
}
