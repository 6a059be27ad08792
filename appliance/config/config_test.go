package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if c.StateDir != "/var/lib/lunar" || c.Socket != "/run/lunar/lunard.sock" || c.Metrics.Listen != "127.0.0.1:9469" {
		t.Fatalf("defaults differ from the contract: %+v", c)
	}
	if !reflect.DeepEqual(c.ISCSI.Portals, []string{"[::]:3260"}) {
		t.Fatalf("portals: %v", c.ISCSI.Portals)
	}
}

func TestParseAllKeys(t *testing.T) {
	c, err := Parse("f", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		StateDir: "/s", Socket: "/r/l.sock", Node: Node{"n1"}, Log: Log{"debug", "json"},
		ISCSI:   ISCSI{[]string{"192.0.2.1:3260", "[fe80::1%eth0]:3260"}, 10, 5},
		Engine:  Engine{2, 64, 128, 64, Duration(5 * time.Second)},
		Storage: Storage{[]string{"/dev/mapper/lun*"}, true},
		Fence:   Fence{[]string{"/usr/sbin/fence", "-x"}, Duration(9 * time.Second), Duration(2 * time.Second), "/dev/watchdog", Duration(20 * time.Second)},
		Cluster: Cluster{"192.0.2.1", "fast", Duration(5 * time.Second), "witness", []string{"https://192.0.2.2:2379"}, "/ca", "/cert", "/key"},
		Network: Network{"fast", Duration(50 * time.Millisecond), 4, 3344, "off"},
		Trace:   Trace{false, "off"},

		Namespace: Namespace{"/n"}, Web: Web{"[::]:9443", "/wc", "/wk"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("got %+v\nwant %+v", c, want)
	}
}

const full = `state_dir = "/s"
storage.devices = ["/dev/mapper/lun*"]
storage.shared_kernel = true
fence.agent = ["/usr/sbin/fence", "-x"]
fence.agent_timeout = "9s"
fence.in_flight = "2s"
fence.watchdog = "/dev/watchdog"
fence.watchdog_timeout = "20s"
socket = "/r/l.sock"
node.name = "n1"
[log]
level = "debug"
format = "json"
[metrics]
listen = ""
[iscsi]
portals = ["192.0.2.1:3260", "[fe80::1%eth0]:3260"]
max_connections = 10
max_pending = 5
[engine]
rings = 2
in_flight = 64
queue = 128
buffer_pool_mib = 64
deadline = "5s"
[cluster]
address = "192.0.2.1"
profile = "fast"
lease = "5s"
role = "witness"
endpoints = ["https://192.0.2.2:2379"]
ca_file = "/ca"
cert_file = "/cert"
key_file = "/key"
[network]
profile = "fast"
period = "50ms"
missed = 4
port = 3344
bpf = "off"
[trace]
commands = false
bpf = "off"
[namespace]
mount = "/n"
[web]
address = "[::]:9443"
cert_file = "/wc"
key_file = "/wk"
`

func TestWebTLS(t *testing.T) {
	for address, loopback := range map[string]bool{
		"127.0.0.1:1": true, "127.9.0.1:1": true, "localhost:1": true, "[::1]:1": true, "": false, ":1": false, "[::]:1": false, "0.0.0.0:1": false, "192.0.2.1:1": false,
	} {
		w := Web{Address: address}
		if w.Loopback() != loopback || w.TLS() == loopback {
			t.Errorf("%q: loopback %t, TLS %t", address, w.Loopback(), w.TLS())
		}
		if w.CertFile = "/c"; !w.TLS() {
			t.Errorf("%q: no TLS with a certificate", address)
		}
	}
}

func TestNamespaceMount(t *testing.T) {
	for text, want := range map[string]string{
		"": NamespacePath, "state_dir = \"/elsewhere\"": "", "cluster.role = \"witness\"": "",
		"namespace.mount = \"\"": "", "state_dir = \"/elsewhere\"\nnamespace.mount = \"/n\"": "/n",
	} {
		c, err := Parse("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.NamespaceMount(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestHeartbeats(t *testing.T) {
	for text, want := range map[string][2]any{
		"": {time.Second, 10}, "profile = \"fast\"": {100 * time.Millisecond, 5},
		"period = \"2s\"": {2 * time.Second, 10}, "profile = \"fast\"\nmissed = 7": {100 * time.Millisecond, 7},
	} {
		c, err := Parse("f", []byte("[network]\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		if period, missed := c.Network.Heartbeats(); period != want[0] || missed != want[1] {
			t.Errorf("%q: %v × %d, want %v", text, period, missed, want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct {
		name, text, key string
		line            int
		says            string
	}{
		{"unknown key", "\n[iscsi]\nprotals = []\n", "iscsi.protals", 3, "unknown key"},
		{"unknown table", "[iscis]\nportals = []\n", "iscis", 1, "unknown key"},
		{"syntax", "socket = \"/a\"\n[log\n", "", 2, "cannot be parsed"},
		{"wrong type", "\n\nsocket = 3\n", "socket", 3, "cannot be parsed"},
		{"duration", "[engine]\ndeadline = \"soon\"\n", "engine.deadline", 2, "not a duration"},
		{"binary", "socket = \"/a\"\n\x00\x01", "", 2, "damaged"},
		{"range", "[engine]\nrings = 1\nqueue = -1\n", "engine.queue", 3, "out of range"},
		{"dotted", "node.name = \"a b\"\n", "node.name", 1, "not a node name"},
		{"relative", "state_dir = \"lunar\"\n", "state_dir", 1, "not an absolute path"},
		{"long socket", "socket = \"/" + strings.Repeat("s", 120) + "\"\n", "socket", 1, "121 bytes"},
		{"level", "[log]\nlevel = \"loud\"\n", "log.level", 2, "unknown level"},
		{"format", "[log]\nformat = \"xml\"\n", "log.format", 2, "unknown format"},
		{"no portal", "[iscsi]\nportals = []\n", "iscsi.portals", 2, "no portal"},
		{"portal twice", "[iscsi]\nportals = [\"[::]:1\", \"[::]:1\"]\n", "iscsi.portals", 2, "twice"},
		{"portal without port", "[iscsi]\nportals = [\"192.0.2.1\"]\n", "iscsi.portals", 2, "not an address"},
		{"portal port", "[iscsi]\nportals = [\"192.0.2.1:66000\"]\n", "iscsi.portals", 2, "no valid port"},
		{"portal host", "[iscsi]\nportals = [\"nas:3260\"]\n", "iscsi.portals", 2, "no valid IP"},
		{"deadline", "[engine]\ndeadline = \"1ms\"\n", "engine.deadline", 2, "out of range"},
		{"endpoint", "[cluster]\nendpoints = [\"10.0.0.1:2379\"]\n", "cluster.endpoints", 2, "not the URL"},
		{"cluster address", "[cluster]\naddress = \"192.0.2.1:2379\"\n", "cluster.address", 2, "not an IP address"},
		{"cluster address of all", "[cluster]\naddress = \"::\"\n", "cluster.address", 2, "can reach"},
		{"link-local address", "[cluster]\naddress = \"fe80::1%eth0\"\n", "cluster.address", 2, "can reach"},
		{"profile", "[cluster]\nprofile = \"slow\"\n", "cluster.profile", 2, "default or fast"},
		{"role", "[cluster]\nrole = \"voter\"\n", "cluster.role", 2, "node or witness"},
		{"heartbeat profile", "[network]\nprofile = \"slow\"\n", "network.profile", 2, "default or fast"},
		{"heartbeat period", "[network]\nperiod = \"1ms\"\n", "network.period", 2, "from 50ms to 1m0s"},
		{"heartbeats missed", "[network]\nmissed = 2\n", "network.missed", 2, "from 3 to 120"},
		{"heartbeat port", "[network]\nport = 0\n", "network.port", 2, "from 1 to 65535"},
		{"namespace", "[namespace]\nmount = \"/\"\n", "namespace.mount", 2, "no folder"},
		{"relative namespace", "[namespace]\nmount = \"cs\"\n", "namespace.mount", 2, "no folder"},
		{"bpf", "[network]\nbpf = \"on\"\n", "network.bpf", 2, "auto or off"},
		{"web address", "[web]\naddress = \"9443\"\n", "web.address", 2, "ADDRESS:PORT"},
		{"web cert without key", "[web]\ncert_file = \"/c\"\n", "web.key_file", 0, "belong together"},
		{"cert without key", "[cluster]\ncert_file = \"/c\"\n", "cluster.key_file", 0, "belong together"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("lunard.toml", []byte(tt.text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			if e.File != "lunard.toml" || e.Key != tt.key || e.Line != tt.line || !strings.Contains(e.Error(), tt.says) || e.Remedy == "" {
				t.Fatalf("got %+v: %v", *e, e)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.toml")
	if _, err := Load(missing, true); err != nil {
		t.Fatalf("optional and missing: %v", err)
	}
	if _, err := Load(missing, false); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("required and missing: %v", err)
	}
	if _, err := Load(dir, true); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Fatalf("directory: %v", err)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(large, false); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Fatalf("large: %v", err)
	}
	good := filepath.Join(dir, "good.toml")
	if err := os.WriteFile(good, []byte(full), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(good, false); err != nil || c.Node.Name != "n1" {
		t.Fatalf("good: %+v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("[iscsi]\nportals = [\"[::]:1\", \"[::]:1\"]\n"))
	f.Add([]byte("node = { name = \"\" }\n[[log]]\n"))
	f.Add([]byte("a.b.c = 1\n\"iscsi\".portals = [1979-05-27]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err == nil {
			if bad := c.Validate(); bad != nil {
				t.Fatalf("accepted but invalid: %v", bad)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Remedy == "" || e.Line < 0 || e.Line > 1+strings.Count(string(data), "\n") {
			t.Fatalf("error %#v", err)
		}
	})
}

// TestPackagedFile has the file that the package installs show each default as it is.
func TestPackagedFile(t *testing.T) {
	const file = "../../systemd/deb/lunard.toml"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(file, text); err != nil || !reflect.DeepEqual(got, Default()) {
		t.Errorf("as installed: %v", err)
	}
	key := regexp.MustCompile(`(?m)^#([a-z_]+ = )`)
	got, err := Parse(file, key.ReplaceAll(text, []byte("$1")))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Node.Name = "node1" // an example: the default is the machine's
	shown, err := toml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := toml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.ReplaceAll(shown, []byte(" = []"), nil), bytes.ReplaceAll(defaults, []byte(" = []"), nil)) {
		t.Errorf("with each key:\n%s\nwant\n%s", shown, defaults)
	}
	for line := range strings.Lines(string(defaults)) {
		if name, _, found := strings.Cut(strings.TrimSpace(line), " = "); found && !bytes.Contains(text, []byte("#"+name+" = ")) {
			t.Errorf("the file does not show %s", name)
		}
	}
}
