package main

import (
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	stat := "42 (a b) c) S 1 1 1 0 -1 4194304 100 0 0 0 250 75 0 0 20 0 9 0 1 2 3"
	got, err := parseStat(stat)
	if err != nil || got != 3.25 {
		t.Errorf("got %v, %v, want 3.25", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1", strings.Replace(stat, "250", "x", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestMedians(t *testing.T) {
	got := medians([]Sample{{IOPS: 3, P50: 1}, {IOPS: 1, P50: 9}, {IOPS: 2, P50: 5}})
	if got.IOPS != 2 || got.P50 != 5 {
		t.Errorf("got %+v", got)
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("even count: got %v, want 2.5", got)
	}
}

func TestBar(t *testing.T) {
	read4k := Load{Random: true, Block: 4096, Depth: 32, Connections: 1}
	cases := []struct {
		name         string
		peer         string
		mine, theirs Sample
		want         string
	}{
		{"met", "tgtd-aio", Sample{IOPS: 10, CPU: 1}, Sample{IOPS: 10, CPU: 2}, "met"},
		{"slower", "tgtd-rdwr", Sample{IOPS: 9, CPU: 1}, Sample{IOPS: 10, CPU: 2}, "missed: [IOPS ≥ 1]"},
		{"too much CPU", "tgtd-aio", Sample{IOPS: 11, CPU: 1}, Sample{IOPS: 10, CPU: 1.9}, "missed: [CPU ≥ 2.0]"},
		{"no bar", "gotgt", Sample{IOPS: 1, CPU: 9}, Sample{IOPS: 10, CPU: 1}, ""},
		{"no peer", "floor-ring", Sample{IOPS: 1, CPU: 9}, Sample{IOPS: 10, CPU: 1}, ""},
	}
	for _, c := range cases {
		if got := bar(read4k, c.peer, c.mine, c.theirs); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestLoads(t *testing.T) {
	all := loads([]int{1, 8})
	if len(all) != 12 {
		t.Fatalf("%d loads, want 12", len(all))
	}
	if got, want := all[0].String(), "4k random read QD1 ×1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFloorTakes(t *testing.T) {
	cases := []struct {
		target      string
		depth       int
		connections int
		want        bool
	}{
		{"lunard", 32, 8, true},
		{"floor-ring", 1, 8, true},
		{"floor-ring", 2, 1, false},
		{"floor-ring", 1, 65, false},
		{"floor-pread", 1, 1, true},
		{"floor-pread", 1, 8, false},
		{"floor-null", 1, 8, false},
	}
	for _, c := range cases {
		err := takes(c.target, Load{Depth: c.depth, Connections: c.connections})
		if (err == nil) != c.want {
			t.Errorf("%s, depth %d, %d connections: %v", c.target, c.depth, c.connections, err)
		}
	}
}
