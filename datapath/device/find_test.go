package device_test

import (
	"slices"
	"testing"

	"lunar/datapath/device"
	"lunar/datapath/device/loopdev"
)

func TestFindByIdentity(t *testing.T) {
	l := loopdev.Scratch(t, 1<<20, loopdev.Options{})
	d, err := device.Open(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if paths, err := device.Find(d.WWID); err != nil || !slices.Equal(paths, []string{l.Path}) {
		t.Errorf("%v, %v: want %s", paths, err, l.Path)
	}
	if paths, err := device.Find("naa.0"); err != nil || len(paths) != 0 {
		t.Errorf("%v, %v: want none", paths, err)
	}
}
