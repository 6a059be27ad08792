package scsi

import (
	"bytes"
	"errors"
	"testing"
)

var twoGroups = []PortGroup{
	{ID: 1, State: ActiveOptimized, Preferred: true, Ports: []uint16{1, 2}},
	{ID: 7, State: ActiveNonOptimized, Ports: []uint16{513}},
}

func TestReportTargetPortGroups(t *testing.T) {
	b := newTestbed(t, 64, nil)
	report := cdb(opMaintenanceIn, actionReportTargetPortGroups, 0, 0, 0, 0, 0, 0, 1, 0)
	one := []byte{0, 0, 0, 12, 0, 0x8F, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1}
	if c := b.good(report, nil, 256); !bytes.Equal(c.Data[:c.Count], one) {
		t.Fatalf("without groups: % X", c.Data[:c.Count])
	}
	if err := b.unit.SetPortGroups(twoGroups); err != nil {
		t.Fatal(err)
	}
	b.bad(cdb(0x00), nil, 0, unitAttention, 0x2A06)
	want := []byte{
		0x80, 0x8F, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2,
		0x01, 0x8F, 0, 7, 0, 2, 0, 1, 0, 0, 2, 1,
	}
	if c := b.good(report, nil, 256); !bytes.Equal(c.Data[:c.Count], append([]byte{0, 0, 0, 28}, want...)) {
		t.Fatalf("% X", c.Data[:c.Count])
	}
	report[1] |= 0x20
	if c := b.good(report, nil, 256); !bytes.Equal(c.Data[:c.Count], append([]byte{0, 0, 0, 32, 0x10, 60, 0, 0}, want...)) {
		t.Fatalf("extended header: % X", c.Data[:c.Count])
	}
	report[9], report[8] = 6, 0
	if c := b.good(report, nil, 256); c.Count != 6 || c.Data[3] != 32 {
		t.Fatalf("truncated: % X", c.Data[:c.Count])
	}
	report[1] = 0x40 | actionReportTargetPortGroups
	b.bad(report, nil, 256, illegalRequest, 0x2400)
}

// SPC-4 §5.15.2.4: what each state lets through, for the port's own group only.
func TestAccessStates(t *testing.T) {
	inquiry, reserveIn, read := cdb(0x12, 0, 0, 0, 36), cdb(opPersistentReserveIn, 0, 0, 0, 0, 0, 0, 0, 8), cdb10(0x28, 0, 0, 1)
	for state, want := range map[AccessState]struct {
		inquiry, reserveIn bool
		read               uint16
	}{
		ActiveOptimized:    {true, true, 0},
		ActiveNonOptimized: {true, true, 0},
		Standby:            {true, true, 0x040B},
		Unavailable:        {true, false, 0x040C},
		Transitioning:      {true, false, 0x040A},
	} {
		b := newTestbed(t, 64, nil)
		if err := b.unit.SetPortGroups([]PortGroup{{ID: 1, State: state, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{2}}}); err != nil {
			t.Fatal(err)
		}
		b.run(b.nexus, cdb(0x03, 0, 0, 0, 18), nil, 18) // takes the unit attention
		if got := b.run(b.nexus, inquiry, nil, 36).Status == Good; got != want.inquiry {
			t.Errorf("state %X: INQUIRY %v", state, got)
		}
		if got := b.run(b.nexus, reserveIn, nil, 8).Status == Good; got != want.reserveIn {
			t.Errorf("state %X: PERSISTENT RESERVE IN %v", state, got)
		}
		if c := b.run(b.nexus, read, nil, 512); want.read != 0 {
			b.wantSense(c, notReady, want.read)
		} else {
			b.wantStatus(c, Good)
		}
		c := b.run(b.target.NewNexus(hostTwo, 2), cdb(0x00), nil, 0)
		b.wantSense(c, unitAttention, 0x2900)
	}
}

func TestPortGroupsUnchangedRaisesNothing(t *testing.T) {
	b := newTestbed(t, 64, nil)
	for range 2 {
		if err := b.unit.SetPortGroups(twoGroups); err != nil {
			t.Fatal(err)
		}
		b.run(b.nexus, cdb(0x00), nil, 0)
	}
	if err := b.unit.SetPortGroups(twoGroups); err != nil {
		t.Fatal(err)
	}
	b.good(cdb(0x00), nil, 0)
}

func TestPortGroupsRefused(t *testing.T) {
	b := newTestbed(t, 64, nil)
	for what, list := range map[string][]PortGroup{
		"state":      {{ID: 1, State: 4, Ports: []uint16{1}}},
		"ID twice":   {{ID: 1}, {ID: 1}},
		"port 0":     {{ID: 1, Ports: []uint16{0}}},
		"port twice": {{ID: 1, Ports: []uint16{1}}, {ID: 2, Ports: []uint16{1}}},
		"too many":   make([]PortGroup, maxPortGroups+1),
		"ports":      {{ID: 1, Ports: make([]uint16, maxGroupPorts+1)}},
	} {
		if err := b.unit.SetPortGroups(list); !errors.Is(err, ErrBadOption) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if group, ok := b.unit.targetPortGroup(1); !ok || group != defaultGroup {
		t.Error("a refused call changed the groups")
	}
}

func TestSetTargetPortGroups(t *testing.T) {
	b := newTestbed(t, 64, nil)
	if err := b.unit.SetPortGroups(twoGroups); err != nil {
		t.Fatal(err)
	}
	b.run(b.nexus, cdb(0x03, 0, 0, 0, 18), nil, 18)
	set := func(length byte) [16]byte {
		return cdb(opMaintenanceOut, actionSetTargetPortGroups, 0, 0, 0, 0, 0, 0, 0, length)
	}
	b.good(set(0), nil, 0)
	b.good(set(4), make([]byte, 4), 0)
	b.good(set(12), []byte{0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1}, 0)                        // active/optimized
	b.good(set(8), []byte{0, 0, 0, 0, 1, 0, 0, 7}, 0)                                     // as it is
	b.bad(set(8), []byte{0, 0, 0, 0, 1, 0, 0, 1}, 0, illegalRequest, 0x2600)              // not of an initiator's choice
	b.bad(set(8), []byte{0, 0, 0, 0, 2, 0, 0, 1}, 0, illegalRequest, 0x2600)              // standby
	b.bad(set(12), []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9}, 0, illegalRequest, 0x2600) // no such group
	b.bad(set(3), make([]byte, 3), 0, illegalRequest, 0x1A00)
	b.bad(set(7), make([]byte, 7), 0, illegalRequest, 0x1A00)
	if c := b.good(cdb(0x12, 0, 0, 0, 36), nil, 36); c.Data[5]&0x30 != 0x30 {
		t.Fatalf("TPGS %02x", c.Data[5])
	}
}
