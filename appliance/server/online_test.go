package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"sync"
	"testing"

	"lunar/appliance/api"
)

// lines is a fake of Lines.
type lines struct {
	fake

	end string
}

func (l *lines) OnlineVolume(_ context.Context, name string) (api.Volume, error) {
	l.calls = append(l.calls, "online "+name)
	return api.Volume{Name: name}, l.err
}

func (l *lines) OfflineVolume(_ context.Context, name string, force bool) error {
	l.calls = append(l.calls, fmt.Sprintf("offline %s %t", name, force))
	return l.err
}

func (l *lines) FollowVolume(_ context.Context, name string, fn func(api.VolumeLine) error) error {
	if l.err != nil {
		return l.err
	}
	if err := fn(api.VolumeLine{Volume: name, Node: "n1", State: api.Direct, Coordinator: "n2", Epoch: 3}); err != nil {
		return err
	}
	if l.end == "" {
		return nil
	}
	return fn(api.VolumeLine{Volume: name, End: l.end})
}

func TestLines(t *testing.T) {
	f := &lines{}
	s, err := New(Options{
		Volumes: f, Images: f, Targets: f, Sessions: f, Events: f, Jobs: f, Cluster: f, Nodes: f, Networks: f, Transfers: f, Backups: f,
		Lines: f, Stats: stats, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s.Handler()}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	defer wg.Wait()
	defer server.Close()
	c := api.NewClient(socket)
	defer c.Close()
	ctx := t.Context()
	if v, err := c.OnlineVolume(ctx, "V 1"); err != nil || v.Name != "V 1" {
		t.Errorf("online: %v, %v", v, err)
	}
	if err := c.OfflineVolume(ctx, "V 1", true); err != nil {
		t.Error(err)
	}
	if want := []string{"online V 1", "offline V 1 true"}; !reflect.DeepEqual(f.calls, want) {
		t.Errorf("calls %q, want %q", f.calls, want)
	}

	var told []string
	note := func(l api.VolumeLine) error { told = append(told, l.String()); return nil }
	if err := c.FollowVolume(ctx, "V", note); api.CodeOf(err) != api.Unreachable {
		t.Errorf("a node that stops: %v", err)
	}
	f.end = "it was ejected"
	if err := c.FollowVolume(ctx, "V", note); err != nil {
		t.Error(err)
	}
	first := "Direct; coordinated by n2, epoch 3"
	if want := []string{first, first, "V is off line on : it was ejected"}; !reflect.DeepEqual(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	f.err = api.Errorf(api.NotFound, "no")
	if err := c.FollowVolume(ctx, "V", note); api.CodeOf(err) != api.NotFound {
		t.Errorf("none: %v", err)
	}
}
