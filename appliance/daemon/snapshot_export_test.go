package daemon

import (
	"testing"

	"lunar/appliance/api"
	"lunar/iscsi/scsi"
)

const snapshotIQN = iqn + "-snapshot"

// TestSnapshotAsLUN reads an image of a snapshot as an initiator does, which cannot write it, and wants it to stay for
// as long as it is mapped.
func TestSnapshotAsLUN(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx := t.Context()
	must(t, qemuIO(t, b.portal(), "", "write -P 1 0 1M"))
	_, err := b.client.CreateSnapshot(ctx, api.CreateSnapshot{Images: []string{"Volume1/disk.img"}, Name: "monday"})
	must(t, err)
	must(t, qemuIO(t, b.portal(), "", "write -P 2 0 64k"))
	b.refusedMaps()
	_, err = b.client.CreateTarget(ctx, snapshotIQN)
	must(t, err)
	lun, err := b.client.Map(ctx, snapshotIQN, api.Map{Image: "Volume1/disk.img@monday"})
	must(t, err)
	if !lun.ReadOnly || lun.Image != "Volume1/disk.img@monday" || lun.Size != 64<<20 {
		t.Errorf("%+v", lun)
	}
	for range 2 {
		b.writeProtected()
		for _, name := range []string{"Volume1@monday", "Volume1/disk.img@monday"} {
			refused(t, b.client.DeleteSnapshot(ctx, name, true), api.Busy, "LUN 0 of "+snapshotIQN, "lunarctl target unmap "+snapshotIQN+" 0")
		}
		b.restart()
	}
	must(t, b.client.Unmap(ctx, snapshotIQN, 0))
	must(t, b.client.DeleteSnapshot(ctx, "Volume1@monday", true))
	must(t, qemuIO(t, b.portal(), "", "read -P 2 0 64k", "read -P 1 64k 64k"))
}

func (b *bench) refusedMaps() {
	b.t.Helper()
	for image, code := range map[string]api.Code{
		"Volume1/disk.img@tuesday":                  api.NotFound,
		"Volume1/other.img@monday":                  api.NotFound,
		"Volume1/../disk.img@monday":                api.Invalid,
		"Volume1/.lunar/snapshots/monday/disk.img":  api.Invalid,
		"Volume1/disk.img@../monday":                api.NotFound,
		"Volume1/.lunar/snapshots/monday/x@monday":  api.Invalid,
		"Volume2/disk.img@monday":                   api.NotFound,
		"Volume1/.lunar/snapshots/../../disk.img@x": api.Invalid,
	} {
		_, err := b.client.Map(b.t.Context(), iqn, api.Map{Image: image})
		refused(b.t, err, code)
	}
}

// writeProtected reads what the snapshot has, and tries to change it.
func (b *bench) writeProtected() {
	b.t.Helper()
	i := login(b.t, b.portal(), initiatorName, snapshotIQN)
	i.ready()
	const wp = 0x80
	if r := i.command([]byte{0x1a, 0, 0x3f, 0, 192, 0}, nil, 192); r.status != scsi.Good || len(r.data) < 4 || r.data[2]&wp == 0 {
		b.t.Errorf("MODE SENSE(6): %+v", r)
	}
	if r := i.command([]byte{0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, nil, 4096); len(r.data) != 4096 || r.data[0] != 1 || r.data[4095] != 1 {
		b.t.Errorf("READ(10): %+v", r)
	}
	const writeProtected = 0x072700 // DATA PROTECT, WRITE PROTECTED
	unmap := append([]byte{0, 22, 0, 16, 0, 0, 0, 0}, make([]byte, 16)...)
	for what, r := range map[string]result{
		"WRITE(10)":         i.command([]byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}, make([]byte, 4096), 0),
		"WRITE SAME(16)":    i.command(cdb16(0x93, 0, 10, 8), make([]byte, 512), 0),
		"UNMAP":             i.command([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, unmap, 0),
		"COMPARE AND WRITE": i.command(append(cdb16(0x89, 0, 2, 0)[:13], 1, 0, 0), make([]byte, 1024), 0),
	} {
		if r.status != scsi.CheckCondition || r.sense != writeProtected {
			b.t.Errorf("%s: status %v, sense %06x", what, r.status, r.sense)
		}
	}
}
