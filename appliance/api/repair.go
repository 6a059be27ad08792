package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
)

// Repair says what is done to a volume. Without any option its file system is checked, and repaired when needed.
type Repair struct {
	CheckOnly  bool     `json:"checkOnly,omitempty"`  // look for damage, and leave it
	NoCheck    bool     `json:"noCheck,omitempty"`    // only what else is asked for
	Defragment []string `json:"defragment,omitempty"` // images: VOLUME/PATH
	Trim       bool     `json:"trim,omitempty"`       // tell the device what the file system does not use
	Wait       bool     `json:"wait,omitempty"`       // I/O may wait for as long as it takes
	Force      bool     `json:"force,omitempty"`      // give up changes of a log that cannot be replayed
}

// RepairStep is a line of a repair's progress; the last one has Result or Error.
type RepairStep struct {
	Phase  string        `json:"phase"`
	Text   string        `json:"text,omitempty"`
	Done   int64         `json:"done,omitempty"`  // of Total, when that is known
	Total  int64         `json:"total,omitempty"` // bytes
	Result *RepairResult `json:"result,omitempty"`
	Error  *Error        `json:"error,omitempty"`
}

func (s *RepairStep) isLast() bool { return s.Result != nil || s.Error != nil }

// RepairResult tells what a repair has found and done.
type RepairResult struct {
	Volume       string         `json:"volume"`
	Coordinator  string         `json:"coordinator"`
	FileSystem   string         `json:"fileSystem"`
	Checked      bool           `json:"checked"`
	Damaged      bool           `json:"damaged"`
	Repaired     bool           `json:"repaired"`
	Findings     []string       `json:"findings,omitempty"`
	More         int            `json:"more,omitempty"`         // findings that are not in the list
	RedirectedNS int64          `json:"redirectedNs,omitempty"` // how long all I/O went through the coordinator
	WaitedNS     int64          `json:"waitedNs,omitempty"`     // no I/O has waited for longer
	Defragmented []Defragmented `json:"defragmented,omitempty"`
	Trimmed      int64          `json:"trimmed,omitempty"` // bytes told to the device
	TookNS       int64          `json:"tookNs"`
}

// Waited is the longest that I/O may have waited.
func (r *RepairResult) Waited() time.Duration { return time.Duration(r.WaitedNS) }

// Defragmented is an image of which extents were joined.
type Defragmented struct {
	Image  string `json:"image"`
	Before int    `json:"before"` // extents
	After  int    `json:"after"`
	Moved  int64  `json:"moved"` // bytes
}

// RepairVolume repairs a volume, and tells each step. It ends with ctx, but for a repair that has begun to write: that
// goes on to its end on the node.
func (c *Client) RepairVolume(ctx context.Context, name string, r Repair, step func(RepairStep)) (RepairResult, error) {
	var last RepairStep
	err := c.exchange(ctx, http.MethodPost, volumePath(name)+"/repair", r, func(body io.Reader) (err error) {
		last, err = ReadRepair(body, func(s RepairStep) error { step(s); return nil })
		if refused := new(Error); err != nil && !errors.As(err, &refused) {
			err = c.unreachable(ctx, err)
		}
		return err
	})
	switch {
	case err != nil:
		return RepairResult{}, err
	case last.Error != nil:
		return RepairResult{}, last.Error
	}
	return *last.Result, nil
}

// ReadRepair reads the lines of a repair; the last one is the answer. io.ErrUnexpectedEOF: there is none.
func ReadRepair(body io.Reader, step func(RepairStep) error) (last RepairStep, err error) {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, MaxBody)
	for lines.Scan() {
		var s RepairStep
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return last, Errorf(Failed, "the node's answer cannot be read: %v", err)
		}
		if s.isLast() {
			return s, nil
		}
		if err := step(s); err != nil {
			return last, err
		}
	}
	if err := lines.Err(); err != nil {
		return last, err
	}
	return last, io.ErrUnexpectedEOF
}
