package iscsi

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// testLane is a Lane on plain goroutines: one that runs the callbacks, two per socket.
type testLane struct {
	index   int
	calls   chan func()
	stop    chan struct{}
	ended   sync.WaitGroup
	batches []func()
	ticks   []func(time.Time)
	skew    time.Duration // added to the time that ticks tell; lane only
}

const testTick = 10 * time.Millisecond

func newTestLane(t testing.TB, index int) *testLane {
	l := &testLane{index: index, calls: make(chan func(), 4096), stop: make(chan struct{})}
	l.ended.Add(1)
	go l.run()
	t.Cleanup(func() {
		close(l.stop)
		l.ended.Wait()
	})
	return l
}

func (l *testLane) run() {
	defer l.ended.Done()
	tick := time.NewTicker(testTick)
	defer tick.Stop()
	for {
		select {
		case fn := <-l.calls:
			fn()
			l.more()
		case now := <-tick.C:
			for _, fn := range l.ticks {
				fn(now.Add(l.skew))
			}
		case <-l.stop:
			return
		}
		for _, fn := range l.batches {
			fn()
		}
	}
}

// more takes what else has come, so that batches have a size.
func (l *testLane) more() {
	for range 64 {
		select {
		case fn := <-l.calls:
			fn()
		default:
			return
		}
	}
}

func (l *testLane) Index() int { return l.index }

func (l *testLane) Post(fn func()) error {
	select {
	case <-l.stop:
		return errors.New("lane closed")
	default:
	}
	select {
	case l.calls <- fn:
		return nil
	case <-l.stop:
		return errors.New("lane closed")
	}
}

func (l *testLane) OnBatch(fn func())         { l.batches = append(l.batches, fn) }
func (l *testLane) OnTick(fn func(time.Time)) { l.ticks = append(l.ticks, fn) }

func (l *testLane) Attach(fd int) (Socket, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	s := &testSocket{lane: l, conn: c, recvs: make(chan func(), 1), sends: make(chan func(), 1)}
	s.ended.Add(2)
	go s.work(s.recvs)
	go s.work(s.sends)
	return s, nil
}

type testSocket struct {
	lane         *testLane
	conn         net.Conn
	recvs, sends chan func()
	ended        sync.WaitGroup
}

func (s *testSocket) work(calls chan func()) {
	defer s.ended.Done()
	for fn := range calls {
		fn()
	}
}

func (s *testSocket) Recv(p, rest []byte, done func(int, error)) {
	s.recvs <- func() {
		n, err := s.read(p, rest)
		if errors.Is(err, io.EOF) {
			n, err = 0, nil
		}
		_ = s.lane.Post(func() { done(n, err) })
	}
}

// read uses rest too if p is filled and more is there at once.
func (s *testSocket) read(p, rest []byte) (int, error) {
	n, err := s.conn.Read(p)
	if err != nil || n < len(p) || len(rest) == 0 {
		return n, err
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	more, _ := s.conn.Read(rest)
	_ = s.conn.SetReadDeadline(time.Time{})
	return n + more, nil
}

func (s *testSocket) Send(bufs [][]byte, done func(error)) {
	if len(bufs) > MaxSendBuffers {
		panic("more vectors than the kernel takes")
	}
	own := append(net.Buffers(nil), bufs...)
	s.sends <- func() {
		_, err := own.WriteTo(s.conn)
		_ = s.lane.Post(func() { done(err) })
	}
}

func (s *testSocket) Pages(int) (Pages, error) { return nil, errNoPages }

func (s *testSocket) Close(closed func()) {
	s.conn.Close()
	close(s.recvs)
	close(s.sends)
	s.lane.ended.Add(1)
	go func() {
		defer s.lane.ended.Done()
		s.ended.Wait()
		_ = s.lane.Post(closed)
	}()
}

// testBuffers counts what is out.
type testBuffers struct {
	mu    sync.Mutex // guards the rest
	out   map[*byte]int
	bytes int
	limit int // bytes, 0 for none
}

func newTestBuffers() *testBuffers { return &testBuffers{out: map[*byte]int{}} }

func (b *testBuffers) Get(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && b.bytes+n > b.limit {
		return nil
	}
	p := make([]byte, n)
	b.out[&p[0]] = n
	b.bytes += n
	return p
}

func (b *testBuffers) Put(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.out[&p[0]]
	if !ok {
		panic("a buffer came back that was not out")
	}
	delete(b.out, &p[0])
	b.bytes -= n
}

func (b *testBuffers) inUse() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.out)
}

func (b *testBuffers) setLimit(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = n
}
