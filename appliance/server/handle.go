package server

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"lunar/appliance/api"
)

// answer serves a call without a body that answers with a value.
func answer[Out any](call func(*http.Request) (Out, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		out, err := call(r)
		if err != nil {
			return err
		}
		return reply(w, out)
	}
}

// answerTo serves a call with a body that answers with a value.
func answerTo[In, Out any](call func(*http.Request, In) (Out, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		in, err := decode[In](w, r)
		if err != nil {
			return err
		}
		out, err := call(r, in)
		if err != nil {
			return err
		}
		return reply(w, out)
	}
}

// perform serves a call that only succeeds or fails.
func perform(call func(*http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := call(r); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// performTo is perform for a call with a body.
func performTo[In any](call func(*http.Request, In) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		in, err := decode[In](w, r)
		if err != nil {
			return err
		}
		if err := call(r, in); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func decode[In any](w http.ResponseWriter, r *http.Request) (in In, err error) {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return in, api.Errorf(api.Invalid, "the request's body cannot be read: %v", err).WithHint("check that lunarctl and lunard are of one version")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return in, api.Errorf(api.Invalid, "the request's body goes on after its JSON value")
	}
	return in, nil
}

// reply sends a value as JSON; the implementations of the interfaces return empty lists, not nil ones.
func reply(w http.ResponseWriter, out any) error {
	w.Header().Set("Content-Type", "application/json")
	return encode(w, out)
}

func encode(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// recorder remembers whether a handler has begun to answer, and with what.
type recorder struct {
	http.ResponseWriter
	status int // 0: nothing sent yet
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach Flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// instrument turns a route into a handler: it measures the call, logs a failure and answers with it.
func (s *Server) instrument(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		rec := &recorder{ResponseWriter: w}
		err := rt.serve(rec, r)
		if err != nil && rec.status == 0 {
			s.fail(rec, r, err)
		}
		s.metrics.observe(rt.pattern, rec.status, time.Since(started))
		s.o.Log.LogAttrs(r.Context(), level(err), "api call", slog.String("call", rt.pattern), slog.String("path", r.URL.Path),
			slog.Duration("took", time.Since(started)), slog.Any("error", err))
	})
}

func level(err error) slog.Level {
	if err != nil && api.CodeOf(err) == api.Failed {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var e *api.Error
	if !errors.As(err, &e) {
		e = &api.Error{Code: api.Failed, Message: err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code.Status())
	if err := encode(w, e); err != nil {
		s.o.Log.DebugContext(r.Context(), "api answer", "error", err)
	}
}

func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, api.Errorf(api.Invalid, "this node knows no call %s %s", r.Method, r.URL.Path).
		WithHint("check that lunarctl and lunard are of one version"))
}
