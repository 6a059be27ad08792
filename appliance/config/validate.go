package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bounds of the numbers, each with its reason.
const (
	maxRings         = 64       // more threads than that gain nothing
	maxQueue         = 1 << 16  // operations; bounds memory and the time to drain
	minBufferPoolMiB = 16       // one 1 MiB buffer for a handful of connections
	maxBufferPoolMiB = 64 << 10 // locked memory
	maxConnections   = 1<<16 - 2
	minDeadline      = time.Second
	maxDeadline      = 5 * time.Minute
	minInFlight      = 100 * time.Millisecond
	maxSocketPath    = 107                   // sun_path of unix(7), less its final zero
	maxNodeName      = 63                    // a host name label, RFC 1123
	minBeat          = 50 * time.Millisecond // shorter ones cost more CPU than they tell
	maxBeat          = time.Minute
	minMissed        = 3   // one lost datagram is no lost network
	maxMissed        = 120 // Windows' own limit
)

// check is one rule: it returns the problem and the remedy, or "" when the rule holds.
type check struct {
	key  string
	test func(*Config) (problem, remedy string)
}

var checks = []check{
	{"state_dir", func(c *Config) (string, string) { return absolute(c.StateDir) }},
	{"socket", socket},
	{"node.name", nodeName},
	{"log.level", logLevel},
	{"log.format", logFormat},
	{"metrics.listen", metrics},
	{"web.address", webAddress},
	{"web.cert_file", func(c *Config) (string, string) { return optionalPath(c.Web.CertFile) }},
	{"web.key_file", webKeyFile},
	{"iscsi.portals", portals},
	{"iscsi.max_connections", func(c *Config) (string, string) { return within(c.ISCSI.MaxConnections, 1, maxConnections) }},
	{"iscsi.max_pending", func(c *Config) (string, string) { return within(c.ISCSI.MaxPending, 1, maxConnections) }},
	{"engine.rings", func(c *Config) (string, string) { return within(c.Engine.Rings, 0, maxRings) }},
	{"engine.in_flight", func(c *Config) (string, string) { return within(c.Engine.InFlight, 0, maxQueue) }},
	{"engine.queue", func(c *Config) (string, string) { return within(c.Engine.Queue, 0, maxQueue) }},
	{"engine.buffer_pool_mib", func(c *Config) (string, string) {
		return within(c.Engine.BufferPoolMiB, minBufferPoolMiB, maxBufferPoolMiB)
	}},
	{"engine.deadline", deadline},
	{"storage.devices", devices},
	{"fence.agent_timeout", func(c *Config) (string, string) { return between(c.Fence.AgentTimeout, time.Second, maxDeadline) }},
	{"fence.in_flight", func(c *Config) (string, string) { return between(c.Fence.InFlight, minInFlight, maxDeadline) }},
	{"fence.watchdog", func(c *Config) (string, string) { return optionalPath(c.Fence.Watchdog) }},
	{"fence.watchdog_timeout", func(c *Config) (string, string) { return between(c.Fence.WatchdogTimeout, 2*time.Second, maxDeadline) }},
	{"cluster.address", clusterAddress},
	{"cluster.profile", func(c *Config) (string, string) { return oneOf(c.Cluster.Profile, ProfileDefault, ProfileFast) }},
	{"cluster.lease", lease},
	{"cluster.role", func(c *Config) (string, string) { return oneOf(c.Cluster.Role, RoleNode, RoleWitness) }},
	{"cluster.endpoints", endpoints},
	{"cluster.ca_file", func(c *Config) (string, string) { return optionalPath(c.Cluster.CAFile) }},
	{"cluster.cert_file", func(c *Config) (string, string) { return optionalPath(c.Cluster.CertFile) }},
	{"cluster.key_file", keyFile},
	{"network.profile", func(c *Config) (string, string) { return oneOf(c.Network.Profile, ProfileDefault, ProfileFast) }},
	{"network.period", beat},
	{"network.missed", missed},
	{"network.port", func(c *Config) (string, string) { return within(c.Network.Port, 1, 1<<16-1) }},
	{"namespace.mount", namespaceMount},
	{"network.bpf", func(c *Config) (string, string) { return oneOf(c.Network.BPF, BPFAuto, BPFOff) }},
	{"trace.bpf", func(c *Config) (string, string) { return oneOf(c.Trace.BPF, BPFAuto, BPFOff) }},
}

// Validate returns the first rule that is broken, or nil. The error's File and Line are not set.
func (c *Config) Validate() *Error {
	for _, rule := range checks {
		if problem, remedy := rule.test(c); problem != "" {
			return &Error{Key: rule.key, Problem: problem, Remedy: remedy}
		}
	}
	return nil
}

// namespaceMount wants a folder of its own: what lies in it is hidden.
func namespaceMount(c *Config) (string, string) {
	m := c.Namespace.Mount
	if m == "" || m == NamespaceAuto {
		return "", ""
	}
	if !filepath.IsAbs(m) || filepath.Clean(m) != m || m == "/" || strings.ContainsAny(m, "\x00,") {
		return fmt.Sprintf("%q is no folder where the volumes can be shown", m), "give an absolute path such as " + NamespacePath + ", or nothing for nowhere"
	}
	return "", ""
}

func between(d Duration, low, high time.Duration) (string, string) {
	if v := time.Duration(d); v >= low && v <= high {
		return "", ""
	}
	return fmt.Sprintf("%v is out of range", time.Duration(d)), fmt.Sprintf("give a time from %v to %v", low, high)
}

func lease(c *Config) (string, string) {
	d := time.Duration(c.Cluster.Lease)
	if d%time.Second != 0 {
		return fmt.Sprintf("%v is not in whole seconds", d), "write it as 2s"
	}
	return between(c.Cluster.Lease, time.Second, time.Minute)
}

func beat(c *Config) (string, string) {
	if c.Network.Period == 0 {
		return "", ""
	}
	return between(c.Network.Period, minBeat, maxBeat)
}

func missed(c *Config) (string, string) {
	if c.Network.Missed == 0 {
		return "", ""
	}
	return within(c.Network.Missed, minMissed, maxMissed)
}

func devices(c *Config) (string, string) {
	for _, pattern := range c.Storage.Devices {
		if _, err := path.Match(pattern, "/"); err != nil || !strings.HasPrefix(pattern, "/") {
			return fmt.Sprintf("%q is not a pattern of device paths", pattern), "write it as /dev/mapper/lun*"
		}
	}
	return "", ""
}

func within(v, low, high int) (string, string) {
	if v >= low && v <= high {
		return "", ""
	}
	return fmt.Sprintf("%d is out of range", v), fmt.Sprintf("give a number from %d to %d", low, high)
}

func absolute(path string) (string, string) {
	if filepath.IsAbs(path) && !strings.ContainsRune(path, 0) {
		return "", ""
	}
	return fmt.Sprintf("%q is not an absolute path", path), "begin it with /"
}

func optionalPath(path string) (string, string) {
	if path == "" {
		return "", ""
	}
	return absolute(path)
}

func socket(c *Config) (string, string) {
	if len(c.Socket) > maxSocketPath {
		return fmt.Sprintf("the path has %d bytes", len(c.Socket)), fmt.Sprintf("a unix socket's path has at most %d", maxSocketPath)
	}
	return absolute(c.Socket)
}

func nodeName(c *Config) (string, string) {
	ok := func(r rune) bool {
		return r == '-' || r == '.' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	}
	n := c.Node.Name
	if n != "" && len(n) <= maxNodeName && !strings.ContainsFunc(n, func(r rune) bool { return !ok(r) }) {
		return "", ""
	}
	return fmt.Sprintf("%q is not a node name", n), fmt.Sprintf("use 1 to %d letters, digits, '-', '_' and '.'", maxNodeName)
}

func logLevel(c *Config) (string, string) {
	if slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		return "", ""
	}
	return fmt.Sprintf("unknown level %q", c.Log.Level), "use debug, info, warn or error"
}

// SlogLevel is the level for log/slog; the Config must be valid.
func (l Log) SlogLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		return slog.LevelInfo
	}
	return level
}

func logFormat(c *Config) (string, string) {
	if c.Log.Format == "text" || c.Log.Format == "json" {
		return "", ""
	}
	return fmt.Sprintf("unknown format %q", c.Log.Format), "use text or json"
}

func metrics(c *Config) (string, string) {
	if c.Metrics.Listen == "" {
		return "", ""
	}
	return hostPort(c.Metrics.Listen)
}

func portals(c *Config) (string, string) {
	if len(c.ISCSI.Portals) == 0 {
		return "no portal", `give at least one, such as "[::]:3260"`
	}
	for i, p := range c.ISCSI.Portals {
		if problem, remedy := hostPort(p); problem != "" {
			return problem, remedy
		}
		if slices.Contains(c.ISCSI.Portals[:i], p) {
			return fmt.Sprintf("%q stands there twice", p), "remove one"
		}
	}
	return "", ""
}

func hostPort(s string) (string, string) {
	const remedy = `write it as ADDRESS:PORT, such as "192.0.2.1:3260" or "[::]:3260"`
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Sprintf("%q is not an address with a port", s), remedy
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || (n == 0 && port != "0") {
		return fmt.Sprintf("%q has no valid port", s), remedy
	}
	if i := strings.IndexByte(host, '%'); i >= 0 {
		host = host[:i]
	}
	if host != "" && host != "localhost" && net.ParseIP(host) == nil {
		return fmt.Sprintf("%q has no valid IP address", s), remedy
	}
	return "", ""
}

func deadline(c *Config) (string, string) {
	d := time.Duration(c.Engine.Deadline)
	if d >= minDeadline && d <= maxDeadline {
		return "", ""
	}
	return fmt.Sprintf("%v is out of range", d), fmt.Sprintf("give a time from %v to %v", minDeadline, maxDeadline)
}

func oneOf(v string, allowed ...string) (string, string) {
	if slices.Contains(allowed, v) {
		return "", ""
	}
	return fmt.Sprintf("%q is not known", v), "use " + strings.Join(allowed, " or ")
}

// clusterAddress wants an address that others can reach and that stays: nothing that every machine has.
func clusterAddress(c *Config) (string, string) {
	if c.Cluster.Address == "" {
		return "", ""
	}
	const remedy = `give one IP address of this machine, without a port, such as "192.0.2.1"`
	ip, err := netip.ParseAddr(c.Cluster.Address)
	switch {
	case err != nil:
		return fmt.Sprintf("%q is not an IP address", c.Cluster.Address), remedy
	case ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || ip.Is4In6():
		return fmt.Sprintf("%s is not an address by which other nodes can reach this one", ip), remedy
	}
	return "", ""
}

func endpoints(c *Config) (string, string) {
	for _, e := range c.Cluster.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Sprintf("%q is not the URL of an etcd", e), `write it as "https://192.0.2.1:2379"`
		}
	}
	return "", ""
}

func keyFile(c *Config) (string, string) {
	if (c.Cluster.CertFile == "") != (c.Cluster.KeyFile == "") {
		return "cert_file and key_file belong together", "give both or none"
	}
	return optionalPath(c.Cluster.KeyFile)
}
