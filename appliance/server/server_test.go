package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/appliance/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake records each call as text and answers with what the test set.
type fake struct {
	calls    []string
	err      error
	promised int64 // bytes of the saved file
	awaited  chan string
}

func (f *fake) note(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) Volumes(context.Context) ([]api.Volume, error) {
	return []api.Volume{{Name: "Volume1"}}, f.note("volumes")
}
func (f *fake) Volume(_ context.Context, name string) (api.VolumeDetail, error) {
	return api.VolumeDetail{Volume: api.Volume{Name: name}}, f.note("volume %s", name)
}
func (f *fake) AddVolume(_ context.Context, r api.AddVolume) (api.Volume, error) {
	return api.Volume{Name: r.Name}, f.note("add %+v", r)
}
func (f *fake) RenameVolume(_ context.Context, name, to string) error {
	return f.note("rename %s %s", name, to)
}
func (f *fake) RedirectVolume(_ context.Context, name string, on bool) error {
	return f.note("redirect %s %t", name, on)
}
func (f *fake) MoveVolume(_ context.Context, name, to string) (api.MovedVolume, error) {
	return api.MovedVolume{}, f.note("move %s %q", name, to)
}
func (f *fake) Cluster(context.Context) (api.Cluster, error) { return api.Cluster{}, f.note("cluster") }
func (f *fake) InitCluster(context.Context) (api.Cluster, error) {
	return api.Cluster{}, f.note("init")
}
func (f *fake) JoinCluster(_ context.Context, r api.Join) (api.Cluster, error) {
	return api.Cluster{}, f.note("join %+v", r)
}
func (f *fake) LeaveCluster(_ context.Context, r api.Leave) error { return f.note("leave %+v", r) }
func (f *fake) NewToken(_ context.Context, r api.NewToken) (api.Token, error) {
	return api.Token{}, f.note("token %+v", r)
}
func (f *fake) SaveCluster(context.Context) (api.Saved, io.ReadCloser, error) {
	return api.Saved{Node: "n1", Bytes: f.promised}, io.NopCloser(strings.NewReader("saved")), f.note("save")
}
func (f *fake) Nodes(context.Context) ([]api.Node, error) { return nil, f.note("nodes") }
func (f *fake) Node(_ context.Context, name string) (api.NodeDetail, error) {
	return api.NodeDetail{}, f.note("node %s", name)
}
func (f *fake) DrainNode(_ context.Context, name string) (api.Drained, error) {
	return api.Drained{}, f.note("drain %s", name)
}
func (f *fake) ResumeNode(_ context.Context, name string) error { return f.note("resume %s", name) }
func (f *fake) EvictNode(_ context.Context, name string, force bool) (api.Evicted, error) {
	return api.Evicted{}, f.note("evict %s %t", name, force)
}
func (f *fake) Networks(context.Context) (api.Networks, error) {
	return api.Networks{}, f.note("networks")
}
func (f *fake) SetNetwork(_ context.Context, name string, r api.SetNetwork) (api.Network, error) {
	return api.Network{}, f.note("set-network %s %t", name, r.Role == nil)
}
func (f *fake) Heartbeats(context.Context) (api.Heartbeats, error) {
	return api.Heartbeats{}, f.note("heartbeats")
}
func (f *fake) ValidateCluster(context.Context) (api.Validation, error) {
	return api.Validation{}, f.note("validate")
}
func (f *fake) EjectVolume(_ context.Context, name string) error { return f.note("eject %s", name) }
func (f *fake) Images(_ context.Context, volume string) ([]api.Image, error) {
	return []api.Image{}, f.note("images %q", volume)
}
func (f *fake) Image(_ context.Context, volume, path string) (api.Image, error) {
	return api.Image{Volume: volume, Path: path}, f.note("image %s %s", volume, path)
}
func (f *fake) CreateImage(_ context.Context, r api.CreateImage) (api.Image, error) {
	return api.Image{}, f.note("create %+v", r)
}
func (f *fake) ChangeImage(_ context.Context, volume, path string, r api.ChangeImage) (api.Image, error) {
	return api.Image{}, f.note("change %s %s %+v", volume, path, r)
}
func (f *fake) DeleteImage(_ context.Context, volume, path string, force bool) error {
	return f.note("delete %s %s %t", volume, path, force)
}
func (f *fake) Targets(context.Context) ([]api.Target, error) { return nil, f.note("targets") }
func (f *fake) CreateTarget(_ context.Context, name string) (api.Target, error) {
	return api.Target{Name: name}, f.note("create-target %s", name)
}
func (f *fake) DeleteTarget(_ context.Context, name string, force bool) error {
	return f.note("delete-target %s %t", name, force)
}
func (f *fake) Map(_ context.Context, target string, r api.Map) (api.LUN, error) {
	return api.LUN{}, f.note("map %s %s %d", target, r.Image, *r.LUN)
}
func (f *fake) Unmap(_ context.Context, target string, lun uint16) error {
	return f.note("unmap %s %d", target, lun)
}
func (f *fake) Allow(_ context.Context, target, initiator string) error {
	return f.note("allow %s %s", target, initiator)
}
func (f *fake) Disallow(_ context.Context, target, initiator string) error {
	return f.note("disallow %s %s", target, initiator)
}
func (f *fake) SetCHAP(_ context.Context, target string, r api.SetCHAP) error {
	return f.note("chap %s %s", target, r.User)
}
func (f *fake) Sessions(context.Context) (api.Sessions, error) {
	return api.Sessions{}, f.note("sessions")
}
func (f *fake) Transfer(ctx context.Context, r api.Transfer, ready func(api.TransferPoint) error) error {
	if f.err != nil {
		return f.note("transfer %s", r.Image)
	}
	if err := ready(api.TransferPoint{ID: "t 1"}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
func (f *fake) FinishTransfer(_ context.Context, id string) (api.Image, error) {
	return api.Image{}, f.note("finish %s", id)
}
func (f *fake) Backups(context.Context) ([]api.Backup, error) {
	return []api.Backup{}, f.note("backups")
}
func (f *fake) BeginBackup(_ context.Context, r api.BeginBackup) (api.Backup, error) {
	return api.Backup{ID: "b1", Volume: r.Volume}, f.note("begin backup %+v", r)
}
func (f *fake) AwaitBackup(ctx context.Context, b api.Backup) string {
	if b.Volume == "long" {
		<-ctx.Done()
		f.awaited <- b.ID
	}
	return "by order"
}
func (f *fake) EndBackup(_ context.Context, name string) error { return f.note("end backup %s", name) }

func (f *fake) DropTransfer(_ context.Context, id string) error { return f.note("drop %s", id) }
func (f *fake) Jobs(context.Context) ([]api.Job, error)         { return nil, f.note("jobs") }
func (f *fake) Events(ctx context.Context, follow bool, fn func(api.Event) error) error {
	if err := f.note("log %t", follow); err != nil {
		return err
	}
	for _, v := range []string{"A", "B", "A"} {
		if err := fn(api.Event{Volume: v, Text: v}); err != nil {
			return err
		}
	}
	if follow {
		<-ctx.Done()
	}
	return nil
}

func stats() Stats {
	path := api.HeartbeatPath{Peer: "n2", Network: "Cluster", Family: "IPv6", State: "up", Last: 250 * time.Millisecond, Gaps: 3}
	path.RTT[10], path.RTT[12] = 5, 1
	beats := &HeartbeatStats{Kernel: true, Paths: []api.HeartbeatPath{path}, Refused: map[string]uint64{"forged": 2}, Verdicts: map[string]uint64{"node lost": 1}}
	return Stats{
		Commands: &CommandStats{
			Operations: []OperationStats{{Operation: "write", Times: api.Histogram{Count: 1, Sum: 3 * time.Millisecond, Buckets: [api.HistogramBuckets]uint64{12: 1}},
				Slow: []SlowCommand{{Target: "iqn." + strings.Repeat("t", 220), LUN: 3, Initiator: "iqn.i", Took: 3 * time.Millisecond, At: time.Unix(1e9, 0)}}}},
			Stages:     []StageStats{{Stage: "device"}},
			LUNs:       []LUNCommands{{Target: "iqn.t", LUN: 3, Operation: "write", Commands: 7, Bytes: 4096}},
			Initiators: []InitiatorCommands{{Initiator: "iqn.i", Operation: "write"}},
		},
		EachLUN:    []LUNStats{{Target: "iqn.t", Number: 3, Image: "Volume1/a.img", Size: 4096, Available: true}},
		Initiators: []InitiatorStats{{Initiator: "iqn.i", Target: "iqn.t", Sessions: 2}},
		Cluster:    &ClusterStats{Nodes: []NodeStats{{Name: "n2", State: api.NodeDown}}, Voters: 3, Living: 2},
		Networks:   []NetworkStats{{Name: "Cluster", Role: "cluster", Metric: 100, State: api.NetworkPartitioned, Members: []api.NetworkMember{{Node: "n2", Interface: "eth0"}}}},
		Backups:    []BackupStats{{Volume: "Volume1", Age: 60, Read: 4096}}, Events: map[string]uint64{"node.fenced": 1},
		Fencings: map[string]uint64{"proven": 1}, Web: &WebStats{Sessions: 1},
		Sessions: 3, PoolBytes: 1 << 20, Heartbeats: beats, Volumes: []VolumeStats{{
			Name: "Volume1", State: api.Direct, Counters: api.Counters{DirectRead: api.Count{IOs: 5, Bytes: 20480}},
		}},
	}
}

// serve runs a Server over a fake on a unix socket.
func serve(t *testing.T) (*api.Client, *fake, *Server) {
	t.Helper()
	f := &fake{promised: 5, awaited: make(chan string, 1)}
	s, err := New(Options{
		Volumes: f, Images: f, Targets: f, Sessions: f, Events: f, Jobs: f, Cluster: f, Nodes: f, Networks: f, Transfers: f, Backups: f, Stats: stats,
		Version: api.Version{Version: "1", Node: "n1"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: s.Handler()}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(l) }()
	client := api.NewClient(socket)
	t.Cleanup(func() {
		client.Close()
		_ = hs.Close()
		<-done
	})
	return client, f, s
}

func nothing(context.Context, api.TransferPoint) error { return nil }

var errGivenUp = errors.New("given up")

func failing(context.Context, api.TransferPoint) error { return errGivenUp }

// dropped is the error of a transfer but that it was given up.
func dropped(_ api.Image, err error) error {
	if errors.Is(err, errGivenUp) {
		return nil
	}
	return err
}

func TestEveryCall(t *testing.T) {
	c, f, s := serve(t)
	ctx, lun := t.Context(), uint16(7)
	const iqn = "iqn.2026-01.io.lunar:a/b c%2F"
	calls := []struct {
		call func() error
		want string
	}{
		{func() error { _, err := c.Volumes(ctx); return err }, "volumes"},
		{func() error { _, err := c.Volume(ctx, "V 1"); return err }, "volume V 1"},
		{func() error { _, err := c.AddVolume(ctx, api.AddVolume{Device: "/d", Format: "xfs"}); return err }, "add {Device:/d Name: Format:xfs Force:false AllowUnfenced:false}"},
		{func() error { return c.RenameVolume(ctx, "A", "B") }, "rename A B"},
		{func() error { return c.RedirectVolume(ctx, "A", true) }, "redirect A true"},
		{func() error { _, err := c.MoveVolume(ctx, "A", "n2"); return err }, `move A "n2"`},
		{func() error { return c.EjectVolume(ctx, "A") }, "eject A"},
		{func() error { _, err := c.Cluster(ctx); return err }, "cluster"},
		{func() error { _, err := c.InitCluster(ctx); return err }, "init"},
		{func() error { _, err := c.JoinCluster(ctx, api.Join{Address: "a", Token: "t"}); return err }, "join {Address:a Token:t}"},
		{func() error { return c.LeaveCluster(ctx, api.Leave{Force: true}) }, "leave {Force:true}"},
		{func() error { _, err := c.NewToken(ctx, api.NewToken{Seconds: 9}); return err }, "token {Seconds:9}"},
		{func() error { _, err := c.SaveCluster(ctx, io.Discard); return err }, "save"},
		{func() error { _, err := c.Nodes(ctx); return err }, "nodes"},
		{func() error { _, err := c.Node(ctx, "n 1"); return err }, "node n 1"},
		{func() error { _, err := c.DrainNode(ctx, "n1"); return err }, "drain n1"},
		{func() error { return c.ResumeNode(ctx, "n1") }, "resume n1"},
		{func() error { _, err := c.EvictNode(ctx, "n1", true); return err }, "evict n1 true"},
		{func() error { _, err := c.Networks(ctx); return err }, "networks"},
		{func() error { _, err := c.SetNetwork(ctx, "N 1", api.SetNetwork{}); return err }, "set-network N 1 true"},
		{func() error { _, err := c.Heartbeats(ctx); return err }, "heartbeats"},
		{func() error { _, err := c.ValidateCluster(ctx); return err }, "validate"},
		{func() error { _, err := c.Images(ctx, "A&B"); return err }, `images "A&B"`},
		{func() error { _, err := c.Image(ctx, "A/x/../y z.img"); return err }, "image A x/../y z.img"},
		{func() error { _, err := c.CreateImage(ctx, api.CreateImage{Image: "A/b", Size: 5}); return err }, "create {Image:A/b Size:5 Thick:false From:}"},
		{func() error { _, err := c.ChangeImage(ctx, "A/b", api.ChangeImage{Size: 9}); return err }, "change A b {Size:9 Name: Force:false}"},
		{func() error { return c.DeleteImage(ctx, "A/b", true) }, "delete A b true"},
		{func() error { _, err := c.Targets(ctx); return err }, "targets"},
		{func() error { _, err := c.CreateTarget(ctx, iqn); return err }, "create-target " + iqn},
		{func() error { return c.DeleteTarget(ctx, iqn, false) }, "delete-target " + iqn + " false"},
		{func() error { _, err := c.Map(ctx, iqn, api.Map{Image: "A/b", LUN: &lun}); return err }, "map " + iqn + " A/b 7"},
		{func() error { return c.Unmap(ctx, iqn, 7) }, "unmap " + iqn + " 7"},
		{func() error { return c.Allow(ctx, iqn, "iqn.i") }, "allow " + iqn + " iqn.i"},
		{func() error { return c.Disallow(ctx, iqn, "iqn.i") }, "disallow " + iqn + " iqn.i"},
		{func() error { return c.SetCHAP(ctx, iqn, api.SetCHAP{User: "u", Secret: "s"}) }, "chap " + iqn + " u"},
		{func() error { _, err := c.Sessions(ctx); return err }, "sessions"},
		{func() error { _, err := c.Transfer(ctx, api.Transfer{Image: "A/b"}, nothing); return err }, "finish t 1"},
		{func() error { return dropped(c.Transfer(ctx, api.Transfer{Image: "A/b"}, failing)) }, "drop t 1"},
		{func() error { _, err := c.Backups(ctx); return err }, "backups"},
		{func() error { _, err := c.BeginBackup(ctx, api.BeginBackup{Volume: "A"}); return err },
			"begin backup {Volume:A Images:[] Node: Snapshot: Since: Redirect:false NoHooks:false Attached:false Listen: LimitNS:0 WaitNS:<nil>}"},
		{func() error { return c.EndBackup(ctx, "A") }, "end backup A"},
		{func() error { _, err := c.Jobs(ctx); return err }, "jobs"},
		{func() error { return c.Log(ctx, "", false, func(api.Event) error { return nil }) }, "log false"},
	}
	if want := len(s.routes()) - 3; len(calls) != want {
		t.Fatalf("%d calls tried, the table has %d besides version, the opening of transfers and repairs", len(calls), want)
	}
	for _, tt := range calls {
		f.calls, f.err = nil, nil
		if err := tt.call(); err != nil {
			t.Errorf("%s: %v", tt.want, err)
		}
		if !reflect.DeepEqual(f.calls, []string{tt.want}) {
			t.Errorf("calls %q, want %q", f.calls, tt.want)
		}
		f.err = api.Errorf(api.Refused, "no").WithHint("yes")
		err := tt.call()
		var e *api.Error
		if !errors.As(err, &e) || !reflect.DeepEqual(e, f.err) {
			t.Errorf("%s: error %v, want %v", tt.want, err, f.err)
		}
	}
	if v, err := c.Version(ctx); err != nil || v.Node != "n1" {
		t.Errorf("version %+v, %v", v, err)
	}
}

func TestSavedFileIsWhole(t *testing.T) {
	c, f, _ := serve(t)
	var got strings.Builder
	if saved, err := c.SaveCluster(t.Context(), &got); err != nil || saved.Node != "n1" || saved.Bytes != 5 || got.String() != "saved" {
		t.Fatalf("saved %+v %q, %v", saved, &got, err)
	}
	f.promised = 6
	if _, err := c.SaveCluster(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "5 of 6 bytes") {
		t.Fatalf("error %v", err)
	}
}

func TestPlainErrorsAreFailures(t *testing.T) {
	c, f, _ := serve(t)
	f.err = errors.New("disk on fire")
	_, err := c.Volumes(t.Context())
	if api.CodeOf(err) != api.Failed || err.Error() != "disk on fire" || api.ExitCode(err) != api.ExitFailed {
		t.Fatalf("error %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	c := api.NewClient(filepath.Join(t.TempDir(), "none"))
	_, err := c.Volumes(t.Context())
	if api.ExitCode(err) != api.ExitUnreachable || !strings.Contains(err.Error(), "systemctl status lunard") {
		t.Fatalf("error %v", err)
	}
}

func TestLogFiltersAndFollows(t *testing.T) {
	c, _, _ := serve(t)
	var got []string
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := c.Log(ctx, "A", true, func(e api.Event) error {
		if got = append(got, e.Text); len(got) == 2 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !reflect.DeepEqual(got, []string{"A", "A"}) {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestBadRequests(t *testing.T) {
	_, f, s := serve(t)
	tests := []struct{ method, path, body string }{
		{"POST", "/v1/volumes", `{"device": 3}`},
		{"POST", "/v1/volumes", `{"device": "/d", "colour": "red"}`},
		{"POST", "/v1/volumes", `{"device": "/d"} {}`},
		{"POST", "/v1/volumes", ``},
		{"POST", "/v1/volumes", `{"device": "` + strings.Repeat("x", api.MaxBody) + `"}`},
		{"DELETE", "/v1/images/A/b?force=perhaps", ``},
		{"DELETE", "/v1/targets/t/luns/70000", ``},
		{"GET", "/v2/volumes", ``},
		{"PUT", "/v1/volumes", ``},
	}
	for _, tt := range tests {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"code":"invalid"`) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, w.Code, w.Body)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("calls %q", f.calls)
	}
}

func TestMetrics(t *testing.T) {
	c, _, s := serve(t)
	if _, err := c.Volumes(t.Context()); err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(s.Metrics())
	defer ts.Close()
	resp, err := http.Get(ts.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	for _, line := range []string{
		`lunar_volume_ios_total{operation="read",path="direct",volume="Volume1"} 5`,
		`lunar_volume_io_bytes_total{operation="read",path="direct",volume="Volume1"} 20480`,
		`lunar_volume_state{state="Direct",volume="Volume1"} 1`,
		`lunar_volume_state{state="Paused",volume="Volume1"} 0`,
		`lunar_iscsi_sessions 3`,
		`lunar_lun_available{image="Volume1/a.img",lun="3",target="iqn.t"} 1`,
		`lunar_cluster_node_up{member="n2",state="Down"} 0`,
		`lunar_network_state{network="Cluster",state="Partitioned"} 1`,
		`lunar_fencings_total{outcome="proven"} 1`,
		`lunar_fencings_total{outcome="failed"} 0`,
		`lunar_lun_commands_total{lun="3",operation="write",target="iqn.t"} 7`,
		`lunar_command_duration_seconds_bucket{operation="write",le="0.002097152"} 0`,
		`lunar_command_duration_seconds_bucket{operation="write",le="0.004194304"} 1`,
		`lunar_command_duration_seconds_sum{operation="write"} 0.003`,
		`lunar_heartbeat_age_seconds{family="IPv6",network="Cluster",peer="n2"} 0.25`,
		`lunar_heartbeats_total{family="IPv6",network="Cluster",peer="n2",what="missing"} 3`,
		`lunar_heartbeat_rtt_seconds_bucket{family="IPv6",network="Cluster",peer="n2",le="2.048e-06"} 5`,
		`lunar_heartbeat_rtt_seconds_count{family="IPv6",network="Cluster",peer="n2"} 6`,
		`lunar_heartbeats_refused_total{reason="forged"} 2`,
		`lunar_network_verdicts_total{verdict="node lost"} 1`,
		`lunar_api_call_duration_seconds_count{call="GET /v1/volumes",status="200"} 1`,
		`lunar_build_info{`,
	} {
		if !strings.Contains(string(data), line) {
			t.Errorf("no %s", line)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(`{"device":"/dev/sdb","name":"V","format":"xfs"}`)
	f.Add(`{"device":null}x`)
	s, err := New(Options{Volumes: &fake{}, Images: &fake{}, Targets: &fake{}, Sessions: &fake{}, Events: &fake{}, Jobs: &fake{}, Cluster: &fake{}, Nodes: &fake{}, Networks: &fake{}, Transfers: &fake{}, Backups: &fake{},
		Stats: stats, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body string) {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/volumes", strings.NewReader(body)))
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Fatalf("%q: %d", body, w.Code)
		}
	})
}

// TestExemplars: who asks for OpenMetrics is told which command was slow.
func TestExemplars(t *testing.T) {
	_, _, s := serve(t)
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	s.Metrics().ServeHTTP(w, r)
	for line := range strings.Lines(w.Body.String()) {
		if rest, ok := strings.CutPrefix(line, `lunar_command_duration_seconds_bucket{operation="write",le="0.004194304"} 1 # {`); ok {
			for _, label := range []string{`initiator="iqn.i"`, `lun="3"`, `target="` + strings.Repeat("t", 40) + `"`, "} 0.003 1e+09\n"} {
				if !strings.Contains(rest, label) {
					t.Errorf("%s is not in %s", label, rest)
				}
			}
			return
		}
	}
	t.Errorf("no exemplar in %s", w.Body)
}
