package link

import "testing"

// The kernels that Lunar runs on have the family; the library's own question for it reads past its header.
func TestEthtoolFamily(t *testing.T) {
	if ethtoolFamily() == 0 {
		t.Fatal("no ethtool family: speeds are not known")
	}
}
