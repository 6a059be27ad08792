package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAbortedRequestsKeepNobodySignedIn: a browser that gives up each request in which the database is asked is found out.
func TestAbortedRequestsKeepNobodySignedIn(t *testing.T) {
	s := newSite(t, true)
	b := s.signIn("ada")
	b.do("GET", "/session", "")
	delete(s.users, "ada")
	s.now = s.now.Add(knownFor)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(gone, http.MethodGet, "/session", nil)
	r.Host = "localhost:9443"
	r.AddCookie(b.cookie)
	s.console.Handler().ServeHTTP(httptest.NewRecorder(), r)
	if w := b.do("GET", "/api/v1/version", ""); w.Code != http.StatusUnauthorized {
		t.Errorf("still signed in: %d", w.Code)
	}
}

// deadlines notes the time until which a body may come.
type deadlines struct {
	*httptest.ResponseRecorder
	read time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error { d.read = at; return nil }

// TestRefusedBodiesHaveALimit: the server reads the body of a request that is refused, too, and would wait for it.
func TestRefusedBodiesHaveALimit(t *testing.T) {
	s := newSite(t, true)
	for _, path := range []string{"/api/x", "/api/v1/images", "/nothing"} {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}"))
		r.Host = "localhost:9443"
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		s.console.Handler().ServeHTTP(w, r)
		if w.Code < 400 || w.read.IsZero() || time.Until(w.read) > bodyLimit {
			t.Errorf("%s: %d, until %v", path, w.Code, w.read)
		}
	}
}

// TestBackupsOfBrowsers end by order or by their limit, and open no port.
func TestBackupsOfBrowsers(t *testing.T) {
	s := newSite(t, true)
	b := s.signIn("ada")
	for body, want := range map[string]int{
		`{"volume":"v","snapshot":"monday"}`:  http.StatusOK,
		`{"volume":"v","attached":true}`:      http.StatusBadRequest,
		`{"volume":"v","Attached":true}`:      http.StatusBadRequest,
		`{"volume":"v","listen":"0.0.0.0:1"}`: http.StatusBadRequest,
		`[]`:                                  http.StatusBadRequest,
	} {
		s.reached = nil
		if w := b.do("POST", "/api/v1/backups", body, csrfHeader, b.CSRF); w.Code != want || (len(s.reached) == 1) != (want == http.StatusOK) {
			t.Errorf("%s: %d, reached %v", body, w.Code, s.reached)
		}
	}
}
