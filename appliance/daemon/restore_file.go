package daemon

import (
	"context"
	"encoding/json"
	"errors"
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
		Dir: c.StateDir, Node: c.Node.Name, Config: c.Cluster, File: file, Force: force, Log: log,
	})
	if err == nil {
		err = json.NewEncoder(stdout).Encode(savedOf(saved))
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
