package arch

// Rules is what Check holds a tree to.
type Rules struct {
	// Module is the module path, the prefix of our own import paths.
	Module string
	// Layers has a row per package. A row covers the folders below it that have no row of their own.
	Layers []Layer
	// Keepers names, per outside module, the only layers that may import it.
	Keepers map[string][]string
	// BannedNames are package names that say nothing about their subject.
	BannedNames []string
	// MaxFileLines and MaxFuncLines bound hand-written sources, tests excepted.
	MaxFileLines, MaxFuncLines int
	// MaxMainLines bounds each main.go below MainsUnder.
	MaxMainLines int
	MainsUnder   string
}

// Layer is one row of the table: a package, by its folder, and those of ours that it may import.
type Layer struct {
	Folder  string
	Imports []string
}

// Everything in Layer.Imports allows each package of the module.
const Everything = "*"

// Lunar is the table of the design, §2.
func Lunar() Rules {
	return Rules{
		Module:       "lunar",
		Layers:       append(dataLayers(), applianceLayers()...),
		Keepers:      keepers(),
		BannedNames:  []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base", "lib"},
		MaxFileLines: 700,
		MaxFuncLines: 70,
		MaxMainLines: 50,
		MainsUnder:   "appliance/cmd",
	}
}

func dataLayers() []Layer {
	return []Layer{
		{"iscsi/pdu", nil},
		{"iscsi/scsi", nil},
		{"iscsi", []string{"iscsi/pdu", "iscsi/scsi"}},
		{"datapath/layout", nil},
		{"datapath/device", nil},
		{"datapath/uring", nil},
		{"datapath/trace", nil},
		{"datapath/wire/nbd", []string{"datapath/layout"}},
		{"datapath/wire", []string{"datapath/layout", "datapath/wire/nbd"}},
		{"datapath/coordinator", []string{"datapath/layout", "datapath/device", "datapath/wire", "datapath/uring"}},
		{"datapath/volume", []string{"datapath/layout", "datapath/device", "datapath/wire", "datapath/uring"}},
		{"bpf", nil},
		{"netft", []string{"bpf"}},
	}
}

func applianceLayers() []Layer {
	return []Layer{
		{"appliance/config", nil},
		{"appliance/api", nil},
		{"appliance/diskfile", []string{"appliance/api"}},
		{"appliance/slot", nil},
		{"appliance/firstboot", nil},
		{"appliance/console", []string{"appliance/api", "appliance/firstboot", "appliance/slot"}},
		{"appliance/cluster", []string{"appliance/config"}},
		{"appliance/fence/guard", nil},
		{"appliance/hook", nil},
		{"appliance/fence", []string{"appliance/cluster", "appliance/fence/guard", "datapath/device"}},
		{"appliance/snapshot", []string{"datapath/volume"}},
		{"appliance/namespace", []string{"datapath/volume"}},
		{"appliance/namespace/publish", nil},
		{"appliance/server", []string{"appliance/api"}},
		{"appliance/web", []string{"appliance/api"}},
		{"appliance/daemon", []string{Everything}},
		{"appliance/cmd/lunard", []string{"appliance/daemon"}},
		{"appliance/cmd/lunarctl", []string{"appliance/api", "appliance/diskfile", "appliance/console", "appliance/firstboot", "appliance/slot", "appliance/namespace/publish"}},
		{"appliance/e2e", []string{Everything}},
		{"appliance/bench", []string{"appliance/e2e", "appliance/api"}},
		{"appliance/arch", nil},
	}
}

// keepers keeps etcd off the path of an I/O, and each library behind the package that wraps it.
func keepers() map[string][]string {
	return map[string][]string{
		"go.etcd.io/etcd":                     {"appliance/cluster", "appliance/daemon"},
		"github.com/hanwen/go-fuse":           {"appliance/namespace", "appliance/e2e"},
		"github.com/cilium/ebpf":              {"bpf"},
		"github.com/vishvananda/netlink":      {"netft", "appliance/e2e"},
		"github.com/pawelgaczynski/giouring":  {"datapath/uring"},
		"github.com/spf13/cobra":              {"appliance/cmd/lunarctl"},
		"github.com/prometheus/client_golang": {"appliance/server", "appliance/daemon"},
	}
}
