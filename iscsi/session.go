package iscsi

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lunar/iscsi/pdu"
	"lunar/iscsi/scsi"
)

// sessionKey is an I_T nexus: what session reinstatement compares, RFC 7143 §6.3.5.
type sessionKey struct {
	initiator string
	isid      [6]byte
	target    string
	group     uint16
}

// session is a session from the end of its login to its end. Its fields do not change once the
// registry knows it, asked excepted, and nexus, which is its lane's.
type session struct {
	key                      sessionKey
	tsih                     uint16
	discovery                bool
	alias                    string // the initiator's
	headerDigest, dataDigest bool
	export                   *Export // nil in a discovery session
	nexus                    *scsi.Nexus
	conn                     *conn
	since                    time.Time
	asked                    atomic.Bool // to leave, by RemoveTarget
}

// registry knows the sessions by handle and by nexus.
type registry struct {
	mu     sync.Mutex // guards all fields
	byTSIH map[uint16]*session
	byKey  map[sessionKey]*session
	last   uint16
	closed bool
}

func newRegistry() *registry {
	return &registry{byTSIH: map[uint16]*session{}, byKey: map[sessionKey]*session{}}
}

// claim enters s, or returns the session of the same nexus that has to end first. tsih is the
// handle to go on with, 0 for a new one. The status is not LoginSuccess when neither can be.
func (r *registry) claim(s *session, tsih uint16) (old *session, status pdu.LoginStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, pdu.LoginUnavailable
	}
	if !s.discovery {
		if old = r.byKey[s.key]; old != nil {
			return old, pdu.LoginSuccess
		}
	}
	if s.tsih = tsih; tsih == 0 || r.byTSIH[tsih] != nil {
		s.tsih = r.free()
	}
	if s.tsih == 0 {
		return nil, pdu.LoginOutOfResources
	}
	r.byTSIH[s.tsih] = s
	if !s.discovery {
		r.byKey[s.key] = s
	}
	return nil, pdu.LoginSuccess
}

// free finds a handle that no session has: never 0, and the one longest out of use.
func (r *registry) free() uint16 {
	for range 1<<16 - 1 {
		if r.last++; r.last == 0 {
			r.last = 1
		}
		if r.byTSIH[r.last] == nil {
			return r.last
		}
	}
	return 0
}

func (r *registry) release(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byTSIH[s.tsih] == s {
		delete(r.byTSIH, s.tsih)
	}
	if r.byKey[s.key] == s {
		delete(r.byKey, s.key)
	}
}

func (r *registry) get(tsih uint16) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byTSIH[tsih]
}

// list is the sessions of one target, or all if target is empty, by handle.
func (r *registry) list(target string) []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*session
	for _, s := range r.byTSIH {
		if target == "" || s.key.target == target {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.tsih, b.tsih) })
	return all
}

func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
}

// portName is the initiator port's name, RFC 7143 §4.2.7.1 and SAM-5: name,i,0xISID.
func (k *sessionKey) portName() string {
	return fmt.Sprintf("%s,i,0x%012x", k.initiator, k.isid[:])
}
