package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/appliance/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const password = "correct horse battery"

// hashed costs less than others do.
var hashed = sync.OnceValue(func() string { return hash(password, 1, 64) })

// site is a console over a control API that only notes what reaches it.
type site struct {
	t       *testing.T
	console *Console
	now     time.Time
	reached []string
	bodies  []string
	last    *http.Request
	block   chan struct{} // calls wait for it, unless nil

	mu    sync.Mutex // guards what follows, and reached
	users map[string]User
	err   error
}

func newSite(t *testing.T, secure bool) *site {
	t.Helper()
	s := &site{t: t, now: time.Unix(1e9, 0), users: map[string]User{
		"ada": {Name: "ada", Role: api.WebAdmin, Hash: hashed(), Version: "1"},
		"bob": {Name: "bob", Role: api.WebReadOnly, Hash: hashed(), Version: "1"},
	}}
	var err error
	s.console, err = New(Options{API: http.HandlerFunc(s.call), Users: s, Secure: secure, Node: "n1",
		Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) WebUser(ctx context.Context, name string) (User, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return User{}, ctx.Err()
	}
	if s.err != nil {
		return User{}, s.err
	}
	u, ok := s.users[name]
	if !ok {
		return User{}, ErrNoUser
	}
	return u, nil
}

func (s *site) call(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.reached = append(s.reached, r.Method+" "+r.URL.EscapedPath())
	s.bodies = append(s.bodies, string(body))
	s.last = r
	s.mu.Unlock()
	if s.block != nil {
		<-s.block
	}
	w.WriteHeader(http.StatusOK)
}

// browser is one that keeps its cookie and its token.
type browser struct {
	*site
	cookie *http.Cookie
	Signed
}

func (s *site) do(method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost:9443"
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.console.Handler().ServeHTTP(w, r)
	return w
}

func (s *site) signIn(user string) *browser {
	s.t.Helper()
	w := s.do("POST", "/session", `{"user":"`+user+`","password":"`+password+`"}`)
	b := &browser{site: s}
	if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &b.Signed) != nil {
		s.t.Fatalf("sign-in: %d %s", w.Code, w.Body)
	}
	b.cookie = w.Result().Cookies()[0]
	return b
}

func (b *browser) do(method, path, body string, header ...string) *httptest.ResponseRecorder {
	return b.site.do(method, path, body, append([]string{"Cookie", b.cookie.Name + "=" + b.cookie.Value}, header...)...)
}

var wildcard = regexp.MustCompile(`\{[^}]*\}`)

// TestCalls takes every call of the table: nobody without a session, nobody's change without the token or from another
// site, no change by who may only look, and else the control API gets it as it is.
func TestCalls(t *testing.T) {
	s := newSite(t, true)
	ada, bob := s.signIn("ada"), s.signIn("bob")
	for _, one := range calls {
		method, path := cut(one.pattern)
		path = wildcard.ReplaceAllString(path, "a%2Fb")
		write := changes(method)
		t.Run(one.pattern, func(t *testing.T) {
			if write != (one.role == api.WebAdmin) {
				t.Errorf("%s is for %s", method, one.role)
			}
			tries := []struct {
				name string
				w    *httptest.ResponseRecorder
				want int
			}{
				{"nobody", s.do(method, prefix+path, "{}"), http.StatusUnauthorized},
				{"a cookie that never was", s.do(method, prefix+path, "{}", "Cookie", "__Host-lunar=x"), http.StatusUnauthorized},
				{"without a token", ada.do(method, prefix+path, "{}"), forWrite(write, http.StatusForbidden)},
				{"with another's token", ada.do(method, prefix+path, "{}", csrfHeader, bob.CSRF), forWrite(write, http.StatusForbidden)},
				{"from another site", ada.do(method, prefix+path, "{}", csrfHeader, ada.CSRF, "Sec-Fetch-Site", "cross-site"), forWrite(write, http.StatusForbidden)},
				{"who may look", bob.do(method, prefix+path, "{}", csrfHeader, bob.CSRF), forWrite(write, http.StatusForbidden)},
			}
			for _, try := range tries {
				if try.w.Code != try.want {
					t.Errorf("%s: %d, want %d: %s", try.name, try.w.Code, try.want, try.w.Body)
				}
			}
			s.reached, s.bodies = nil, nil
			if w := ada.do(method, prefix+path+"?q=1", `{"x":1}`, csrfHeader, ada.CSRF); w.Code != http.StatusOK {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if len(s.reached) != 1 || s.reached[0] != method+" "+path || s.bodies[0] != `{"x":1}` || s.last.URL.RawQuery != "q=1" {
				t.Errorf("the control API got %q %q %q", s.reached, s.bodies, s.last.URL)
			}
			if s.last.Header.Get("Cookie") != "" || s.last.Header.Get(csrfHeader) != "" {
				t.Errorf("the control API got the browser's secrets: %v", s.last.Header)
			}
		})
	}
}

func forWrite(write bool, status int) int {
	if write {
		return status
	}
	return http.StatusOK
}

// TestNoOtherCall has nothing beyond the table reach the control API.
func TestNoOtherCall(t *testing.T) {
	s := newSite(t, true)
	ada := s.signIn("ada")
	for _, path := range []string{
		"GET /api/v1/cluster/save", "POST /api/v1/cluster/token", "GET /api/v1/web/users", "POST /api/v1/web/users", "PUT /api/v1/images/v/p/hook",
		"POST /api/v1/transfers", "GET /v1/volumes", "GET /api/v1/volumes/../cluster/save", "POST /api/v1/volumes", "GET /api//v1/volumes", "GET /api/",
	} {
		method, path := cut(path)
		if w := ada.do(method, path, "{}", csrfHeader, ada.CSRF); w.Code < 300 {
			t.Errorf("%s %s: %d", method, path, w.Code)
		}
	}
	if len(s.reached) > 0 {
		t.Errorf("the control API got %q", s.reached)
	}
}

func TestSignIn(t *testing.T) {
	s := newSite(t, true)
	for _, c := range []struct {
		body string
		want int
	}{
		{`{"user":"ada","password":"wrong"}`, http.StatusUnauthorized},
		{`{"user":"eve","password":"` + password + `"}`, http.StatusUnauthorized},
		{`{"user":"","password":""}`, http.StatusBadRequest},
		{`{"user":"ada"`, http.StatusBadRequest},
		{`{"user":"ada","password":"` + strings.Repeat("x", MaxPassword+1) + `"}`, http.StatusBadRequest},
		{`{"user":"ada","password":"` + password + `","role":"admin"}`, http.StatusBadRequest},
		{strings.Repeat("x", maxSignIn+1), http.StatusBadRequest},
	} {
		w := s.do("POST", "/session", c.body)
		if w.Code != c.want || len(w.Result().Cookies()) > 0 {
			t.Errorf("%.60s: %d, want %d", c.body, w.Code, c.want)
		}
	}
	w := s.do("POST", "/session", `{"user":"ada","password":"`+password+`"}`)
	k := w.Result().Cookies()[0]
	if k.Name != "__Host-lunar" || !k.Secure || !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Path != "/" || k.Domain != "" {
		t.Errorf("cookie %v", k)
	}
	if w := s.do("POST", "/session", `{}`, "Sec-Fetch-Site", "cross-site"); w.Code != http.StatusForbidden {
		t.Errorf("from another site: %d", w.Code)
	}
	s.err = errors.New("no database")
	if w := s.do("POST", "/session", `{"user":"ada","password":"`+password+`"}`); w.Code != http.StatusServiceUnavailable {
		t.Errorf("without the database: %d", w.Code)
	}
}

// TestSignInIsSlow bounds the tries by address and by user; other addresses may go on.
func TestSignInIsSlow(t *testing.T) {
	a := newAttempts(time.Now)
	now := time.Unix(1e9, 0)
	a.now = func() time.Time { return now }
	n := 0
	for ; n < 1000; n++ {
		if _, ok := a.allow("192.0.2.1:5", "u"); !ok {
			break
		}
	}
	if n != addressBurst {
		t.Errorf("%d tries of one address", n)
	}
	if _, ok := a.allow("192.0.2.2:5", "u"); !ok {
		t.Error("another address must wait too")
	}
	now = now.Add(addressEvery)
	if _, ok := a.allow("192.0.2.1:6", "u"); !ok {
		t.Error("it waited in vain")
	}
	for n = 0; n < 1000; n++ {
		if _, ok := a.allow(netAddress(n), "v"); !ok {
			break
		}
	}
	if n != userBurst {
		t.Errorf("%d tries of one user", n)
	}
	for n = range 3 * maxCounted {
		a.allow(netAddress(n), netAddress(n))
	}
	if len(a.all) > maxCounted {
		t.Errorf("%d are remembered", len(a.all))
	}
	if host("[2001:db8::1]:5") != host("[2001:db8::ffff:2]:6") || host("[2001:db8:0:1::1]:5") == host("[2001:db8::1]:5") || host("[::ffff:192.0.2.1]:5") != host("192.0.2.1:6") {
		t.Error("machines are not told apart")
	}
}

func netAddress(n int) string {
	return "10.0." + string(rune('a'+n/256)) + "." + string(rune('0'+n%256))
}

func TestTooManySignIns(t *testing.T) {
	s := newSite(t, true)
	for range addressBurst {
		s.do("POST", "/session", `{"user":"ada","password":"wrong"}`)
	}
	w := s.do("POST", "/session", `{"user":"ada","password":"`+password+`"}`)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "6" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestSessionEnds(t *testing.T) {
	s := newSite(t, true)
	ends := []struct {
		name string
		do   func(*browser)
	}{
		{"signed out", func(b *browser) { b.do("DELETE", "/session", "", csrfHeader, b.CSRF) }},
		{"idle", func(*browser) { s.now = s.now.Add(idleLimit + time.Second) }},
		{"idle although the page asks", func(b *browser) {
			for range 4 {
				s.now = s.now.Add(idleLimit/3 + time.Second)
				b.do("GET", "/session", "", unattendedHeader, "1")
			}
		}},
		{"old", func(b *browser) {
			for range int(ageLimit/idleLimit)*2 + 2 {
				s.now = s.now.Add(idleLimit / 2)
				b.do("GET", "/session", "")
			}
		}},
		{"another password", func(*browser) { s.change("ada", User{Name: "ada", Role: api.WebAdmin, Hash: hashed(), Version: "2"}) }},
		{"removed", func(*browser) { delete(s.users, "ada"); s.now = s.now.Add(knownFor) }},
	}
	for _, e := range ends {
		b := s.signIn("ada")
		if w := b.do("GET", "/session", ""); w.Code != http.StatusOK {
			t.Fatalf("%s: %d before", e.name, w.Code)
		}
		e.do(b)
		if w := b.do("GET", "/api/v1/version", ""); w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d", e.name, w.Code)
		}
	}
}

func (s *site) change(name string, u User) {
	s.users[name] = u
	s.now = s.now.Add(knownFor)
}

// TestSessionOutlivesDatabase: who is signed in sees what is wrong.
func TestSessionOutlivesDatabase(t *testing.T) {
	s := newSite(t, true)
	b := s.signIn("ada")
	b.do("GET", "/session", "")
	s.err = errors.New("no database")
	s.now = s.now.Add(time.Minute)
	if w := b.do("GET", "/session", ""); w.Code != http.StatusOK {
		t.Errorf("%d", w.Code)
	}
	if w := b.do("DELETE", "/session", ""); w.Code != http.StatusForbidden {
		t.Errorf("sign-out without a token: %d", w.Code)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := newSessions(time.Now)
	first, _ := s.begin(User{Name: "ada"})
	for range maxUserSessions {
		s.begin(User{Name: "ada"})
	}
	if s.find(first, true) != nil || s.count() != maxUserSessions {
		t.Errorf("%d of one user", s.count())
	}
	for i := range 2 * maxSessions {
		s.begin(User{Name: netAddress(i)})
	}
	if s.count() > maxSessions {
		t.Errorf("%d sessions", s.count())
	}
}

func TestCallsAreBounded(t *testing.T) {
	s := newSite(t, true)
	s.block = make(chan struct{})
	b := s.signIn("ada")
	var all sync.WaitGroup
	statuses := make(chan int, 2*maxCalls)
	for range maxStreams + 2 {
		all.Go(func() { statuses <- b.do("GET", "/api/v1/log?follow=true", "").Code })
	}
	for range 2 {
		if code := <-statuses; code != http.StatusTooManyRequests {
			t.Errorf("%d", code)
		}
	}
	close(s.block)
	all.Wait()
	if w := b.do("GET", "/api/v1/log?follow=true", ""); w.Code != http.StatusOK {
		t.Errorf("afterwards: %d", w.Code)
	}
}

// TestLoopback is for a console without TLS: names that another site can make its own are refused.
func TestLoopback(t *testing.T) {
	s := newSite(t, false)
	for name, want := range map[string]int{
		"localhost:9443": 200, "127.0.0.1:9443": 200, "[::1]:9443": 200, "127.0.0.1": 200, "evil.example:9443": 421, "192.0.2.1:9443": 421, "": 421,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = name
		w := httptest.NewRecorder()
		s.console.Handler().ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%q: %d", name, w.Code)
		}
	}
	if k := s.signIn("ada").cookie; k.Secure || !k.HttpOnly {
		t.Errorf("cookie %v", k)
	}
}

func TestHeaders(t *testing.T) {
	s := newSite(t, true)
	for _, path := range []string{"/", "/session", "/api/v1/version", "/nothing", "/app.js"} {
		w := s.do("GET", path, "")
		if w.Header().Get("Content-Security-Policy") != policy || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, w.Header())
		}
	}
	for _, weak := range []string{"unsafe", "*", "http:", "data:"} {
		if strings.Contains(policy, weak) {
			t.Errorf("the policy has %s", weak)
		}
	}
}

var (
	inline    = regexp.MustCompile(`(?i)<script(?:[^>]*)>[^<]|<style|\sstyle=|\son[a-z]+=|javascript:`)
	reference = regexp.MustCompile(`(?:src|href|from|import)[= (]*["'](\.?/[^"'#]*)["']`)
	foreign   = regexp.MustCompile(`https?://(?:[^w]|w[^w])`)
	markup    = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
)

// TestFiles holds the console's files to the policy, and each reference to a file that is there.
func TestFiles(t *testing.T) {
	all, err := loadFiles()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range all {
		if m := foreign.Find(f.data); m != nil {
			t.Errorf("%s: loads from elsewhere: %s", name, m)
		}
		if m := markup.Find(f.data); m != nil {
			t.Errorf("%s: makes markup from text: %s", name, m)
		}
		if strings.HasSuffix(name, ".html") && inline.Match(f.data) {
			t.Errorf("%s: %s", name, inline.Find(f.data))
		}
		for _, r := range reference.FindAllSubmatch(f.data, -1) {
			path := strings.TrimPrefix(string(r[1]), ".")
			if _, ok := all[path]; !ok {
				t.Errorf("%s: there is no %s", name, path)
			}
		}
	}
	s := newSite(t, true)
	w := s.do("GET", "/", "")
	if w.Code != 200 || !bytes.Contains(w.Body.Bytes(), []byte("<!doctype html>")) || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if again := s.do("GET", "/", "", "If-None-Match", w.Header().Get("ETag")); again.Code != http.StatusNotModified {
		t.Errorf("again: %d", again.Code)
	}
	if w := s.do("POST", "/", ""); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

func TestPassword(t *testing.T) {
	hash := Hash(password)
	if ok, err := Verify(hash, password); !ok || err != nil {
		t.Error(ok, err)
	}
	if ok, err := Verify(hash, password+"x"); ok || err != nil {
		t.Error(ok, err)
	}
	for _, bad := range []string{"", "x", "$argon2id$v=19$m=1$x$y", "$argon2i$v=19$m=32768,t=3,p=1$c2FsdA$aGFzaA",
		"$argon2id$v=19$m=4294967295,t=3,p=1$" + strings.Join(strings.Split(hash, "$")[4:], "$"),
		"$argon2id$v=19$m=32768,t=0,p=1$" + strings.Join(strings.Split(hash, "$")[4:], "$"),
		"$argon2id$v=19$m=32768,t=3,p=0$" + strings.Join(strings.Split(hash, "$")[4:], "$")} {
		if ok, err := Verify(bad, password); ok || err == nil {
			t.Errorf("%q: %v %v", bad, ok, err)
		}
	}
	if CheckPassword("short") == nil || CheckPassword(strings.Repeat("x", MaxPassword+1)) == nil || CheckPassword(password) != nil {
		t.Error("bounds")
	}
}
