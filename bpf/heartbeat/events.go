package heartbeat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// Events reads what the kernel reports. One goroutine calls Next; any may call Close.
type Events struct {
	reader *ringbuf.Reader
	record ringbuf.Record
}

// Events opens the reader. Only one should be open at a time, since each event goes to one reader. The caller closes it
// before the Heartbeat.
func (h *Heartbeat) Events() (*Events, error) {
	h.mapped.RLock()
	defer h.mapped.RUnlock()
	if h.memory.node == nil {
		return nil, ErrClosed
	}
	r, err := ringbuf.NewReader(h.objects.HbEvents)
	if err != nil {
		return nil, fmt.Errorf("heartbeat: open the events: %w", err)
	}
	return &Events{reader: r}, nil
}

// Next waits for an event. After Close it returns ErrClosed.
func (e *Events) Next() (Event, error) {
	if err := e.reader.ReadInto(&e.record); err != nil {
		if errors.Is(err, ringbuf.ErrClosed) {
			return Event{}, ErrClosed
		}
		return Event{}, fmt.Errorf("heartbeat: read an event: %w", err)
	}
	return decodeEvent(e.record.RawSample)
}

// Close ends Next, wherever it waits.
func (e *Events) Close() error { return e.reader.Close() }

// eventSize is that of struct event in kernel/state.h.
const eventSize = 32

func decodeEvent(b []byte) (Event, error) {
	if len(b) < eventSize {
		return Event{}, fmt.Errorf("heartbeat: an event has %d bytes, want %d", len(b), eventSize)
	}
	order := binary.LittleEndian
	return Event{
		At:    time.Duration(order.Uint64(b)),
		Kind:  EventKind(order.Uint32(b[8:])),
		Path:  Path{Peer: order.Uint16(b[16:]), Network: order.Uint16(b[18:]), Family: Family(b[20])},
		Value: order.Uint64(b[24:]),
	}, nil
}
