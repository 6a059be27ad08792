package scsi

import (
	"bytes"
	"testing"
)

// FuzzExtendedCopy sends any parameter list through the whole command; the backend panics when it
// is called outside the unit.
func FuzzExtendedCopy(f *testing.F) {
	naa := testOptions().NAA
	f.Add((&copyBuilder{id: 1}).target(naa).blocks(0, 0, 8, 0, 64).list())
	f.Add((&copyBuilder{usage: listNone}).target(naa).target(naa[:4]).offset(0, 0, 1024, 1, 64, 512, 512).list())
	f.Add((&copyBuilder{usage: listDiscard}).target(naa).blocks(0, 0, 200, 1, 3).blocks(0, 1, 8, 0, 0).list())
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) > 1<<16 {
			return
		}
		b := newTestbed(t, 256, nil)
		b.fill()
		before := bytes.Clone(b.store.data)
		c := b.copy(b.nexus, list)
		if key := senseKeyOf(c); key == illegalRequest && !bytes.Equal(before, b.store.data) {
			t.Fatal("a refused parameter list changed the unit")
		}
		if c.Status == CheckCondition && len(c.Sense) == 0 {
			t.Fatal("CHECK CONDITION without sense data")
		}
	})
}

func senseKeyOf(c *Command) senseKey {
	if c.Status != CheckCondition {
		return noSense
	}
	key, _ := senseOf(c)
	return key
}
