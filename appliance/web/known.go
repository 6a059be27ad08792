package web

import (
	"context"
	"errors"
	"sync"
	"time"
)

// knownFor is how long a user is taken for unchanged, askLimit how long the database is asked.
const (
	knownFor = 5 * time.Second
	askLimit = 2 * time.Second
	maxName  = 64
)

// known spares the database a question per call. While it does not answer, who is signed in stays so: the console is
// needed most when a cluster is ill, and a session ends by its age anyway.
type known struct {
	users Users
	now   func() time.Time

	mu  sync.Mutex // guards all
	all map[string]knownUser
}

type knownUser struct {
	version string // empty: there is none
	role    string
	asked   time.Time
}

func newKnown(users Users, now func() time.Time) *known {
	return &known{users: users, now: now, all: map[string]knownUser{}}
}

// good tells whether the user of a session is still what they were when they signed in.
func (k *known) good(ctx context.Context, s *session) bool {
	k.mu.Lock()
	u, ok := k.all[s.user]
	k.mu.Unlock()
	if !ok || k.now().Sub(u.asked) >= knownFor {
		u = k.ask(ctx, s, u)
	}
	return u.version == s.version && u.role == s.role
}

// ask goes on when the browser gives its request up: else who does so at the right moments would stay signed in.
func (k *known) ask(ctx context.Context, s *session, last knownUser) knownUser {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
	defer cancel()
	u, err := k.users.WebUser(ctx, s.user)
	next := knownUser{version: u.Version, role: u.Role}
	switch {
	case errors.Is(err, ErrNoUser):
		next = knownUser{}
	case err != nil && last.asked.IsZero():
		next = knownUser{version: s.version, role: s.role}
	case err != nil:
		next = last
	}
	next.asked = k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.all) >= maxSessions {
		clear(k.all)
	}
	k.all[s.user] = next
	return next
}
