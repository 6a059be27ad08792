package lab

import (
	"testing"
)

// A namespace's devices go some time after the namespace, so a lab that left that to the kernel met the names of the one before.
func TestNetworkAgainAtOnce(t *testing.T) {
	for range 20 {
		l, err := Open(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		n, err := l.Network(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			h, err := l.Host(t.Context(), string(rune('a'+i)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Join(t.Context(), n, byte(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
