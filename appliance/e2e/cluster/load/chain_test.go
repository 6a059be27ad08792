package load

import (
	"encoding/binary"
	"strings"
	"testing"
)

// TestJudgeFindsWhatIsMissing has a chain write to two images, and takes records away.
func TestJudgeFindsWhatIsMissing(t *testing.T) {
	const images = 2
	const records = 3 * images * chainSlots / 2
	c := &Chains{all: []*chain{{id: 0}}}
	copies := [][]byte{make([]byte, ChainRegion), make([]byte, ChainRegion)}
	if err := c.Judge(copies); err == nil || !strings.Contains(err.Error(), "no record of chain 0") {
		t.Error(err)
	}
	set := func(n, to int64) {
		binary.LittleEndian.PutUint64(copies[n%images][place(0, n, images)+16:], uint64(to))
	}
	for n := int64(1); n <= records; n++ {
		set(n, n)
	}
	if err := c.Judge(copies); err != nil {
		t.Error(err)
	}
	set(records+1, records+1)
	set(records, records-images*chainSlots) // what was there before
	if err := c.Judge(copies); err == nil || !strings.Contains(err.Error(), "predecessor") {
		t.Error(err)
	}
}
