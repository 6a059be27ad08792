package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"lunar/appliance/api"
)

// maxSignIn bounds the body of a sign-in, bodyLimit the time in which a body comes.
const (
	maxSignIn = 4 << 10
	bodyLimit = 10 * time.Second
)

// Signed is what a page knows of its session.
type Signed struct {
	User string `json:"user"`
	Role string `json:"role"`
	CSRF string `json:"csrf"` // to be sent in the header Lunar-CSRF of each change
	Node string `json:"node"`
}

type signIn struct {
	User     string `json:"user"`
	Password string `json:"password"`
}

// cookieName has the prefix by which browsers let no other host and no plain connection set it.
func (c *Console) cookieName() string {
	if c.o.Secure {
		return "__Host-lunar"
	}
	return "lunar"
}

func (c *Console) cookie(value string, age time.Duration) *http.Cookie {
	out := &http.Cookie{Name: c.cookieName(), Value: value, Path: "/", HttpOnly: true, Secure: c.o.Secure, SameSite: http.SameSiteStrictMode, MaxAge: int(age.Seconds())}
	if age == 0 {
		out.MaxAge = -1
	}
	return out
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	var in signIn
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyLimit))
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSignIn))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil || in.User == "" || in.Password == "" || len(in.User) > maxName || len(in.Password) > MaxPassword {
		c.refuse(w, http.StatusBadRequest, api.Errorf(api.Invalid, "give a name and a password"))
		return
	}
	if wait, ok := c.attempts.allow(r.RemoteAddr, in.User); !ok {
		c.failed.Add(1)
		c.tooMany(w, wait)
		return
	}
	u, err := c.check(r.Context(), in)
	if err != nil {
		c.failed.Add(1)
		c.o.Log.Warn("web sign-in refused", "user", in.User, "remote", r.RemoteAddr, "error", err)
		c.refuseSignIn(w, err)
		return
	}
	id, s := c.sessions.begin(u)
	c.o.Log.Info("web sign-in", "user", u.Name, "role", u.Role, "remote", r.RemoteAddr)
	http.SetCookie(w, c.cookie(id, ageLimit))
	c.tell(w, s)
}

var (
	errPassword = errors.New("the name or the password is wrong")
	errHashers  = errors.New("too many sign in at this moment")
)

// check takes as long for a user that is not there.
func (c *Console) check(ctx context.Context, in signIn) (User, error) {
	u, err := c.o.Users.WebUser(ctx, in.User)
	missing := errors.Is(err, ErrNoUser)
	if err != nil && !missing {
		return u, err
	}
	select {
	case c.hashers <- struct{}{}:
		defer func() { <-c.hashers }()
	case <-time.After(hasherWait):
		return u, errHashers
	case <-ctx.Done():
		return u, ctx.Err()
	}
	if missing {
		_, _ = Verify(c.dummy(), in.Password)
		return u, errPassword
	}
	ok, err := Verify(u.Hash, in.Password)
	if err == nil && !ok {
		err = errPassword
	}
	return u, err
}

func (c *Console) refuseSignIn(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errPassword):
		c.refuse(w, http.StatusUnauthorized, api.Errorf(codeSignIn, "%v", err).WithHint("`lunarctl web user list` shows who may sign in"))
	case errors.Is(err, errHashers):
		c.tooMany(w, hasherWait)
	default:
		c.refuse(w, http.StatusServiceUnavailable, api.Errorf(api.Unavailable, "nobody can sign in now: %v", err).
			WithHint("sign in at another node, or see `lunarctl cluster status`"))
	}
}

func (c *Console) tooMany(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", fmt.Sprint(int(wait.Round(time.Second).Seconds())))
	c.refuse(w, http.StatusTooManyRequests, api.Errorf(codeSlow, "too many tries").WithHint("try again in %s", wait.Round(time.Second)))
}

func (c *Console) tell(w http.ResponseWriter, s *session) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(Signed{User: s.user, Role: s.role, CSRF: s.csrf, Node: c.o.Node}); err != nil {
		c.o.Log.Debug("web answer", "error", err)
	}
}

// who tells a page that was loaded anew who is signed in.
func (c *Console) who(w http.ResponseWriter, r *http.Request) {
	if s, ok := c.signed(w, r); ok {
		c.tell(w, s)
	}
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request) {
	s, ok := c.signed(w, r)
	if !ok || !c.mayChange(w, r, s) {
		return
	}
	c.drop(w, r)
	w.WriteHeader(http.StatusNoContent)
}

// drop ends the session of a request and its cookie.
func (c *Console) drop(w http.ResponseWriter, r *http.Request) {
	if k, err := r.Cookie(c.cookieName()); err == nil {
		c.sessions.end(k.Value)
	}
	http.SetCookie(w, c.cookie("", 0))
}

// signed finds the session of a request, or refuses it.
func (c *Console) signed(w http.ResponseWriter, r *http.Request) (*session, bool) {
	var s *session
	if k, err := r.Cookie(c.cookieName()); err == nil {
		s = c.sessions.find(k.Value, r.Header.Get(unattendedHeader) == "")
	}
	if s != nil && !c.known.good(r.Context(), s) {
		c.drop(w, r)
		s = nil
	}
	if s == nil {
		c.refuse(w, http.StatusUnauthorized, api.Errorf(codeSignIn, "nobody is signed in"))
	}
	return s, s != nil
}

func (c *Console) mayChange(w http.ResponseWriter, r *http.Request, s *session) bool {
	if s.proves(r) {
		return true
	}
	c.refuse(w, http.StatusForbidden, api.Errorf(codeForbidden, "the request does not come from a page of this session").WithHint("load the page anew"))
	return false
}
