package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/appliance/api"
	"lunar/appliance/server"
	"lunar/appliance/web"
)

// TestWebCallsExist: whatever browsers have is a call of the control API.
func TestWebCallsExist(t *testing.T) {
	n := &Node{}
	s, err := server.New(server.Options{
		Volumes: n, Images: n, Targets: n, Sessions: n, Events: n, Jobs: n, Cluster: n, Nodes: n, Networks: n, Transfers: n, Backups: n,
		Lines: n, Web: n, Traces: n, Stats: n.Stats, Log: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	all := s.Patterns()
	for _, p := range web.Patterns() {
		if !slices.Contains(all, p) {
			t.Errorf("the control API has no %s", p)
		}
	}
}

// TestWebConsole signs in at a running lunard by TLS, by the certificate of which `lunarctl web status` tells.
func TestWebConsole(t *testing.T) {
	b := newBench(t)
	b.config.Web.Address = "0.0.0.0:0"
	client := b.start()
	ctx := t.Context()
	const password = "correct horse battery"
	_, err := client.AddWebUser(ctx, api.AddWebUser{Name: "ada", Role: api.WebAdmin, Password: password})
	must(t, err)
	_, err = client.AddWebUser(ctx, api.AddWebUser{Name: "ada", Role: api.WebAdmin, Password: password})
	refused(t, err, api.Exists)
	_, err = client.AddWebUser(ctx, api.AddWebUser{Name: "../x", Role: api.WebAdmin, Password: password})
	refused(t, err, api.Invalid, "no name")
	_, err = client.AddWebUser(ctx, api.AddWebUser{Name: "eve", Role: "root", Password: password})
	refused(t, err, api.Invalid, "no role")
	refused(t, client.SetWebPassword(ctx, "ada", "short"), api.Invalid, "at least")
	refused(t, client.RemoveWebUser(ctx, "eve"), api.NotFound)

	at := b.webAt()
	var seen *x509.Certificate
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(c tls.ConnectionState) error {
		seen = c.PeerCertificates[0]
		return nil
	}}}
	defer transport.CloseIdleConnections()
	browser := &http.Client{Transport: transport, Timeout: time.Minute}
	sign := func() (int, []*http.Cookie) {
		r, err := browser.Post(at+"/session", "application/json", strings.NewReader(`{"user":"ada","password":"`+password+`"}`))
		must(t, err)
		must(t, r.Body.Close())
		return r.StatusCode, r.Cookies()
	}
	status, cookies := sign()
	if status != http.StatusOK || len(cookies) != 1 {
		t.Fatalf("sign-in: %d %v", status, cookies)
	}
	if err := seen.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	get := func(path string) int {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, at+path, nil)
		must(t, err)
		r.AddCookie(cookies[0])
		resp, err := browser.Do(r)
		must(t, err)
		must(t, resp.Body.Close())
		return resp.StatusCode
	}
	if s := get("/api/v1/volumes"); s != http.StatusOK {
		t.Errorf("volumes: %d", s)
	}
	if s := get("/api/v1/web/users"); s != http.StatusNotFound {
		t.Errorf("users: %d", s)
	}
	w, err := client.Web(ctx)
	must(t, err)
	if w.Sessions != 1 || w.Certificate == nil || w.Certificate.Subject != seen.Subject.CommonName {
		t.Errorf("status %+v", w)
	}
	must(t, client.RemoveWebUser(ctx, "ada"))
	if s, _ := sign(); s != http.StatusUnauthorized {
		t.Errorf("sign-in after the removal: %d", s)
	}
}

// webAt is the console's URL on the loopback interface.
func (b *bench) webAt() string {
	b.t.Helper()
	var w api.Web
	eventually(b.t, patience, "the console serves", func() bool {
		var err error
		w, err = b.client.Web(b.t.Context())
		must(b.t, err)
		return w.Address != ""
	})
	_, port, err := net.SplitHostPort(w.Address)
	must(b.t, err)
	return "https://" + net.JoinHostPort("127.0.0.1", port)
}

// TestWebConsoleIsOff: nothing listens that was not asked for, and what cannot listen keeps nothing else from its work.
func TestWebConsoleIsOff(t *testing.T) {
	b := newBench(t)
	client := b.start()
	w, err := client.Web(t.Context())
	must(t, err)
	if w.Address != "" || w.TLS || !strings.Contains(w.Reason, "web.address") {
		t.Errorf("%+v", w)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	b.config.Web.Address = taken.Addr().String()
	client = b.restart()
	eventually(t, patience, "the reason is told", func() bool {
		w, err = client.Web(t.Context())
		must(t, err)
		return strings.Contains(w.Reason, "address already in use")
	})
	must(t, taken.Close())
	eventually(t, patience, "it is tried again", func() bool {
		w, err = client.Web(t.Context())
		must(t, err)
		return w.Address != "" && !w.TLS
	})
}
