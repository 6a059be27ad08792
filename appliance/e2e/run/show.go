package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"lunar/appliance/e2e/lab"
)

const (
	volumeSize = 4 << 30
	imageSize  = 1 << 30
	regions    = 16 // of random data, 4 MiB each
	iqn        = "iqn.2026-01.lunar:run"
)

// show is one run: a node with one volume, one image and one target.
type show struct {
	lab    *lab.Lab
	node   *lab.Lunard
	device *lab.Loop
	source string // the file whose content the LUN gets
	export *lab.Export
}

// check is the main job with every comparison; it ends with the image served.
func (s *show) check(ctx context.Context, address string) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"start lunard with a 4 GiB volume in a file", func(ctx context.Context) error { return s.start(ctx, address) }},
		{"export a thin image of 1 GiB", s.publish},
		{"write 64 MiB of random data through QEMU's initiator", s.write},
		{"read it back and compare", func(ctx context.Context) error { return lab.Equal(ctx, s.source, s.export.URLs[0]) }},
		{"eject the volume, mount it with the plain kernel, compare the image's file", s.compareFile},
		{"take the volume back, as it is, and compare once more", s.takeBack},
	} {
		from := time.Now()
		fmt.Printf("  %-76s ", step.what)
		if err := step.do(ctx); err != nil {
			fmt.Println("FAILED")
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("ok %6.2fs\n", time.Since(from).Seconds())
	}
	return nil
}

func (s *show) start(ctx context.Context, address string) (err error) {
	if s.device, err = s.lab.Loop("volume.img", volumeSize); err != nil {
		return err
	}
	s.node, err = s.lab.Lunard(ctx, lab.Config{Address: address, Port: 3260})
	return err
}

func (s *show) publish(ctx context.Context) (err error) {
	s.export, err = s.node.ServeImage(ctx, s.device.Path, fmt.Sprint(imageSize), iqn)
	return err
}

func (s *show) write(ctx context.Context) (err error) {
	if s.source, err = s.lab.RandomFile("source.raw", imageSize, regions); err != nil {
		return err
	}
	return lab.Upload(ctx, s.source, s.export.URLs[0])
}

func (s *show) compareFile(ctx context.Context) error {
	if err := s.node.Script(ctx, "target unmap "+iqn+" 0", "volume eject Volume1"); err != nil {
		return err
	}
	mount, err := s.lab.Mount(s.device.Path, "mnt", "xfs", unix.MS_RDONLY)
	if err != nil {
		return err
	}
	want, err := lab.Checksum(s.source)
	if err != nil {
		return err
	}
	got, err := lab.Checksum(filepath.Join(mount.Path, "disk.img"))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the image's file has SHA-256 %s, written was %s", got, want)
	}
	return mount.Close()
}

func (s *show) takeBack(ctx context.Context) error {
	err := s.node.Script(ctx, "volume add "+s.device.Path+" --name Volume1", "target map "+iqn+" Volume1/disk.img --lun 0")
	if err != nil {
		return err
	}
	return lab.Equal(ctx, s.source, s.export.URLs[0])
}

// serve tells how to connect and waits for the end of ctx or of lunard.
func (s *show) serve(ctx context.Context) error {
	fmt.Print(howToConnect(s.node.Address, s.node.Ports[0], iqn))
	fmt.Printf("lunarctl: %s --socket %s volume show Volume1\nCtrl-C ends it.\n",
		filepath.Join(s.lab.Bin, "lunarctl"), s.node.Socket)
	select {
	case <-ctx.Done():
		return nil
	case <-s.node.Exited():
		return fmt.Errorf("lunard ended: %s", s.node.Log())
	}
}

func howToConnect(address string, port int, iqn string) string {
	return fmt.Sprintf(`
Serving %[3]s, LUN 0, at %[1]s:%[2]d. To serve other machines: make run ADDRESS=<this machine's address>

  Linux    iscsiadm -m discovery -t sendtargets -p %[1]s:%[2]d
           iscsiadm -m node -T %[3]s -p %[1]s:%[2]d --login
  QEMU     qemu-system-x86_64 … -drive file=iscsi://%[1]s:%[2]d/%[3]s/0,format=raw,if=virtio
  ESXi     esxcli iscsi software set --enabled=true
           esxcli iscsi adapter discovery sendtarget add -A vmhbaNN -a %[1]s:%[2]d
           esxcli storage core adapter rescan -A vmhbaNN
  Windows  New-IscsiTargetPortal -TargetPortalAddress %[1]s -TargetPortalPortNumber %[2]d
           Connect-IscsiTarget -NodeAddress %[3]s

`, address, port, iqn)
}
