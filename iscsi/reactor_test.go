package iscsi

import (
	"testing"
	"time"
)

// TestLogLimit: a flood of bad logins does not become a flood of log lines.
func TestLogLimit(t *testing.T) {
	var l logLimit
	now := time.Unix(1, 0)
	logged := 0
	for range 100 {
		if _, ok := l.allow(now); ok {
			logged++
		}
	}
	if missed, ok := l.allow(now.Add(time.Second)); logged != complaintsPerSecond || !ok || missed != 90 {
		t.Errorf("%d logged, then %v with %d missed", logged, ok, missed)
	}
}
