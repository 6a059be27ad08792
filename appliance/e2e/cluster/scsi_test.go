package cluster

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/e2e/cluster/load"
	"lunar/appliance/e2e/lab"
	"lunar/iscsi/scsi"
)

// session logs an initiator in to a node, and takes the unit attentions of that away.
func (b *bench) session(i int, initiator string) *load.Session {
	b.t.Helper()
	s, err := load.Login(b.ctx, b.Nodes[i].Portal(), lab.ClusterTarget, "iqn.2026-01.lunar.test:"+initiator, uint32(i+1), 10*time.Second)
	check(b.t, err)
	b.t.Cleanup(s.Close)
	attentions(b.t, s)
	return s
}

// attentions takes what unit attentions there are.
func attentions(t *testing.T, s *load.Session) (senses []uint32) {
	t.Helper()
	for range 16 {
		a, err := s.Do(make([]byte, 6), nil, 0)
		check(t, err)
		if a.Status == scsi.Good {
			return senses
		}
		senses = append(senses, a.Sense)
	}
	t.Fatalf("not ready: %06x", senses)
	return nil
}

// good runs a command that has to succeed.
func good(t *testing.T, s *load.Session, cdb, out []byte, want int) []byte {
	t.Helper()
	for range 5 {
		a, err := s.Do(cdb, out, want)
		check(t, err)
		if a.Status == scsi.Good {
			return a.Data
		}
		if a.Key() != 6 {
			t.Fatalf("command %02x %02x: %v", cdb[0], cdb[1], a.Err())
		}
	}
	t.Fatalf("command %02x: unit attentions without end", cdb[0])
	return nil
}

// conflict runs a command that has to meet a reservation.
func conflict(t *testing.T, what string, s *load.Session, cdb, out []byte) {
	t.Helper()
	attentions(t, s)
	if a, err := s.Do(cdb, out, 0); err != nil || a.Status != scsi.ReservationConflict {
		t.Errorf("%s: %v, %v: want a reservation conflict", what, a.Err(), err)
	}
}

// TestOneLUN proves that the nodes' LUNs are one to an initiator.
func TestOneLUN(t *testing.T) {
	b := newBench(t, 3)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"identity", sameIdentity}, {"groups", groupsFollow}, {"reservations", reservationsGovern},
		{"counter", counter}, {"resize", resizeIsTold}, {"unmap", unmapIsSeen},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, &bench{Cluster: b.Cluster, t: t, ctx: b.ctx}) })
	}
	b.clean()
}

func sameIdentity(t *testing.T, b *bench) {
	var first string
	for i, n := range b.Nodes {
		s := b.session(i, "identity")
		serial := good(t, s, load.Inquiry(0x80), nil, 255)
		identity := fmt.Sprintf("serial %x, naa %x", serial[4:], naa(good(t, s, load.Inquiry(0x83), nil, 255)))
		if first == "" {
			first = identity
			t.Log(identity)
		}
		if identity != first {
			t.Errorf("node %s: %s; node %s: %s", b.Nodes[0].Name, first, n.Name, identity)
		}
	}
}

// naa is the logical unit's NAA designator in VPD page 83h.
func naa(page []byte) []byte {
	for at := 4; at+4 <= len(page); at += 4 + int(page[at+3]) {
		if page[at+1]&0x3F == 3 {
			return page[at+4 : at+4+int(page[at+3])]
		}
	}
	return nil
}

// groups are the states by target port group, as REPORT TARGET PORT GROUPS of a node tells them.
func (b *bench) groups(s *load.Session) map[int]int {
	b.t.Helper()
	data := good(b.t, s, load.ReportGroups(), nil, 256)
	out := map[int]int{}
	for at := 4; at+8 <= len(data); at += 8 + 4*int(data[at+7]) {
		out[int(binary.BigEndian.Uint16(data[at+2:]))] = int(data[at] & 0xF)
	}
	return out
}

func groupsFollow(t *testing.T, b *bench) {
	const optimized, nonOptimized = 0, 1
	var sessions []*load.Session
	for i := range b.Nodes {
		sessions = append(sessions, b.session(i, "groups"))
	}
	await := func(victim, state int) {
		t.Helper()
		for i, s := range sessions {
			err := lab.Poll(5*time.Second, func() error {
				got := b.groups(s)
				if len(got) != len(b.Nodes) {
					return fmt.Errorf("%d groups, not one per node", len(got))
				}
				for group, is := range got {
					want := optimized
					if group == victim+1 {
						want = state
					}
					if is != want {
						return fmt.Errorf("through %s: group %d is in state %d, not %d", b.Nodes[i].Name, group, is, want)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	await(0, optimized)
	coordinator, err := b.Coordinator(b.ctx)
	check(t, err)
	victim := b.Others(coordinator)[0]
	number := int(victim.Name[1] - '1')
	write, block := load.Write(0, load.Block, false), make([]byte, load.Block)
	good(t, sessions[number], write, block, 0) // allocated, and so direct from now on
	check(t, victim.CutPath())
	good(t, sessions[number], write, block, 0) // so that it notices
	await(number, nonOptimized)
	check(t, victim.MendPath())
	await(number, optimized)
}

func reservationsGovern(t *testing.T, b *bench) {
	const keyA, keyB = 0xA11CE, 0xB0B
	block := make([]byte, load.Block)
	write := load.Write(mib, load.Block, false)
	a1, b2, b3 := b.session(0, "alice"), b.session(1, "bob"), b.session(2, "bob")
	out := func(s *load.Session, action byte, key, service uint64) {
		t.Helper()
		cdb, list := load.ReserveOut(action, load.WriteExclusiveRO, key, service)
		good(t, s, cdb, list, 0)
	}
	out(a1, load.PRRegister, 0, keyA)
	out(a1, load.PRReserve, keyA, 0)
	good(t, a1, write, block, 0)
	conflict(t, "bob's write through n2 beside alice's reservation through n1", b2, write, block)
	conflict(t, "bob's write through n3 beside alice's reservation through n1", b3, write, block)
	out(b3, load.PRRegister, 0, keyB)
	good(t, b3, write, block, 0)
	out(b3, load.PRPreempt, keyB, keyA)
	conflict(t, "alice's write through n1 after bob's preempt through n3", a1, write, block)
	conflict(t, "bob's write through n2, where he is not registered", b2, write, block)
	for i, s := range []*load.Session{a1, b2, b3} {
		keys := good(t, s, load.ReserveIn(0), nil, 256)
		if n := binary.BigEndian.Uint32(keys[4:]); n != 8 || binary.BigEndian.Uint64(keys[8:]) != keyB {
			t.Errorf("node %s: %d bytes of keys: %x: want bob's alone", b.Nodes[i].Name, n, keys[8:])
		}
	}
	out(b3, load.PRClear, keyB, 0)
	attentions(t, a1)
	good(t, a1, write, block, 0)
}

// counter has initiators of all nodes count in one sector, by COMPARE AND WRITE alone.
func counter(t *testing.T, b *bench) {
	const at, each, perNode = 2 * mib, 25, 2
	good(t, b.session(0, "zero"), load.Write(at, load.Sector, false), make([]byte, load.Sector), 0)
	began := time.Now()
	var all sync.WaitGroup
	tries := make([]int, len(b.Nodes)*perNode)
	for i := range tries {
		s := b.session(i%len(b.Nodes), fmt.Sprintf("counter-%d", i))
		all.Go(func() {
			for range each {
				tries[i] += increment(t, s, at)
			}
		})
	}
	all.Wait()
	total := 0
	for _, n := range tries {
		total += n
	}
	for i, n := range b.Nodes {
		got := binary.BigEndian.Uint64(good(t, b.session(i, "reader"), load.Read(at, load.Sector), nil, load.Sector))
		if want := uint64(each * len(tries)); got != want {
			t.Errorf("through %s the counter is %d, not %d", n.Name, got, want)
		}
	}
	t.Logf("%d increments by %d tries within %v", each*len(tries), total, time.Since(began).Round(time.Millisecond))
}

// increment returns how many tries it took.
func increment(t *testing.T, s *load.Session, at int64) (tries int) {
	for {
		tries++
		a, err := s.Do(load.Read(at, load.Sector), nil, load.Sector)
		if err != nil || len(a.Data) != load.Sector {
			if err == nil && (a.Key() == 6 || a.Status == scsi.Busy) {
				continue
			}
			t.Errorf("read: %v, %v", a.Err(), err)
			return tries
		}
		next := append([]byte{}, a.Data...)
		binary.BigEndian.PutUint64(next, binary.BigEndian.Uint64(next)+1)
		a, err = s.Do(load.CompareAndWrite(at, 1), append(a.Data, next...), 0)
		switch {
		case err != nil:
			t.Error(err)
			return tries
		case a.Status == scsi.Good:
			return tries
		case a.Key() == 0xE, a.Key() == 6, a.Status == scsi.Busy: // another was first
		default:
			t.Errorf("COMPARE AND WRITE: %v", a.Err())
			return tries
		}
	}
}

func resizeIsTold(t *testing.T, b *bench) {
	const capacityChanged = 0x062A09
	var sessions []*load.Session
	for i := range b.Nodes {
		sessions = append(sessions, b.session(i, "resize"))
	}
	_, err := b.Nodes[1].API.ChangeImage(b.ctx, lab.ClusterImage, api.ChangeImage{Size: imageSize + 64*mib})
	check(t, err)
	for i, s := range sessions {
		err := lab.Poll(3*time.Second, func() error {
			for _, sense := range attentions(t, s) {
				if sense == capacityChanged {
					return nil
				}
			}
			return fmt.Errorf("node %s does not tell that the capacity has changed", b.Nodes[i].Name)
		})
		if err != nil {
			t.Error(err)
		}
		last := binary.BigEndian.Uint64(good(t, s, load.Capacity(), nil, 32))
		if got := int64(last+1) * load.Sector; got != imageSize+64*mib {
			t.Errorf("node %s: capacity %d", b.Nodes[i].Name, got)
		}
	}
}

func unmapIsSeen(t *testing.T, b *bench) {
	const at = 4 * mib
	pattern := make([]byte, load.Block)
	for i := range pattern {
		pattern[i] = 0x5A
	}
	var sessions []*load.Session
	for i := range b.Nodes {
		sessions = append(sessions, b.session(i, "unmap"))
	}
	for i, s := range sessions {
		good(t, s, load.Write(at, load.Block, false), pattern, 0)
		for k, o := range sessions {
			if got := good(t, o, load.Read(at, load.Block), nil, load.Block); string(got) != string(pattern) {
				t.Errorf("a write through %s is not seen through %s", b.Nodes[i].Name, b.Nodes[k].Name)
			}
		}
		cdb, list := load.Unmap(at, 64<<10)
		good(t, s, cdb, list, 0)
		for k, o := range sessions {
			if got := good(t, o, load.Read(at, load.Block), nil, load.Block); string(got) != string(make([]byte, load.Block)) {
				t.Errorf("UNMAP through %s is not seen through %s", b.Nodes[i].Name, b.Nodes[k].Name)
			}
		}
	}
}
