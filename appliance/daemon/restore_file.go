package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/appliance/config"
)

// restoreFile puts a saved cluster database in the place of this node's. It is lunarctl's way to do it, and so
// answers in JSON: an api.Saved, or on stderr's last line an api.Error.
func restoreFile(ctx context.Context, c config.Config, file string, force bool, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	saved, err := cluster.Restore(ctx, cluster.RestoreOptions{
		Dir: c.StateDir, Node: c.Node.Name, Config: c.Cluster, File: file, Force: force, Log: log, Network: newFabric(&c, log),
	})
	return finish(savedOf(saved), err, stdout, stderr)
}

// leaveOffLine makes this a node without a cluster while no lunard runs; it answers like restoreFile.
func leaveOffLine(c config.Config, stdout, stderr io.Writer) int {
	id, err := cluster.Forget(c.StateDir)
	return finish(api.Cluster{ID: id, Node: c.Node.Name}, err, stdout, stderr)
}

// acceptDatabase makes an external etcd that was put back the cluster's database again.
func acceptDatabase(ctx context.Context, c config.Config, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	err := cluster.AcceptExternal(ctx, cluster.Options{Dir: c.StateDir, Node: c.Node.Name, Config: c.Cluster, Log: log})
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "lunard:", err)
		return exitFailed
	}
	_, _ = fmt.Fprintln(stdout, "the database is accepted: start lunard on all nodes")
	return exitOK
}

func finish(value any, err error, stdout, stderr io.Writer) int {
	if err == nil {
		err = json.NewEncoder(stdout).Encode(value)
	}
	if err == nil {
		return exitOK
	}
	var refused *api.Error
	if errors.As(refusal(err), &refused) {
		_ = json.NewEncoder(stderr).Encode(refused)
	}
	return exitFailed
}
