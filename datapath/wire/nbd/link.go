package nbd

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"time"
)

// readAhead is how much is read at once: many requests, or replies, of 4 KiB.
const readAhead = 128 << 10

// link is a connection past its handshake: reading is buffered, one goroutine writes at a time.
type link struct {
	net.Conn // what the bytes go through: TCP or TLS
	r        *bufio.Reader
	records  *coalescer // under TLS, nil in the clear
	stage    []byte
	vector   net.Buffers
}

// keepAlive finds a dead peer while nothing is sent; deadPeer while something is.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}

const deadPeer = 4 * time.Second

func newLink(c net.Conn, records *coalescer) *link {
	l := &link{Conn: c, records: records, r: bufio.NewReaderSize(c, readAhead)}
	if records != nil {
		l.stage = make([]byte, 0, stageSize)
	}
	return l
}

// stageSize is what is encrypted at once: records are full, and few pieces make many bytes.
const stageSize = 64 << 10

// send writes all pieces, in one system call where the kernel takes them; the slice is used up.
func (l *link) send(pieces [][]byte) error {
	if l.records == nil {
		l.vector = pieces
		_, err := l.vector.WriteTo(l.Conn)
		return err
	}
	l.records.hold = true
	err := l.encrypt(pieces)
	l.records.hold = false
	if err != nil {
		return err
	}
	return l.records.flush()
}

func (l *link) encrypt(pieces [][]byte) error {
	l.stage = l.stage[:0]
	for _, p := range pieces {
		for len(p) > 0 {
			n := min(len(p), stageSize-len(l.stage))
			l.stage, p = append(l.stage, p[:n]...), p[n:]
			if len(l.stage) < stageSize {
				continue
			}
			if _, err := l.Write(l.stage); err != nil {
				return err
			}
			l.stage = l.stage[:0]
		}
	}
	if len(l.stage) == 0 {
		return nil
	}
	_, err := l.Write(l.stage)
	return err
}

// coalescer lies under TLS: crypto/tls reads and writes record by record, the kernel is asked for more
// at once. It holds what is written back between hold and flush.
type coalescer struct {
	net.Conn
	r    *bufio.Reader
	out  []byte
	hold bool
}

const coalesceSize = 256 << 10

func newCoalescer(c net.Conn) *coalescer {
	return &coalescer{Conn: c, r: bufio.NewReaderSize(c, readAhead)}
}

// Read reads what there is.
func (c *coalescer) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write writes, or keeps p's bytes for flush.
func (c *coalescer) Write(p []byte) (int, error) {
	if !c.hold {
		return c.Conn.Write(p)
	}
	if len(c.out)+len(p) > coalesceSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

func (c *coalescer) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.out)
	c.out = c.out[:0]
	return err
}

// forThroughput is config with full records from the start.
func forThroughput(config *tls.Config) *tls.Config {
	c := config.Clone()
	c.DynamicRecordSizingDisabled = true
	return c
}

// exactly reads n bytes.
func exactly(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
