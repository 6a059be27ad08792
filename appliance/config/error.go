package config

import (
	"fmt"
	"strings"
)

// Error is a configuration that cannot be used.
type Error struct {
	File    string
	Line    int    // 1-based; 0 if no one line is at fault
	Key     string // dotted, such as "iscsi.portals"; may be empty
	Problem string
	Remedy  string
	Err     error // the cause, may be nil
}

// Error reads "FILE:LINE: KEY: PROBLEM: CAUSE; REMEDY".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Key != "" {
		fmt.Fprintf(&b, ": %s", e.Key)
	}
	fmt.Fprintf(&b, ": %s", e.Problem)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Remedy != "" {
		fmt.Fprintf(&b, "; %s", e.Remedy)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
