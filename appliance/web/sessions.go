package web

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"
)

// The bounds of sessions.
const (
	maxSessions     = 256
	maxUserSessions = 16
	idleLimit       = 30 * time.Minute // without a call that a person made
	ageLimit        = 12 * time.Hour
	maxCalls        = 16 // of one session at once
	maxStreams      = 4  // of them, that last
)

// session is one browser that is signed in.
type session struct {
	user    string
	role    string
	version string // of the user when they signed in
	csrf    string
	begun   time.Time
	used    time.Time // guarded by sessions.mu, as are the counts
	calls   int
	streams int
}

type sessionKey [sha256.Size]byte

// sessions are in memory: a node that starts anew asks everyone to sign in. Only hashes of their secrets are kept.
type sessions struct {
	now func() time.Time

	mu  sync.Mutex // guards all
	all map[sessionKey]*session
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, all: map[sessionKey]*session{}}
}

func secret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func keyOf(id string) sessionKey { return sha256.Sum256([]byte(id)) }

// begin makes a session; where there are too many, the one that was not used for the longest time ends.
func (s *sessions) begin(u User) (id string, _ *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.sweep(now)
	s.makeRoom(maxUserSessions, func(o *session) bool { return o.user == u.Name })
	s.makeRoom(maxSessions, func(*session) bool { return true })
	id = secret()
	one := &session{user: u.Name, role: u.Role, version: u.Version, csrf: secret(), begun: now, used: now}
	s.all[keyOf(id)] = one
	return id, one
}

func (s *sessions) sweep(now time.Time) {
	for k, o := range s.all {
		if now.Sub(o.used) > idleLimit || now.Sub(o.begun) > ageLimit {
			delete(s.all, k)
		}
	}
}

// makeRoom ends the least used of those that match, unless they are fewer than limit.
func (s *sessions) makeRoom(limit int, match func(*session) bool) {
	var oldest sessionKey
	var least *session
	n := 0
	for k, o := range s.all {
		if !match(o) {
			continue
		}
		n++
		if least == nil || o.used.Before(least.used) {
			oldest, least = k, o
		}
	}
	if n >= limit {
		delete(s.all, oldest)
	}
}

// find gives the session of a cookie, nil if there is none; touch counts as use.
func (s *sessions) find(id string, touch bool) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.sweep(now)
	one := s.all[keyOf(id)]
	if one != nil && touch {
		one.used = now
	}
	return one
}

func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, keyOf(id))
}

// count is how many there are.
func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(s.now())
	return len(s.all)
}

// enter counts a call; done takes it back. ok is false where the session has too many.
func (s *sessions) enter(one *session, stream bool) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.calls >= maxCalls || stream && one.streams >= maxStreams {
		return nil, false
	}
	one.calls++
	if stream {
		one.streams++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		one.calls--
		if stream {
			one.streams--
		}
	}, true
}
