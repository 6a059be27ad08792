package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// The bounds of TraceQuery.
const (
	MinTraceInterval  = 100 * time.Millisecond
	MaxTraceInterval  = time.Minute
	MaxTraceSlowest   = 64
	DefaultTraceLimit = 20
	MaxTraceLimit     = 1000
)

// TraceQuery asks for the I/O of one node, as it goes on.
type TraceQuery struct {
	Volume   string        // only this one's; empty: all
	Target   string        // only this one's
	LUN      *uint16       // only this one's, of any target unless Target is set
	Slowest  int           // commands to show, 0 for none, MaxTraceSlowest at most
	Limit    int           // rows; 0: DefaultTraceLimit
	Interval time.Duration // of the reports; 0: 1 s
	For      time.Duration // 0: until ctx ends
}

// TraceIO is what a node did within a window that ends at Time. A stream of them has no gaps.
type TraceIO struct {
	Node   string        `json:"node"`
	Time   time.Time     `json:"time"`
	Window time.Duration `json:"windowNs"`
	Total  Histogram     `json:"total"`   // commands, from arrival to answer
	Stages []Stage       `json:"stages"`  // in the order of a command's way; then what the kernel tells
	Rows   []TraceRow    `json:"rows"`    // the busiest first
	Active int           `json:"active"`  // rows before the limit
	Slow   []SlowCommand `json:"slowest"` // the slowest first
	Notes  []string      `json:"notes,omitempty"`
}

// Stage is one part of the commands' way.
type Stage struct {
	Name   string    `json:"stage"`
	Source string    `json:"source"` // lunard, or kernel
	About  string    `json:"about"`  // what it is the time of
	Device string    `json:"device,omitempty"`
	Peer   string    `json:"peer,omitempty"` // of a connection: an initiator's name
	Times  Histogram `json:"times"`
}

// TraceRow is one operation of an initiator on a LUN.
type TraceRow struct {
	Target    string    `json:"target"`
	LUN       uint16    `json:"lun"`
	Image     string    `json:"image,omitempty"`
	Initiator string    `json:"initiator"`
	Operation string    `json:"operation"` // read, write or other
	Bytes     uint64    `json:"bytes"`
	Times     Histogram `json:"times"`
}

// SlowCommand is one command, with what happened to it and around it.
type SlowCommand struct {
	Received   time.Time     `json:"received"`
	Took       time.Duration `json:"tookNs"`
	Target     string        `json:"target"`
	LUN        uint16        `json:"lun"`
	Image      string        `json:"image,omitempty"`
	Initiator  string        `json:"initiator"`
	Command    string        `json:"command"` // such as READ(10)
	Offset     int64         `json:"offset"`  // bytes on the LUN; -1: it has none
	Bytes      int           `json:"bytes"`
	Status     uint8         `json:"status"` // of SAM-5
	Redirected bool          `json:"redirected,omitempty"`
	Stages     []SlowStage   `json:"stages"` // in their order; their sum is Took
	Events     []Event       `json:"events"` // of the cluster, from a second before to a second after, oldest first
}

// SlowStage is a stage of one command; At counts from its arrival.
type SlowStage struct {
	Name string        `json:"stage"`
	At   time.Duration `json:"atNs"`
	Took time.Duration `json:"tookNs"`
}

// Fill sets the defaults, and refuses what is out of bounds.
func (q *TraceQuery) Fill() error {
	if q.Interval == 0 {
		q.Interval = time.Second
	}
	if q.Limit == 0 {
		q.Limit = DefaultTraceLimit
	}
	switch {
	case q.Interval < MinTraceInterval || q.Interval > MaxTraceInterval:
		return Errorf(Invalid, "an interval of %v is not between %v and %v", q.Interval, MinTraceInterval, MaxTraceInterval)
	case q.For < 0:
		return Errorf(Invalid, "a length of %v is negative", q.For)
	case q.Slowest < 0 || q.Slowest > MaxTraceSlowest:
		return Errorf(Invalid, "%d slowest commands are not between 0 and %d", q.Slowest, MaxTraceSlowest)
	case q.Limit < 1 || q.Limit > MaxTraceLimit:
		return Errorf(Invalid, "a limit of %d is not between 1 and %d", q.Limit, MaxTraceLimit)
	}
	return nil
}

// Values is q as the call carries it.
func (q *TraceQuery) Values() url.Values {
	v := url.Values{}
	for name, text := range map[string]string{"volume": q.Volume, "target": q.Target} {
		if text != "" {
			v.Set(name, text)
		}
	}
	if q.LUN != nil {
		v.Set("lun", fmt.Sprint(*q.LUN))
	}
	v.Set("slowest", fmt.Sprint(q.Slowest))
	if q.Limit != 0 {
		v.Set("limit", fmt.Sprint(q.Limit))
	}
	v.Set("interval", q.Interval.String())
	v.Set("for", q.For.String())
	return v
}

// TraceIO calls fn with what the node did in each interval, until q.For is over or ctx ends.
func (c *Client) TraceIO(ctx context.Context, q TraceQuery, fn func(TraceIO) error) error {
	return c.stream(ctx, "/v1/trace/io?"+q.Values().Encode(), func(line []byte) error {
		var t TraceIO
		if err := json.Unmarshal(line, &t); err != nil {
			return Errorf(Failed, "the node's answer cannot be read: %v", err)
		}
		return fn(t)
	})
}

// ParseTraceQuery reads what Values wrote, sets the defaults, and refuses what is out of bounds.
func ParseTraceQuery(v url.Values) (q TraceQuery, err error) {
	f := form{values: v}
	q = TraceQuery{Volume: v.Get("volume"), Target: v.Get("target"), Slowest: f.number("slowest"), Limit: f.number("limit"),
		Interval: f.duration("interval"), For: f.duration("for")}
	if v.Get("lun") != "" {
		n := f.number("lun")
		if n < 0 || n > 0x3fff {
			f.refuse("lun", v.Get("lun"), "a LUN")
		}
		lun := uint16(n)
		q.LUN = &lun
	}
	if f.err != nil {
		return q, f.err
	}
	err = q.Fill()
	return q, err
}
