package web

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The bounds of sign-in. An IPv6 address counts as its /64, which is what one host has.
const (
	addressBurst  = 10
	addressEvery  = 6 * time.Second // one more each
	userBurst     = 20
	userEvery     = 3 * time.Second
	maxCounted    = 2048 // addresses and users that are remembered
	hashersAtOnce = 2
	hasherWait    = 5 * time.Second
)

// attempts bounds the tries to sign in, by address and by user.
type attempts struct {
	now func() time.Time

	mu  sync.Mutex // guards all
	all map[string]*counted
}

type counted struct {
	limiter *rate.Limiter
	used    time.Time
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now: now, all: map[string]*counted{}}
}

// allow counts a try; wait is how long until the next one, where this one is too many.
func (a *attempts) allow(remote, user string) (wait time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	for _, k := range []struct {
		key   string
		every time.Duration
		burst int
	}{{"address " + host(remote), addressEvery, addressBurst}, {"user " + user, userEvery, userBurst}} {
		l := a.limiter(k.key, k.every, k.burst, now)
		if !l.AllowN(now, 1) {
			return k.every, false
		}
	}
	return 0, true
}

func (a *attempts) limiter(key string, every time.Duration, burst int, now time.Time) *rate.Limiter {
	c := a.all[key]
	if c == nil {
		if len(a.all) >= maxCounted {
			a.forgetOldest()
		}
		c = &counted{limiter: rate.NewLimiter(rate.Every(every), burst)}
		a.all[key] = c
	}
	c.used = now
	return c.limiter
}

func (a *attempts) forgetOldest() {
	var oldest string
	for k, c := range a.all {
		if oldest == "" || c.used.Before(a.all[oldest].used) {
			oldest = k
		}
	}
	delete(a.all, oldest)
}

// host is what tells one remote machine from another.
func host(remote string) string {
	h, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	ip, err := netip.ParseAddr(h)
	if err != nil {
		return h
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64)
		return p.String()
	}
	return ip.String()
}
