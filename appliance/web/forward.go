package web

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"lunar/appliance/api"
)

// prefix is where browsers find the calls of the control API.
const prefix = "/api"

// unattendedHeader marks what a page asks by itself: it does not count as use of the session.
const unattendedHeader = "Lunar-Unattended"

// streamLimit ends a stream, so that who was removed does not look on; pages ask anew.
const streamLimit = 5 * time.Minute

func cut(pattern string) (method, path string) {
	method, path, _ = strings.Cut(pattern, " ")
	return method, path
}

// forward gives a call to the control API's own handler.
func (c *Console) forward(one call) http.HandlerFunc {
	next := http.StripPrefix(prefix, c.o.API)
	return func(w http.ResponseWriter, r *http.Request) {
		s, ok := c.signed(w, r)
		if !ok || !c.mayCall(w, r, s, one) {
			return
		}
		done, ok := c.sessions.enter(s, one.stream)
		if !ok {
			c.refuse(w, http.StatusTooManyRequests, api.Errorf(codeSlow, "this session has too many calls under way").WithHint("wait for their end, or close other windows"))
			return
		}
		defer done()
		inner, cancel, err := innerRequest(w, r, one)
		if err != nil {
			c.refuse(w, http.StatusBadRequest, api.Errorf(api.Invalid, "the request's body was not received: %v", err))
			return
		}
		defer cancel()
		if changes(r.Method) {
			c.o.Log.Info("web change", "user", s.user, "remote", r.RemoteAddr, "call", r.Method+" "+r.URL.Path)
		}
		next.ServeHTTP(w, inner)
	}
}

func (c *Console) mayCall(w http.ResponseWriter, r *http.Request, s *session, one call) bool {
	if changes(r.Method) && !c.mayChange(w, r, s) {
		return false
	}
	if one.role == api.WebAdmin && s.role != api.WebAdmin {
		c.refuse(w, http.StatusForbidden, api.Errorf(codeForbidden, "%s may look and not change", s.user).WithHint("sign in as an administrator"))
		return false
	}
	return true
}

// innerRequest has the whole body and nothing of the browser's secrets.
func innerRequest(w http.ResponseWriter, r *http.Request, one call) (*http.Request, context.CancelFunc, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyLimit))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxBody))
	if err != nil {
		return nil, nil, err
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	if one.stream {
		cancel()
		ctx, cancel = context.WithTimeout(r.Context(), streamLimit)
	}
	if limit := narrow[one.pattern]; limit != nil {
		if err := limit(body); err != nil {
			cancel()
			return nil, nil, err
		}
	}
	inner := r.Clone(ctx)
	inner.Header = http.Header{"Content-Type": r.Header["Content-Type"]}
	inner.Body, inner.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return inner, cancel, nil
}
