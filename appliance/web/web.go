package web

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"lunar/appliance/api"
)

// User is who may sign in.
type User struct {
	Name    string
	Role    string // api.WebAdmin or api.WebReadOnly
	Hash    string // made by Hash
	Version string // another one after each change of the user
}

// ErrNoUser is for a name that no user has.
var ErrNoUser = errors.New("web: no such user")

// Users knows who may sign in.
type Users interface {
	// WebUser gives a user, or ErrNoUser; other errors mean that it is not known now.
	WebUser(ctx context.Context, name string) (User, error)
}

// Options for New; every field but Now is needed.
type Options struct {
	API    http.Handler // the control API
	Users  Users
	Secure bool // served by TLS; else on a loopback address only
	Node   string
	Log    *slog.Logger
	Now    func() time.Time // default time.Now
}

var errMissing = errors.New("web: API, Users, Node and Log are needed")

// Console is the web console of one node.
type Console struct {
	o        Options
	sessions *sessions
	attempts *attempts
	known    *known
	hashers  chan struct{} // has as many tokens as passwords are checked at once
	dummy    func() string // hash of no password, checked for users that are not there
	origin   *http.CrossOriginProtection
	handler  http.Handler
	failed   atomic.Uint64 // sign-ins
}

// New makes a Console.
func New(o Options) (*Console, error) {
	if o.API == nil || o.Users == nil || o.Node == "" || o.Log == nil {
		return nil, errMissing
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	files, err := loadFiles()
	if err != nil {
		return nil, err
	}
	c := &Console{
		o: o, sessions: newSessions(o.Now), attempts: newAttempts(o.Now), known: newKnown(o.Users, o.Now),
		hashers: make(chan struct{}, hashersAtOnce), dummy: sync.OnceValue(func() string { return Hash(secret()) }), origin: http.NewCrossOriginProtection(),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /session", c.signIn)
	mux.HandleFunc("GET /session", c.who)
	mux.HandleFunc("DELETE /session", c.signOut)
	for _, one := range calls {
		method, path := cut(one.pattern)
		mux.HandleFunc(method+" "+prefix+path, c.forward(one))
	}
	mux.HandleFunc(prefix+"/", func(w http.ResponseWriter, r *http.Request) { c.noCall(w, r) })
	mux.Handle("/", files)
	c.handler = c.protect(mux)
	return c, nil
}

// Handler serves the console; it is for an HTTP server that bounds connections and headers.
func (c *Console) Handler() http.Handler { return c.handler }

// SignInsFailed is how many sign-ins were refused.
func (c *Console) SignInsFailed() uint64 { return c.failed.Load() }

// Sessions is how many browsers are signed in.
func (c *Console) Sessions() int { return c.sessions.count() }

// The kinds of refusals that the console adds to those of the control API.
const (
	codeSignIn    api.Code = "sign-in"   // nobody is signed in
	codeForbidden api.Code = "forbidden" // not with this role, or not by this page
	codeSlow      api.Code = "too-many"
)

// refuse answers in the control API's own form.
func (c *Console) refuse(w http.ResponseWriter, status int, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(e); err != nil {
		c.o.Log.Debug("web answer", "error", err)
	}
}

func (c *Console) noCall(w http.ResponseWriter, r *http.Request) {
	c.refuse(w, http.StatusNotFound, api.Errorf(api.Invalid, "the console knows no call %s %s", r.Method, r.URL.Path).WithHint("lunarctl knows all"))
}
