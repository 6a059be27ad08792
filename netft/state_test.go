package netft

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"lunar/netft/internal/netnstest"
	"lunar/netft/network"
)

func someState() state {
	return state{
		Peers: []Peer{{Name: "node2", Number: 2, Cluster: clusterAddress(2), Interfaces: []network.Interface{
			{Index: 3, Name: "netA", MTU: 1500, Up: true, Carrier: true, Addresses: netnstest.Prefixes("10.1.0.2/24", "fe80::1/64")},
		}}},
		Settings: []network.Setting{{Name: "Cluster <1>", Role: network.RoleCluster, Metric: 100, Manual: true}},
	}
}

func TestStateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers")
	if s, err := readState(path); err != nil || s.Peers != nil {
		t.Fatalf("without a file: %v, %v", s, err)
	}
	for range 2 { // the second replaces the first
		if err := writeState(path, someState()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readState(path)
	if err != nil || !reflect.DeepEqual(got, someState()) {
		t.Fatalf("read %+v, %v", got, err)
	}
	if names, _ := filepath.Glob(path + "*"); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	b, _ := os.ReadFile(path)
	for i := range b {
		bad := append([]byte(nil), b...)
		bad[i] ^= 1
		if s, err := decodeState(bad); err == nil && !reflect.DeepEqual(s, someState()) {
			t.Fatalf("byte %d changed, and read as %+v", i, s)
		}
	}
	if _, err := decodeState(b[:len(b)/2]); !errors.Is(err, ErrState) {
		t.Errorf("half a file: %v", err)
	}
	if err := writeState(filepath.Join(t.TempDir(), "none", "peers"), someState()); err == nil {
		t.Error("no error without the folder")
	}
}

func FuzzState(f *testing.F) {
	b, err := encodeState(someState())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"sum":"","state":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		again, err := encodeState(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeState(again); err != nil || !reflect.DeepEqual(got, s) {
			t.Fatalf("%+v became %+v, %v", s, got, err)
		}
	})
}
