// Command gotgt serves one file by the embedded gotgt target, with O_DIRECT: a peer to measure and
// to test beside ours, in a process of its own so that its CPU time can be told.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/gostor/gotgt/pkg/config"
	_ "github.com/gostor/gotgt/pkg/port/iscsit" // registers the driver
	"github.com/gostor/gotgt/pkg/scsi"
	_ "github.com/gostor/gotgt/pkg/scsi/backingstore" // registers the null store, which gotgt needs for LUN 0
	"github.com/sirupsen/logrus"
)

func main() {
	port := flag.Int("port", 3260, "TCP `port`")
	iqn := flag.String("iqn", "", "target `name`")
	file := flag.String("file", "", "`path` of the file or device to serve")
	flag.Parse()
	logrus.SetLevel(logrus.FatalLevel)
	if err := serve(*port, *iqn, *file); err != nil {
		slog.Error("gotgt", "err", err)
		os.Exit(1)
	}
}

func serve(port int, iqn, file string) error {
	scsi.RegisterBackingStore("direct", newDirectStore)
	c := &config.Config{
		Storages:     []config.BackendStorage{{DeviceID: 1000, Path: "direct:" + file, Online: true, BlockShift: 9}},
		ISCSIPortals: []config.ISCSIPortalInfo{{ID: 0, Portal: fmt.Sprintf("127.0.0.1:%d", port)}},
		ISCSITargets: map[string]config.ISCSITarget{
			iqn: {TPGTs: map[string][]uint64{"1": {0}}, LUNs: map[string]uint64{"0": 1000}},
		},
	}
	if err := scsi.InitSCSILUMap(c); err != nil {
		return err
	}
	driver, err := scsi.NewTargetDriver("iscsi", scsi.NewSCSITargetService())
	if err != nil {
		return err
	}
	if err := driver.NewTarget(iqn, c); err != nil {
		return err
	}
	return driver.Run(port)
}
