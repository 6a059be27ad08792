package api

import (
	"errors"
	"fmt"
	"net/http"
)

// Code is the kind of an Error.
type Code string

// The codes.
const (
	Invalid     Code = "invalid"     // the request makes no sense
	NotFound    Code = "not-found"   // what it names does not exist
	Exists      Code = "exists"      // what it would make is there already
	Refused     Code = "refused"     // it would lose something; Force overrides
	Busy        Code = "busy"        // something uses it
	Full        Code = "full"        // no space, or a limit is reached
	Unavailable Code = "unavailable" // it exists but cannot be used now
	Failed      Code = "failed"      // it was tried and went wrong
	Unreachable Code = "unreachable" // made by the client: no node answers
)

var statuses = map[Code]int{
	Invalid:     http.StatusBadRequest,
	NotFound:    http.StatusNotFound,
	Exists:      http.StatusConflict,
	Refused:     http.StatusPreconditionFailed,
	Busy:        http.StatusLocked,
	Full:        http.StatusInsufficientStorage,
	Unavailable: http.StatusServiceUnavailable,
	Failed:      http.StatusInternalServerError,
}

// Status is the HTTP status that carries the code.
func (c Code) Status() int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Error is a refusal or a failure.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`        // what failed and why
	Hint    string `json:"hint,omitempty"` // what to do
}

// Error is the message, with the hint behind it.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// Errorf makes an Error without a hint.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint adds what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// CodeOf is the code of an error, Failed if it is not an *Error.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Failed
}

// The exit codes of lunarctl.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnreachable = 3
)

// ExitCode is the exit code for an error of a call.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return ExitOK
	case CodeOf(err) == Unreachable:
		return ExitUnreachable
	}
	return ExitFailed
}
