package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"
)

// DefaultPath is where lunard looks when no --config is given; that file may be missing.
const DefaultPath = "/etc/lunar/lunard.toml"

// maxFileBytes bounds a configuration file: a larger one is a mistake, such as a disk image.
const maxFileBytes = 1 << 20

// Config is a node's whole configuration. The zero value is not valid: start from Default.
type Config struct {
	StateDir string  `toml:"state_dir"` // directory, mode 0700: cluster database, secret key, mount points
	Socket   string  `toml:"socket"`    // unix socket of the control API
	Node     Node    `toml:"node"`
	Log      Log     `toml:"log"`
	Metrics  Metrics `toml:"metrics"`
	ISCSI    ISCSI   `toml:"iscsi"`
	Engine   Engine  `toml:"engine"`
	Storage  Storage `toml:"storage"`
	Fence    Fence   `toml:"fence"`
	Cluster  Cluster `toml:"cluster"`
	Network  Network `toml:"network"`
	Trace    Trace   `toml:"trace"`
	Web      Web     `toml:"web"`

	Namespace Namespace `toml:"namespace"`
}

// Node names this machine in logs, tables and the cluster database.
type Node struct {
	Name string `toml:"name"` // default: the host name
}

// Log says how much lunard writes to its standard error, and in which form.
type Log struct {
	Level  string `toml:"level"`  // debug, info, warn, error
	Format string `toml:"format"` // text, json
}

// Metrics is the Prometheus endpoint; an empty Listen turns it off.
type Metrics struct {
	Listen string `toml:"listen"` // host:port
}

// Web is the console for browsers; an empty Address, the default, turns it off. It is served by TLS unless the address is
// a loopback one, with CertFile and KeyFile, or else a certificate of the cluster's CA, or of the node's own.
type Web struct {
	Address  string `toml:"address"`   // host:port
	CertFile string `toml:"cert_file"` // PEM, with the certificates between it and the CA
	KeyFile  string `toml:"key_file"`  // PEM
}

// ISCSI is the front end.
type ISCSI struct {
	Portals        []string `toml:"portals"`         // host:port, each a listener
	MaxConnections int      `toml:"max_connections"` // over all portals
	MaxPending     int      `toml:"max_pending"`     // of one address, not logged in
}

// Engine sizes the io_uring engine; 0 means the engine's own default.
type Engine struct {
	Rings         int      `toml:"rings"`           // threads, each with one ring; 0: one for every two CPUs
	InFlight      int      `toml:"in_flight"`       // operations given to the kernel per ring
	Queue         int      `toml:"queue"`           // operations that wait per ring beyond those
	BufferPoolMiB int      `toml:"buffer_pool_mib"` // registered, locked memory for I/O data
	Deadline      Duration `toml:"deadline"`        // of one I/O, after which it fails or is redirected
}

// Cluster says where this node meets the others, and chooses the cluster database: without Endpoints
// lunard runs its own etcd. Without an Address the cluster gives the node one, which is reached through
// whichever network works.
type Cluster struct {
	Address   string   `toml:"address"`   // this node's IP address for the other nodes, no port
	Profile   string   `toml:"profile"`   // ProfileDefault or ProfileFast
	Lease     Duration `toml:"lease"`     // in whole seconds: a node that is silent for so long is out
	Role      string   `toml:"role"`      // RoleNode or RoleWitness
	Endpoints []string `toml:"endpoints"` // URLs of an external etcd
	CAFile    string   `toml:"ca_file"`   // PEM; with https endpoints
	CertFile  string   `toml:"cert_file"` // PEM, this node's client certificate
	KeyFile   string   `toml:"key_file"`  // PEM, its key
}

// The values of cluster.profile: how soon the cluster database takes a silent leader for dead. Fast
// needs a network whose round trips stay well under 50 ms.
const (
	ProfileDefault = "default" // 1 s
	ProfileFast    = "fast"    // 0.5 s
)

// The values of cluster.role. A witness keeps a copy of the cluster database and votes; it serves no
// volume and no target.
const (
	RoleNode    = "node"
	RoleWitness = "witness"
)

// Network says how this node watches over the networks that it shares with others.
type Network struct {
	Profile string   `toml:"profile"` // of the heartbeats: ProfileDefault or ProfileFast
	Period  Duration `toml:"period"`  // between heartbeats; 0: the profile's
	Missed  int      `toml:"missed"`  // periods of silence after which a path counts as lost; 0: the profile's
	Port    int      `toml:"port"`    // UDP, the same on all nodes
	BPF     string   `toml:"bpf"`     // BPFAuto or BPFOff
}

// The values of network.bpf: whether heartbeats are stamped and answered in the kernel.
const (
	BPFAuto = "auto" // where the kernel and lunard's rights allow it
	BPFOff  = "off"
)

// Heartbeats is the period and the number of periods that count, as Profile, Period and Missed say together.
func (n *Network) Heartbeats() (period time.Duration, missed int) {
	period, missed = time.Second, 10
	if n.Profile == ProfileFast {
		period, missed = 100*time.Millisecond, 5
	}
	if n.Period != 0 {
		period = time.Duration(n.Period)
	}
	if n.Missed != 0 {
		missed = n.Missed
	}
	return period, missed
}

// Namespace says where this node shows the volumes as files.
type Namespace struct {
	Mount string `toml:"mount"` // folder; empty: nowhere; NamespaceAuto
}

// NamespaceAuto as namespace.mount is NamespacePath where the state folder is the default one, and nowhere
// else: several nodes on one machine would take it from each other.
const (
	NamespaceAuto = "auto"
	NamespacePath = "/ClusterStorage"
)

// NamespaceMount is where the volumes are shown, "" for nowhere.
func (c *Config) NamespaceMount() string {
	switch {
	case c.Namespace.Mount != NamespaceAuto:
		return c.Namespace.Mount
	case c.StateDir == defaultStateDir && c.Cluster.Role == RoleNode:
		return NamespacePath
	}
	return ""
}

// Storage says which block devices are this node's paths to the SAN.
type Storage struct {
	Devices []string `toml:"devices"` // patterns of paths, as of path.Match; empty: every block device
	// SharedKernel lets several nodes run on one machine, each with its own path to a LUN: an XFS may then be
	// mounted while another node's dead mount of it is there still.
	SharedKernel bool `toml:"shared_kernel"`
}

// Allows tells whether the device at path may be used.
func (s *Storage) Allows(device string) bool {
	if len(s.Devices) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Devices, func(pattern string) bool {
		ok, err := path.Match(pattern, device)
		return ok && err == nil
	})
}

// Fence says how a node that is out is kept from writing to a LUN that has no reservations.
type Fence struct {
	Agent           []string `toml:"agent"`            // command, run as AGENT… off NODE DEVICE; exit 0: it surely cannot write
	AgentTimeout    Duration `toml:"agent_timeout"`    // of one run
	InFlight        Duration `toml:"in_flight"`        // within it a device ends or fails each write; fencing by lease waits for it
	Watchdog        string   `toml:"watchdog"`         // device which the guard process feeds; opening it arms it
	WatchdogTimeout Duration `toml:"watchdog_timeout"` // after which an unfed watchdog restarts the machine
}

// Duration is a time.Duration written as Go and systemd write it: "30s", "500ms".
type Duration time.Duration

// UnmarshalText parses "30s".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it as 30s or 500ms", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

const defaultStateDir = "/var/lib/lunar"

// Default is the configuration of a node without a file.
func Default() Config {
	return Config{
		StateDir: defaultStateDir,
		Socket:   "/run/lunar/lunard.sock",
		Node:     Node{Name: hostName()},
		Log:      Log{Level: "info", Format: "text"},
		Metrics:  Metrics{Listen: "127.0.0.1:9469"},
		ISCSI:    ISCSI{Portals: []string{"[::]:3260"}, MaxConnections: 2048, MaxPending: 256},
		Engine:   Engine{BufferPoolMiB: 256, Deadline: Duration(30 * time.Second)},
		Fence:    Fence{AgentTimeout: Duration(time.Minute), InFlight: Duration(30 * time.Second), WatchdogTimeout: Duration(10 * time.Second)},
		Cluster:  Cluster{Profile: ProfileDefault, Lease: Duration(2 * time.Second), Role: RoleNode},
		Network:  Network{Profile: ProfileDefault, Port: 3343, BPF: BPFAuto},
		Trace:    Trace{Commands: true, BPF: BPFAuto},

		Namespace: Namespace{Mount: NamespaceAuto},
	}
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// Load reads path over the defaults and validates the result. With optional, a missing file is the
// same as an empty one.
func Load(path string, optional bool) (Config, error) {
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) && optional {
		return Default(), nil
	}
	if err != nil {
		return Config{}, err
	}
	return Parse(path, data)
}

func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, &Error{File: path, Problem: "cannot be read", Remedy: "check the path and its permissions", Err: err}
	case !info.Mode().IsRegular():
		return nil, &Error{File: path, Problem: "is not a regular file", Remedy: "give the path of a TOML file"}
	case info.Size() > maxFileBytes:
		return nil, &Error{File: path, Problem: fmt.Sprintf("is larger than %d bytes", maxFileBytes), Remedy: "give the path of a TOML file"}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{File: path, Problem: "cannot be read", Remedy: "check the path and its permissions", Err: err}
	}
	return data, nil
}
