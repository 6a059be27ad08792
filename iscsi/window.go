package iscsi

import (
	"slices"

	"lunar/iscsi/pdu"
)

// window is the session's command window, RFC 7143 §4.2.2.1. Commands hold a place from their
// turn until their answer is sent, so MaxCmdSN stands still while no place comes free.
type window struct {
	expected uint32 // ExpCmdSN
	depth    int
	used     int    // places that commands hold
	told     uint32 // MaxCmdSN as the initiator knows it
	early    []held
}

// held is a request that came before its turn.
type held struct {
	sn      uint32
	head    pdu.Header
	task    *task // for a SCSI command
	data    []byte
	handler *handler
}

// place is where a request's CmdSN puts it.
type place uint8

const (
	placeNow place = iota
	placeLater
	placeDrop // outside the window, or here already: ignored without a word, §4.2.2.1
)

// last is MaxCmdSN.
func (w *window) last() uint32 { return w.expected + uint32(max(w.depth-w.used, 0)) - 1 }

// secret tells whether the window is open and the initiator takes it for shut.
func (w *window) secret() bool { return w.told == w.expected-1 && w.told != w.last() }

func (w *window) place(sn uint32) place {
	switch {
	case !pdu.InWindow(sn, w.expected, w.last()):
		return placeDrop
	case sn == w.expected:
		return placeNow
	}
	for i := range w.early {
		if w.early[i].sn == sn {
			return placeDrop
		}
	}
	return placeLater
}

// holdsBuffers tells whether a command that came before its turn has a buffer.
func (w *window) holdsBuffers() bool {
	return slices.ContainsFunc(w.early, func(h held) bool { return h.task != nil && h.task.buf != nil })
}

// next takes out the held request whose turn it is.
func (w *window) next() (held, bool) {
	for i := range w.early {
		if w.early[i].sn == w.expected {
			h := w.early[i]
			end := len(w.early) - 1
			w.early[i], w.early[end] = w.early[end], held{}
			w.early = w.early[:end]
			return h, true
		}
	}
	return held{}, false
}

// order runs the request in head at its turn. A SCSI command comes as t; what belongs to any other
// request is copied when it has to wait.
func (c *conn) order(head *pdu.Header, t *task) {
	switch c.win.place(head.CmdSN()) {
	case placeNow:
		c.turn(head, t, c.rx.dst, c.rx.handler)
		if len(c.win.early) > 0 {
			c.catchUp()
		}
	case placeLater:
		h := held{sn: head.CmdSN(), head: *head, task: t, handler: c.rx.handler}
		if t == nil {
			h.data = append([]byte(nil), c.rx.dst...)
		}
		c.win.early = append(c.win.early, h)
	case placeDrop:
		if t != nil {
			c.forget(t)
		}
	}
}

// catchUp runs the held requests whose turn has come.
func (c *conn) catchUp() {
	for h, ok := c.win.next(); ok && !c.closing; h, ok = c.win.next() {
		c.turn(&h.head, h.task, h.data, h.handler)
	}
}

// skipped stands for a request that will not come.
var skipped = handler{run: func(*conn, *pdu.Header, []byte) {}}

// skip takes a CmdSN for received; if its request comes after all it is dropped.
func (c *conn) skip(sn uint32) {
	switch c.win.place(sn) {
	case placeNow:
		c.win.expected++
		c.catchUp()
	case placeLater:
		c.win.early = append(c.win.early, held{sn: sn, handler: &skipped})
	}
}

func (c *conn) turn(head *pdu.Header, t *task, data []byte, h *handler) {
	c.win.expected++
	if t == nil {
		h.run(c, head, data)
		return
	}
	c.win.used++
	t.counted = true
	c.begin(t)
}
