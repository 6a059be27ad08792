package iscsi

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lunar/iscsi/pdu"
)

// dataOutPDU encodes a Data-Out as an initiator sends it.
func dataOutPDU(itt, ttt, sn uint32, offset int, data []byte) []byte {
	var h pdu.Header
	h.Reset(pdu.OpDataOut, pdu.FlagFinal)
	h.SetITT(itt)
	h.SetTTT(ttt)
	pdu.DataOut{Header: &h}.SetDataSN(sn)
	pdu.DataOut{Header: &h}.SetOffset(uint32(offset))
	return (&client{}).encode(&h, data)
}

// FuzzStream feeds the full feature phase any bytes: nothing panics, and when the connection has
// ended no command is left in it.
func FuzzStream(f *testing.F) {
	seed := func(digest bool, pdus ...[]byte) { f.Add(digest, bytes.Join(pdus, nil)) }
	c := &client{cmdSN: 3}
	read := c.encode(c.command(read10(0, 8), pdu.FlagRead, 4096), nil)
	write := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	seed(false, read, read)
	seed(false, c.encode(write, pattern(512, 1)), dataOutPDU(write.ITT(), 1, 0, 512, pattern(512, 1)))
	unsolicited := c.command(write10(0, 2), pdu.FlagWrite, 1024)
	unsolicited.SetFlags(unsolicited.Flags() &^ pdu.FlagFinal)
	seed(false, c.encode(unsolicited, nil), dataOutPDU(unsolicited.ITT(), pdu.NoTag, 0, 0, pattern(1024, 1)))
	seed(false, c.encode(c.request(pdu.OpNopOut, pdu.FlagFinal), []byte("ping")))
	seed(false, c.encode(c.request(pdu.OpTextRequest, pdu.FlagFinal), text("SendTargets", "")))
	seed(false, c.encode(c.request(pdu.OpTaskRequest, pdu.FlagFinal|byte(pdu.LUNReset)), nil), read)
	seed(false, c.encode(c.request(pdu.OpTaskRequest, pdu.FlagFinal|byte(pdu.TargetColdReset)), nil))
	seed(false, c.encode(c.request(pdu.OpLogoutRequest, pdu.FlagFinal), nil))
	seed(false, c.encode(c.request(pdu.OpSNACK, pdu.FlagFinal), nil))
	c.dataDigest = true
	seed(true, c.encode(c.command(write10(0, 2), pdu.FlagWrite, 1024), pattern(1024, 1)))
	f.Fuzz(func(t *testing.T, digest bool, stream []byte) {
		keys := []string{"InitialR2T", "No", "MaxOutstandingR2T", "2", "MaxBurstLength", "512", "FirstBurstLength", "512"}
		if digest {
			keys = append(keys, "DataDigest", "CRC32C")
		}
		s, _ := newPump(t, keys...)
		s.feedOpen(stream)
		c := s.conn
		c.close(errCut)
		s.lane.pump()
		if !c.finished || c.tasks.count != 0 || c.running != 0 || c.expecting != 0 || c.bytes != 0 || c.managing != 0 {
			t.Fatalf("finished %v, tasks %d, running %d, expecting %d, bytes %d, managing %d",
				c.finished, c.tasks.count, c.running, c.expecting, c.bytes, c.managing)
		}
		if n := c.counters.inFlight.Load(); n != 0 || c.win.used < 0 {
			t.Fatalf("%d in flight, window used %d", n, c.win.used)
		}
	})
}

// FuzzLoginStream does the same before the login.
func FuzzLoginStream(f *testing.F) {
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	f.Add((&client{}).encode(&h, text(hello...)))
	h.SetFlags(pdu.LoginFlags(false, true, pdu.StageSecurity, 0))
	f.Add((&client{}).encode(&h, text(hello...)))
	f.Add(make([]byte, 48))
	f.Fuzz(func(t *testing.T, stream []byte) {
		s := newBarePump(t)
		s.feedOpen(stream)
		s.conn.close(errCut)
		s.lane.pump()
		if !s.conn.finished {
			t.Fatal("the connection did not end")
		}
	})
}

// TestHostile: while hostile connections send garbage, stall half-way, or come and go, the others
// go on, and what the hostile ones held comes back. LUNAR's end-to-end tests do it with 1,000.
func TestHostile(t *testing.T) {
	good, bad, rounds := 20, 20, 25
	if testing.Short() {
		good, bad = 8, 12
	}
	f := newFixture(t, func(o *Options) { o.LoginTime, o.StallTime, o.IdleTime = 6*time.Second, 6*time.Second, time.Hour })
	f.newTarget(hostileTarget, &memory{data: make([]byte, 8<<20), post: f.post})
	var clients []*client
	for i := range good {
		c := f.dial()
		c.isid[5] = byte(i)
		c.name += "-user"
		c.login()
		c.clearAttention()
		clients = append(clients, c)
	}
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	var once sync.Once
	end := func() {
		once.Do(func() { close(stop) })
		attackers.Wait()
	}
	t.Cleanup(end)
	for i := range bad {
		attackers.Add(1)
		go func() {
			defer attackers.Done()
			r := rand.New(rand.NewPCG(7, uint64(i)))
			for {
				select {
				case <-stop:
					return
				case <-time.After(60 * time.Millisecond):
					attacks[i%len(attacks)](f.addr, r)
				}
			}
		}()
	}
	var users sync.WaitGroup
	var done atomic.Int64
	for i, c := range clients {
		users.Add(1)
		go func() {
			defer users.Done()
			want := pattern(4096, byte(i))
			for range rounds {
				c.send(c.command(write10(i*8, 8), pdu.FlagWrite, 4096), want)
				c.good()
				if got := c.read(i*8, 8); !bytes.Equal(got, want) {
					t.Errorf("user %d read something else", i)
					return
				}
				done.Add(1)
			}
		}()
	}
	users.Wait()
	end()
	if int(done.Load()) != good*rounds {
		t.Errorf("%d rounds of %d", done.Load(), good*rounds)
	}
	eventually(t, "the hostile connections are gone", func() bool { return f.server.Connections() == good })
}

// hostileTarget is where hostile clients log in: on the users' target their garbage would be good
// for a reset now and then.
const hostileTarget = "iqn.2025-01.test.lunar:hostile"

// attacks are what hostile clients do on one connection each.
var attacks = []func(addr string, r *rand.Rand){
	func(addr string, r *rand.Rand) { // garbage
		attack(addr, func(c net.Conn) { _, _ = c.Write(garbage(r, 300)) })
	},
	func(addr string, r *rand.Rand) { // half a header, then silence
		attack(addr, func(c net.Conn) { _, _ = c.Write(garbage(r, 20)); drain(c) })
	},
	func(addr string, r *rand.Rand) { // comes and goes
		attack(addr, func(net.Conn) {})
	},
	func(addr string, r *rand.Rand) { // logs in and sends garbage
		attack(addr, func(c net.Conn) { enter(c, r); _, _ = c.Write(garbage(r, 2000)); drain(c) })
	},
	func(addr string, r *rand.Rand) { // reads much and takes nothing
		attack(addr, func(c net.Conn) {
			enter(c, r)
			for sn := range uint32(64) {
				h := scsiHeader(read10(0, 256), pdu.FlagRead, 128<<10)
				h.SetITT(sn)
				h.SetCmdSN(sn)
				_, _ = c.Write(h[:])
			}
			time.Sleep(50 * time.Millisecond)
		})
	},
	func(addr string, r *rand.Rand) { // announces writes and never sends them
		attack(addr, func(c net.Conn) {
			enter(c, r)
			for sn := range uint32(16) {
				h := scsiHeader(write10(4000, 64), pdu.FlagWrite, 32<<10)
				h.SetITT(sn)
				h.SetCmdSN(sn)
				_, _ = c.Write(h[:])
			}
			drain(c)
		})
	},
}

func attack(addr string, do func(net.Conn)) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		time.Sleep(time.Millisecond)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	do(c)
}

// drain reads until the target closes.
func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func garbage(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	p[4] = 0 // no AHS, and a short data segment: more of it is looked at
	p[5], p[6] = 0, 0
	return p
}

func enter(c net.Conn, r *rand.Rand) {
	var h pdu.Header
	h.Reset(pdu.OpLoginRequest, pdu.LoginFlags(true, false, pdu.StageOperational, pdu.StageFull))
	h.SetImmediate()
	be.PutUint32(h[8:], r.Uint32())
	_, _ = c.Write((&client{}).encode(&h, text("InitiatorName", testInitiator, "TargetName", hostileTarget)))
	var reply [48]byte
	_, _ = io.ReadFull(c, reply[:])
	n := int(reply[7]) + int(reply[6])<<8
	_, _ = io.CopyN(io.Discard, c, int64(n+pdu.Pad(n)))
}

// TestBulkLogins: many logins and logouts during I/O of another session.
func TestBulkLogins(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	f := newFixture(t)
	f.newTarget(hostileTarget, f.disk)
	c := f.ready()
	stop := make(chan struct{})
	var io sync.WaitGroup
	io.Add(1)
	go func() {
		defer io.Done()
		for {
			select {
			case <-stop:
				return
			default:
				c.read(0, 8)
			}
		}
	}()
	r := rand.New(rand.NewPCG(1, 1))
	for range n {
		attack(f.addr, func(c net.Conn) { enter(c, r) })
	}
	close(stop)
	io.Wait()
	eventually(t, "one session is left", func() bool { return len(f.server.Sessions()) == 1 && f.server.Connections() == 1 })
	if got := f.server.Totals().Logins; got != uint64(n)+1 {
		t.Errorf("%d logins, want %d", got, n+1)
	}
}
