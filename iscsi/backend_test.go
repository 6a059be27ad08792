package iscsi

import (
	"bytes"
	"sync"
	"syscall"
)

// memory is a scsi.Backend in RAM. While held is set, reads and writes wait for release.
type memory struct {
	mu      sync.Mutex // guards the rest
	data    []byte
	holding bool
	waiting []func()
	post    func(lane int, fn func()) error
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

// do runs fn now, or when release is called, on the lane that asked.
func (m *memory) do(lane int, fn func()) {
	m.mu.Lock()
	if m.holding {
		m.waiting = append(m.waiting, func() { _ = m.post(lane, fn) })
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()
	fn()
}

func (m *memory) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holding = true
}

func (m *memory) held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting)
}

func (m *memory) release() {
	m.mu.Lock()
	m.holding = false
	all := m.waiting
	m.waiting = nil
	m.mu.Unlock()
	for _, fn := range all {
		fn()
	}
}

func (m *memory) Read(lane int, p []byte, off int64, done func(error)) {
	m.do(lane, func() {
		m.mu.Lock()
		ok := off+int64(len(p)) <= int64(len(m.data))
		if ok {
			copy(p, m.data[off:])
		}
		m.mu.Unlock()
		done(bounds(ok))
	})
}

func bounds(ok bool) error {
	if ok {
		return nil
	}
	return syscall.EIO
}

func (m *memory) Write(lane int, p []byte, off int64, _ bool, done func(error)) {
	m.do(lane, func() {
		m.mu.Lock()
		ok := off+int64(len(p)) <= int64(len(m.data))
		if ok {
			copy(m.data[off:], p)
		}
		m.mu.Unlock()
		done(bounds(ok))
	})
}

func (m *memory) Flush(_ int, done func(error)) { done(nil) }

func (m *memory) Unmap(_ int, off, n int64, done func(error)) {
	m.mu.Lock()
	clear(m.data[off : off+n])
	m.mu.Unlock()
	done(nil)
}

func (m *memory) CompareAndWrite(_ int, expect, data []byte, off int64, _ bool, done func(int, error)) {
	m.mu.Lock()
	have := m.data[off : off+int64(len(expect))]
	diff := -1
	for i := range expect {
		if have[i] != expect[i] {
			diff = i
			break
		}
	}
	if diff < 0 {
		copy(have, data)
	}
	m.mu.Unlock()
	done(diff, nil)
}

// Mapped finds 4 KiB pieces that hold anything but zeroes.
func (m *memory) Mapped(off int64) (bool, int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	const piece = 4096
	end := min((off/piece+1)*piece, int64(len(m.data)))
	zero := bytes.Count(m.data[off/piece*piece:end], []byte{0}) == int(end-off/piece*piece)
	return !zero, end - off
}

func (m *memory) Space() (used, free int64) { return int64(len(m.data)) / 2, 1 << 40 }

func (m *memory) peek(off, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.data[off:off+n]...)
}
