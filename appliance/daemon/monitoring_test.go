package daemon

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// monitoring is what the package installs for Prometheus and Grafana.
const monitoring = "../../systemd/monitoring"

var (
	usedMetric  = regexp.MustCompile(`\blunar_[a-z_]+`)
	givenMetric = regexp.MustCompile(`(?m)^# TYPE (lunar_[a-z_]+) ([a-z]+)$`)
)

// seldom are metrics that one node has only when something happens.
var seldom = []string{
	"lunar_backup_age_seconds", "lunar_backup_read_bytes", // of a backup
	"lunar_iscsi_initiator_sessions",                                // of an initiator
	"lunar_heartbeat_rtt_seconds_bucket", "lunar_heartbeat_path_up", // of another node
	"lunar_heartbeat_kernel", "lunar_heartbeat_late_ticks_total", "lunar_heartbeats_refused_total", "lunar_heartbeat_age_seconds", "lunar_heartbeat_jitter_seconds", "lunar_network_state",
	"lunar_network_verdicts_total",
}

// TestMonitoringNamesRealMetrics: whatever dashboard and alerts name, a running lunard gives, or the page documents as
// something that happens.
func TestMonitoringNamesRealMetrics(t *testing.T) {
	b := newBench(t).inCluster()
	b.config.Web.Address = "127.0.0.1:0"
	client := b.start()
	b.served(b.disk())
	_, err := client.InitCluster(t.Context())
	must(t, err)
	eventually(t, patience, "the console serves", func() bool {
		w, err := client.Web(t.Context())
		return err == nil && w.Address != ""
	})
	given := b.scrape()
	page, err := os.ReadFile("../docs/metrics.md")
	must(t, err)
	for _, name := range []string{"lunar-alerts.yaml", "lunar-dashboard.json"} {
		text, err := os.ReadFile(filepath.Join(monitoring, name))
		must(t, err)
		used := map[string]bool{}
		for _, m := range usedMetric.FindAllString(string(text), -1) {
			used[m] = true
		}
		if len(used) < 15 {
			t.Errorf("%s names %d metrics only", name, len(used))
		}
		for _, m := range slices.Sorted(maps.Keys(used)) {
			documented := bytes.Contains(page, []byte("`"+regexp.MustCompile(`_bucket$`).ReplaceAllString(m, "")+"`"))
			if !documented || !given[m] && !slices.Contains(seldom, m) {
				t.Errorf("%s: %s is documented: %t; lunard gives it: %t", name, m, documented, given[m])
			}
		}
	}
}

// scrape is what lunard gives as OpenMetrics' predecessor, by name; of histograms the names that queries use.
func (b *bench) scrape() map[string]bool {
	b.t.Helper()
	resp, err := http.Get("http://" + b.daemon.listeners.metrics.Addr().String() + "/metrics")
	must(b.t, err)
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(b.t, err)
	out := map[string]bool{}
	for _, m := range givenMetric.FindAllStringSubmatch(string(text), -1) {
		out[m[1]] = true
		if m[2] == "histogram" {
			out[m[1]+"_bucket"] = true
		}
	}
	return out
}

// TestAlerts has Prometheus' own tool check the rules and run their tests.
func TestAlerts(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool: run appliance/e2e/packages.sh web")
	}
	for _, args := range [][]string{{"check", "rules", "lunar-alerts.yaml"}, {"test", "rules", "lunar-alerts.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), tool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}
