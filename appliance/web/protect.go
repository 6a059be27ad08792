package web

import (
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"lunar/appliance/api"
)

// csrfHeader carries the session's token in each change.
const csrfHeader = "Lunar-CSRF"

// policy lets a page of the console use its own files alone, and no markup made from text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// writeLimit bounds one write to a browser that does not read.
const writeLimit = 30 * time.Second

// protect is before everything.
func (c *Console) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 { // also of a request that is refused: the server reads its body then
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyLimit))
		}
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		if !c.o.Secure && !loopback(r.Host) {
			c.refuse(w, http.StatusMisdirectedRequest, api.Errorf(codeForbidden, "%q is not a name of this machine's loopback address", r.Host).
				WithHint("use http://localhost, or set web.address to an address of the network: it is served by TLS then"))
			return
		}
		if err := c.origin.Check(r); err != nil {
			c.refuse(w, http.StatusForbidden, api.Errorf(codeForbidden, "another site's page asked for this"))
			return
		}
		rw := &bounded{ResponseWriter: w, control: http.NewResponseController(w)}
		next.ServeHTTP(rw, r)
	})
}

// loopback keeps other sites from reaching a console without TLS by a name of theirs that resolves to 127.0.0.1.
func loopback(hostPort string) bool {
	h := hostPort
	if name, _, err := net.SplitHostPort(hostPort); err == nil {
		h = name
	}
	if h == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(h, "[]"))
	return err == nil && ip.IsLoopback()
}

// bounded gives each write its own time, so that answers may last and browsers that hang do not.
type bounded struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write implements http.ResponseWriter.
func (b *bounded) Write(p []byte) (int, error) {
	_ = b.control.SetWriteDeadline(time.Now().Add(writeLimit)) // a recorder of a test has none
	return b.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach Flush.
func (b *bounded) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// changes tells whether a method changes anything.
func changes(method string) bool { return method != http.MethodGet && method != http.MethodHead }

func (s *session) proves(r *http.Request) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(csrfHeader)), []byte(s.csrf)) == 1
}
