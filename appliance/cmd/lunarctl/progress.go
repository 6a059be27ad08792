package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/api"
)

// progressInterval is how often a terminal is told how far a long operation is.
const progressInterval = 300 * time.Millisecond

// progress runs call, and meanwhile shows on a terminal how far the node is with the object.
func (c *cli) progress(ctx context.Context, object string, call func() error) error {
	if !isTerminal(c.err) {
		return call()
	}
	ctx, cancel := context.WithCancel(ctx)
	var shown sync.WaitGroup
	shown.Go(func() { c.showJob(ctx, object) })
	defer func() { cancel(); shown.Wait() }()
	return call()
}

func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

const (
	lineStart = "\r\x1b[K" // to the begin of the line, which is emptied
	unknown   = "under way"
)

func (c *cli) showJob(ctx context.Context, object string) {
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	defer func() { _, _ = fmt.Fprint(c.err, lineStart) }()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			jobs, _ := c.client.Jobs(ctx) // an error shows in the call itself
			for i := range jobs {
				if jobs[i].Object == object {
					_, _ = fmt.Fprint(c.err, lineStart+jobLine(&jobs[i], now))
				}
			}
		}
	}
}

// jobLine is what a terminal shows of a job.
func jobLine(j *api.Job, now time.Time) string {
	far := unknown
	if j.Total > 0 {
		far = fmt.Sprintf("%d%% of %s", j.Done*100/j.Total, api.FormatSize(j.Total))
	}
	return fmt.Sprintf("%s: %s, %v", j.Object, far, now.Sub(j.Since).Round(time.Second))
}
