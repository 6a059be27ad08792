package api

import (
	"encoding/json"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var p HeartbeatPath
	if q := p.Quantile(0.5); q != 0 {
		t.Fatalf("without any: %v", q)
	}
	p.RTT[10], p.RTT[20] = 98, 2
	if q := p.Quantile(0.5); q != 1<<11 {
		t.Fatalf("p50 %v", q)
	}
	if q := p.Quantile(0.99); q != time.Duration(1<<21) {
		t.Fatalf("p99 %v", q)
	}
}

func TestOutcome(t *testing.T) {
	v := Validation{Checks: []Check{{Outcome: Pass}, {Outcome: Failure}, {Outcome: Pass}}}
	if v.Count(Pass) != 2 || v.Count(Warning) != 0 || v.Count(Failure) != 1 {
		t.Fatal(v)
	}
	var c Check
	if err := json.Unmarshal([]byte(`{"outcome":"FINE"}`), &c); err == nil {
		t.Fatal("it is no outcome")
	}
	if err := json.Unmarshal([]byte(`{"outcome":"WARNING"}`), &c); err != nil || c.Outcome != Warning {
		t.Fatal(c, err)
	}
}
