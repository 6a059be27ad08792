package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"lunar/appliance/api"
	"lunar/appliance/config"
)

func TestVolumeUnits(t *testing.T) {
	var asked []string
	u := newVolumeUnits(slog.New(slog.DiscardHandler))
	u.template = "lunar-volume@.service"
	u.start = func(_ context.Context, unit string) error { asked = append(asked, unit); return os.ErrPermission }
	see := func(want []string, lines ...api.VolumeLine) {
		t.Helper()
		asked = nil
		u.see(t.Context(), lines)
		if !slices.Equal(asked, want) {
			t.Errorf("asked for %q, want %q", asked, want)
		}
	}
	on := func(name string) api.VolumeLine { return api.VolumeLine{Volume: name, State: api.Direct} }
	absent := api.VolumeLine{Volume: "a-b", State: api.StateAbsent, Reason: "no disk path"}
	see(nil, absent)
	see([]string{"lunar-volume@a-b.service"}, on("a-b"))
	see([]string{"lunar-volume@V_2.x.service"}, on("a-b"), on("V_2.x"))
	see(nil, absent, on("V_2.x")) // it lost its path: the unit tells
	see(nil, on("a-b"), on("V_2.x"))
	see(nil, api.VolumeLine{Volume: "a-b", State: api.StateAbsent, End: "off line"})
	see([]string{"lunar-volume@a-b.service"}, on("a-b"))
}

func TestJournalOfVolumeUnit(t *testing.T) {
	var fields map[string]string
	log := slog.New(&journalHandler{
		unit: "lunar-volume@.service", fields: map[string]string{"NODE": "n1"},
		send: func(_ string, _ journal.Priority, f map[string]string) error { fields = f; return nil },
	})
	log.Info("a", "volume", "Volume1", "epoch", uint64(7))
	if fields["OBJECT_SYSTEMD_UNIT"] != "lunar-volume@Volume1.service" || fields["NODE"] != "n1" || fields["EPOCH"] != "7" || fields["VOLUME"] != "Volume1" {
		t.Errorf("%v", fields)
	}
	log.Info("b", "epoch", uint64(0))
	if _, found := fields["EPOCH"]; found || fields["OBJECT_SYSTEMD_UNIT"] != "" || fields["NODE"] != "n1" {
		t.Errorf("%v", fields)
	}
}

func TestJoinCredentials(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) { must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)) }
	for _, where := range []string{"", dir} {
		if r, err := joinCredentials(where); err != nil || r != (api.Join{}) {
			t.Errorf("none: %v, %v", r, err)
		}
	}
	put(joinAddress, "192.0.2.1\n")
	if _, err := joinCredentials(dir); err == nil || !strings.Contains(err.Error(), joinToken) {
		t.Errorf("an address alone: %v", err)
	}
	put(joinToken, " T \n")
	if r, err := joinCredentials(dir); err != nil || r != (api.Join{Address: "192.0.2.1", Token: "T"}) {
		t.Errorf("both: %v, %v", r, err)
	}
	put(joinToken, strings.Repeat("x", maxCredential+1))
	if _, err := joinCredentials(dir); err == nil {
		t.Error("too much was taken")
	}
}

// A node with the credentials joins by itself; a token that is spent is an alarm in the status.
func TestJoinByCredential(t *testing.T) {
	if !apart(t) {
		return
	}
	c := newNodes(t, 1)
	defer c.stop()
	first := c.all[0]
	token, err := first.client.NewToken(t.Context(), api.NewToken{})
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, joinAddress), []byte(first.config.Cluster.Address), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, joinToken), []byte(token.Token), 0o600))
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	comer := func(name, address string) *bench {
		b := newBench(t)
		b.config.Node.Name, b.config.Cluster = name, first.config.Cluster
		b.config.Cluster.Address = address
		b.config.Cluster.Profile, b.config.Cluster.Lease = config.ProfileFast, first.config.Cluster.Lease
		b.config.Storage, b.config.Engine.Rings = first.config.Storage, 1
		b.config.ISCSI.Portals = []string{address + ":0"}
		b.start()
		return b
	}
	second := comer("n2", strings.TrimSuffix(first.config.Cluster.Address, "1")+"2")
	defer second.stop()
	eventually(t, 30*time.Second, "it has joined", func() bool {
		all, err := first.client.Cluster(t.Context())
		return err == nil && len(all.Nodes) == 2 && !strings.Contains(second.daemon.describe(), "joining")
	})
	third := comer("n3", strings.TrimSuffix(first.config.Cluster.Address, "1")+"3")
	defer third.stop()
	eventually(t, 30*time.Second, "the spent token is an alarm", func() bool {
		return strings.Contains(third.daemon.describe(), "ALARM: the cluster of "+first.config.Cluster.Address+" refuses this node")
	})
}

func TestStatusWords(t *testing.T) {
	var names []string
	for i := range maxNamed + 2 {
		names = append(names, string(rune('a'+i)))
	}
	if got := list(names); got != "a, b, c, d, e, f, g, h, 2 more" {
		t.Errorf("%q", got)
	}
	lines := []api.VolumeLine{{Volume: "V1", State: api.Redirected, Reason: "Backup"}, {Volume: "V2", State: api.Direct}}
	if got := list(reasonsOf(lines, api.Redirected)); got != "V1 (Backup)" {
		t.Errorf("%q", got)
	}
}

// A lock that is not let go starves the watchdog.
func TestUnlocked(t *testing.T) {
	n := newNode("n1", slog.New(slog.DiscardHandler))
	if !n.unlocked(t.Context(), time.Second) {
		t.Error("nobody has the lock")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unlocked(t.Context(), 30*time.Millisecond) {
		t.Error("the lock is held")
	}
}
