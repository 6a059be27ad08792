package nbd

import (
	"runtime"
	"sync"
	"time"
)

// outbox sends replies. Who finds nobody sending, sends: its own reply and all that become ready
// meanwhile, each time as many as there are in one system call.
type outbox struct {
	c       *serverConn
	mu      sync.Mutex // guards ready, sending and err
	ready   []*operation
	sending bool
	err     error

	wake chan struct{} // for the sender, which there is beside a Carrier
	done chan struct{} // closed when it has ended

	// Those who send have these.
	batch  []*operation
	pieces [][]byte
}

// send takes the operation over.
func (o *outbox) send(op *operation) {
	o.mu.Lock()
	o.ready = append(o.ready, op)
	if o.sending {
		o.mu.Unlock()
		return
	}
	o.sending = true
	o.mu.Unlock()
	runtime.Gosched() // those whose operations have ended too come first, so that one call sends all
	o.drain()
}

// start gives post its sender, which stop ends.
func (o *outbox) start() {
	o.wake, o.done = make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(o.done)
		for range o.wake {
			o.drain()
		}
	}()
}

// stop waits until what was posted is sent; nothing is posted any more.
func (o *outbox) stop() {
	if o.wake == nil {
		return
	}
	close(o.wake)
	<-o.done
}

// post has operations sent. It does not block.
func (o *outbox) post(ops []*operation) {
	if len(ops) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ready = append(o.ready, ops...)
	if !o.sending {
		o.sending = true
		o.wake <- struct{}{} // empty: who sends took it
	}
}

// drain sends what is ready; sending is set.
func (o *outbox) drain() {
	o.mu.Lock()
	for len(o.ready) > 0 {
		o.batch, o.ready = o.ready, o.batch[:0]
		failed := o.err != nil
		o.mu.Unlock()
		var err error
		if !failed {
			err = o.write()
		}
		o.release()
		o.mu.Lock()
		if err != nil {
			o.err = err
			_ = o.c.raw.Close() // so that the reader ends, too
		}
	}
	o.sending = false
	o.mu.Unlock()
}

func (o *outbox) write() error {
	pieces := o.pieces[:0]
	for _, op := range o.batch {
		pieces = op.reply(pieces, o.c.structured)
	}
	o.pieces = pieces
	_ = o.c.raw.SetWriteDeadline(time.Now().Add(o.c.srv.opts.Limits.Stall))
	if o.c.ctx.Err() != nil {
		_ = o.c.raw.SetWriteDeadline(time.Now().Add(lastWords))
	}
	err := o.c.link.send(pieces)
	clear(o.pieces)
	return err
}

func (o *outbox) release() {
	for i, op := range o.batch {
		o.c.srv.pool.put(op.buf)
		op.free()
		o.batch[i] = nil
		<-o.c.window
	}
}

// reply appends what is sent for an operation.
func (op *operation) reply(pieces [][]byte, structured bool) [][]byte {
	switch {
	case op.errno != 0 && structured:
		return append(pieces, errorChunk(op.cookie, op.errno, op.why))
	case op.errno != 0 || op.command != cmdRead && op.chunks == nil:
		putSimple(op.head[:], op.errno, op.cookie)
		return append(pieces, op.head[:simpleSize])
	case op.chunks != nil:
		return append(pieces, op.chunks)
	case !structured:
		putSimple(op.head[:], 0, op.cookie)
		return append(pieces, op.head[:simpleSize], op.data())
	case op.length == 0:
		chunk{chunkDone, chunkNone, op.cookie, 0}.put(op.head[:])
		return append(pieces, op.head[:structuredSize])
	}
	chunk{chunkDone, chunkData, op.cookie, 8 + op.length}.put(op.head[:])
	be.PutUint64(op.head[structuredSize:], op.off)
	return append(pieces, op.head[:], op.data())
}
