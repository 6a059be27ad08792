package daemon

import (
	"errors"
	"syscall"
	"testing"

	"lunar/appliance/api"
	"lunar/datapath/layout/protocol"
)

// TestReservedPaths wants what lies in Lunar's own folders to be seen by nobody, and nobody to get there.
func TestReservedPaths(t *testing.T) {
	b := newBench(t)
	b.start()
	b.served(b.disk())
	ctx := t.Context()
	v, err := b.daemon.node.volume("Volume1")
	must(t, err)
	p, release := v.borrow()
	must(t, p.vol.Create(ctx, ".transfer/n1/1/half.img", protocol.CreateOptions{Size: 4096}))
	release()
	ns := tree{b.daemon.node}
	all, err := ns.List(ctx, v.id)
	if err != nil || len(all) != 1 || all[0].Path != "disk.img" {
		t.Errorf("%+v %v", all, err)
	}
	images, err := b.client.Images(ctx, "Volume1")
	if err != nil || len(images) != 1 {
		t.Errorf("%+v %v", images, err)
	}
	for _, path := range []string{".transfer", ".transfer/n1", ".transfer/n1/1/half.img", ".transfer/none"} {
		if _, err := ns.Stat(ctx, v.id, path); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("stat %s: %v", path, err)
		}
		if err := ns.Create(ctx, v.id, path); !errors.Is(err, syscall.EPERM) {
			t.Errorf("create %s: %v", path, err)
		}
		if err := ns.Rename(ctx, v.id, "disk.img", path); !errors.Is(err, syscall.EPERM) {
			t.Errorf("rename to %s: %v", path, err)
		}
	}
	for _, path := range []string{".transfer", ".transfer/x", ".lunar", ".lunar/snapshots/x", "../x", "a/../../x", "/x", "a//b", ".", "lost+found/x"} {
		_, err := b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/" + path, Size: 4096})
		refused(t, err, api.Invalid)
		_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/" + path, From: "Volume1/disk.img"})
		refused(t, err, api.Invalid)
		_, err = b.client.ChangeImage(ctx, "Volume1/disk.img", api.ChangeImage{Name: "Volume1/" + path})
		if code := api.CodeOf(err); err == nil || code != api.Invalid && code != api.Busy { // a LUN maps it
			t.Errorf("rename to %s: %v", path, err)
		}
	}
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img", Size: 4096})
	refused(t, err, api.Exists)
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/disk.img/x", Size: 4096})
	refused(t, err, api.Invalid)
	_, err = b.client.CreateImage(ctx, api.CreateImage{Image: "Volume1/.transferred/x", Size: 4096})
	must(t, err)
}
