package iscsi

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"lunar/iscsi/pdu"
)

// from connects from another loopback address and sends nothing.
func (f *fixture) from(addr string) net.Conn {
	f.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	c, err := d.DialContext(context.Background(), "tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// closed tells whether the server has ended the connection, within limit.
func closed(c net.Conn, limit time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(limit))
	_, err := c.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func TestCrowdPushesOutItsOldest(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxPending = 4 })
	other := f.from("127.0.0.3")
	var crowd []net.Conn
	for range 6 {
		crowd = append(crowd, f.from("127.0.0.2"))
	}
	for i, c := range crowd[:2] {
		if !closed(c, 5*time.Second) {
			t.Errorf("connection %d is open", i)
		}
	}
	for i, c := range append(crowd[2:], other) {
		if closed(c, 20*time.Millisecond) {
			t.Errorf("connection %d was closed", i)
		}
	}
	if n := f.server.Totals().Refused; n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
}

// A server full of connections that do not log in makes room for one that does, and for no other
// than the largest crowd's loss.
func TestFullServerMakesRoom(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxConnections, o.MaxPending = 6, 6 })
	first := f.dial()
	first.login()
	lone := f.from("127.0.0.4")
	var crowd []net.Conn
	for range 4 {
		crowd = append(crowd, f.from("127.0.0.2"))
	}
	second := f.dial()
	second.isid[5] = 9
	second.login()
	if !closed(crowd[0], 5*time.Second) || closed(crowd[1], 20*time.Millisecond) || closed(lone, 20*time.Millisecond) {
		t.Error("not the oldest of the largest crowd went")
	}
	first.clearAttention()
	second.clearAttention()
}

// Sessions are never pushed out.
func TestSessionsStayWhenTheServerIsFull(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxConnections, o.MaxPending = 2, 1 })
	var sessions []*client
	for i := range 2 {
		c := f.dial()
		c.isid[5] = byte(i)
		c.login()
		sessions = append(sessions, c)
	}
	late := f.dial()
	late.isid[5] = 7
	if s := late.tryLogin(); s != pdu.LoginOutOfResources {
		t.Errorf("status %#x", s)
	}
	for _, c := range sessions {
		c.clearAttention()
	}
}

func TestOrigin(t *testing.T) {
	for a, want := range map[net.Addr]string{
		&net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 5}:                "10.1.2.3/32",
		&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3::4"), Port: 5}:     "2001:db8:1:2::/64",
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0", Port: 5}: "fe80::/64",
		&net.UnixAddr{Name: "@x"}:                                       "invalid Prefix",
	} {
		if got := origin(a).String(); got != want {
			t.Errorf("%v: %s, want %s", a, got, want)
		}
	}
}
