package daemon

import (
	"testing"

	"lunar/iscsi"
	"lunar/iscsi/scsi"
)

func TestDirectoryShowsWhatTheInitiatorMayReach(t *testing.T) {
	chap := func(secret string) *iscsi.Credentials { return &iscsi.Credentials{User: "u", Secret: []byte(secret)} }
	const me = "iqn.2026-01.test:me"
	for _, c := range []struct {
		name     string
		own, its *iscsi.Policy
		want     bool
	}{
		{"open", &iscsi.Policy{}, &iscsi.Policy{}, true},
		{"on the list", &iscsi.Policy{}, &iscsi.Policy{Initiators: []string{"iqn.2026-01.TEST:me"}}, true},
		{"not on the list", &iscsi.Policy{}, &iscsi.Policy{Initiators: []string{"iqn.2026-01.test:other"}}, false},
		{"nobody", &iscsi.Policy{}, &iscsi.Policy{Initiators: []string{}}, false},
		{"without a policy", &iscsi.Policy{}, nil, false},
		{"its CHAP was not shown", &iscsi.Policy{}, &iscsi.Policy{CHAP: chap("secret")}, false},
		{"another secret", &iscsi.Policy{CHAP: chap("other")}, &iscsi.Policy{CHAP: chap("secret")}, false},
		{"the same CHAP", &iscsi.Policy{CHAP: chap("secret")}, &iscsi.Policy{CHAP: chap("secret")}, true},
		{"no CHAP there", &iscsi.Policy{CHAP: chap("other")}, &iscsi.Policy{}, true},
	} {
		d, lu := newDirectory(), new(scsi.LogicalUnit)
		d.add("its", "6001", lu)
		d.admit("own", c.own)
		d.admit("its", c.its)
		if got := d.viewFrom("own").UnitByNAA(me+",i,0x800000000001", []byte{0x60, 1}) == lu; got != c.want {
			t.Errorf("%s: found %v", c.name, got)
		}
		if d.viewFrom("own").UnitByNAA(me+",i,0x800000000001", []byte{0x60, 2}) != nil {
			t.Errorf("%s: found what does not exist", c.name)
		}
	}
}

func TestDirectoryForgets(t *testing.T) {
	d, lu := newDirectory(), new(scsi.LogicalUnit)
	d.admit("a", &iscsi.Policy{})
	d.add("a", "6001", lu)
	d.add("a", "6001", lu)
	d.remove("a", "6001")
	if d.viewFrom("b").UnitByNAA("x", []byte{0x60, 1}) != lu {
		t.Error("one of two LUNs went, and the unit with it")
	}
	d.remove("a", "6001")
	d.remove("a", "6001")
	d.admit("a", nil)
	if d.viewFrom("b").UnitByNAA("x", []byte{0x60, 1}) != nil || len(d.units)+len(d.policies) != 0 {
		t.Error("the directory remembers")
	}
}
