package daemon

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// How often the cluster database is asked whether it answers, and how long it may take.
const (
	askInterval = 5 * time.Second
	askTimeout  = 3 * time.Second
	askAgain    = 100 * time.Millisecond
)

// databaseState is whether the cluster database answers; the zero value says that it does.
type databaseState struct{ reason atomic.Pointer[string] }

// why tells in words why it does not answer, "" while it does.
func (s *databaseState) why() string {
	if p := s.reason.Load(); p != nil {
		return *p
	}
	return ""
}

// keepAsking raises the alarm while the cluster database does not answer, until ctx ends: in the log,
// in the metrics, and by changed in the status.
func (n *Node) keepAsking(ctx context.Context, changed func()) {
	tick := time.NewTicker(askInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if n.ask(ctx) {
				changed()
			}
		case <-ctx.Done():
			return
		}
	}
}

// ping asks until the database answers or ctx ends: while it chooses another leader it does not answer for a moment,
// or says so at once.
func (n *Node) ping(ctx context.Context) error {
	for {
		err := n.db.Ping(ctx)
		if err == nil || pause(ctx, askAgain) != nil {
			return err
		}
	}
}

func (n *Node) databaseAdvice() string {
	if n.db.InCluster() != "" {
		return "most of the nodes that vote must be up and reach each other: see `lunarctl cluster status`"
	}
	return "look at the disk of the state directory and restart lunard"
}

// ask tells whether there is news.
func (n *Node) ask(ctx context.Context) (news bool) {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := n.ping(limited)
	was := n.database.why()
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil:
		n.database.reason.Store(nil)
	default:
		why := fmt.Sprintf("nothing can be changed, I/O goes on: %v", err)
		n.database.reason.Store(&why)
		n.log.Error("ALARM: the cluster database does not answer; "+n.databaseAdvice(), "error", err)
	}
	if was != "" && err == nil {
		n.log.Info("the cluster database answers again")
	}
	return (was == "") != (err == nil)
}
