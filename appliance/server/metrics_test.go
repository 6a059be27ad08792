package server

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"lunar/appliance/api"
)

// metricsPage documents the metrics for users.
const metricsPage = "../docs/metrics.md"

var (
	documentedRow = regexp.MustCompile("(?m)^\\| `(lunar_[a-z_]+)` \\| ([a-z]+) \\|([a-z, ]*)\\|")
	fqName        = regexp.MustCompile(`fqName: "(lunar_[a-z_]+)"`)
)

// TestMetricsAreDocumented compares the page with the registered metrics: names, kinds and labels.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range documentedRow.FindAllStringSubmatch(string(text), -1) {
		documented[row[1]] = row[2] + " " + strings.TrimSpace(row[3])
	}
	m := newMetrics(stats, api.Version{})
	m.observe("GET /v1/version", 200, 0)
	if registered := registeredMetrics(t, m.registry); !maps.Equal(documented, registered) {
		t.Errorf("documented: %v\nregistered: %v", documented, registered)
	}
	for _, name := range described(&collector{stats}) {
		if documented[name] == "" {
			t.Errorf("%s is described and not documented", name)
		}
	}
}

// registeredMetrics is kind and labels of each of our metrics, by name.
func registeredMetrics(t *testing.T, r *prometheus.Registry) map[string]string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), namespace+"_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		out[f.GetName()] = strings.ToLower(f.GetType().String()) + " " + strings.Join(inPageOrder(labels), ", ")
	}
	return out
}

// inPageOrder sorts labels as the page names them, from the general to the special.
func inPageOrder(labels []string) []string {
	order := []string{"member", "volume", "initiator", "target", "lun", "image", "kind", "outcome", "stage", "path", "operation", "state", "what", "peer", "network", "role", "interface", "family", "reason", "verdict", "call", "status", "version", "commit", "go", "node"}
	slices.SortFunc(labels, func(a, b string) int { return slices.Index(order, a) - slices.Index(order, b) })
	return labels
}

func described(c prometheus.Collector) (names []string) {
	ch := make(chan *prometheus.Desc, 128)
	c.Describe(ch)
	close(ch)
	for d := range ch {
		names = append(names, fqName.FindStringSubmatch(d.String())[1])
	}
	return names
}
