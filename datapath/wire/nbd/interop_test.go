package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/datapath/wire/nbd"
)

// tool runs a program that appliance/e2e/packages.sh installs; where CI lacks it the test fails.
func tool(t *testing.T, argv ...string) string {
	t.Helper()
	c, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(c, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// libnbdURI is a URI that libnbd's tools take.
func libnbdURI(addr, name string, keys *pki) string {
	if keys == nil {
		return fmt.Sprintf("nbd://%s/%s", addr, name)
	}
	return fmt.Sprintf("nbds://%s/%s?tls-certificates=%s", addr, name, keys.libnbd())
}

// libnbd is a folder with the names that libnbd wants.
func (p *pki) libnbd() string { return p.folder("libnbd", "client", "cert.pem", "key.pem") }

func (p *pki) folder(dir, who, cert, key string) string {
	dir = filepath.Join(p.dir, dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	for from, names := range map[string][]string{"ca-cert.pem": {"ca-cert.pem"}, who + "-cert.pem": {who + "-" + cert, cert}, who + "-key.pem": {who + "-" + key, key}} {
		for _, to := range names {
			_ = os.Link(filepath.Join(p.dir, from), filepath.Join(dir, to))
		}
	}
	return dir
}

func TestToolsOfOthers(t *testing.T) {
	keys := newPKI(t)
	for _, k := range []*pki{nil, keys} {
		m := newMemory(8 << 20)
		m.info = nbd.Info{Block: 512, Description: "an image for tests"}
		copy(m.data[1<<20:], pattern(1<<20, 9))
		o := nbd.Options{Open: always(m), List: func(context.Context, nbd.Peer) []string { return []string{"v/1", "v/2"} }}
		if k != nil {
			o.TLS, o.RequireTLS = k.config("server"), true
		}
		s := serve(t, o)
		checkInfo(t, libnbdURI(s.addr, "v/1", k), libnbdURI(s.addr, "", k))
		checkCopy(t, m, libnbdURI(s.addr, "v/1", k))
		checkQemu(t, m, s.addr, k)
	}
}

func checkInfo(t *testing.T, uri, all string) {
	t.Helper()
	var info struct {
		Exports []struct {
			Name           string `json:"export-name"`
			Size           int64  `json:"export-size"`
			CanMultiConn   bool   `json:"can_multi_conn"`
			CanFUA         bool   `json:"can_fua"`
			CanTrim        bool   `json:"can_trim"`
			CanZero        bool   `json:"can_zero"`
			CanFlush       bool   `json:"can_flush"`
			Minimum        int    `json:"block_size_minimum"`
			Maximum        int    `json:"block_size_maximum"`
			Description    string
			ContextsOfBase []string `json:"contexts"`
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	x := info.Exports[0]
	if x.Size != 8<<20 || !x.CanMultiConn || !x.CanFUA || !x.CanTrim || !x.CanZero || !x.CanFlush || x.Minimum != 512 || x.Maximum != nbd.MaxPayload ||
		x.Description != "an image for tests" || len(x.ContextsOfBase) != 1 {
		t.Errorf("nbdinfo: %+v", x)
	}
	if got := strings.Fields(tool(t, "nbdinfo", "--map", uri)); strings.Join(got, " ") != "0 1048576 3 hole,zero 1048576 1048576 0 data 2097152 6291456 3 hole,zero" {
		t.Errorf("nbdinfo --map: %q", got)
	}
	if got := tool(t, "nbdinfo", "--list", all); !strings.Contains(got, `export="v/1"`) || !strings.Contains(got, `export="v/2"`) {
		t.Errorf("nbdinfo --list: %s", got)
	}
}

func checkCopy(t *testing.T, m *memory, uri string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "copy")
	tool(t, "nbdcopy", uri, file)
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, m.data) {
		t.Fatal("nbdcopy from us:", err)
	}
	changed := pattern(8<<20, 40)
	clear(changed[3<<20 : 5<<20])
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--flush", file, uri)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if !bytes.Equal(m.data, changed) {
		t.Fatal("nbdcopy to us: another content")
	}
}

func checkQemu(t *testing.T, m *memory, addr string, k *pki) {
	t.Helper()
	host, port, _ := net.SplitHostPort(addr)
	image := fmt.Sprintf("driver=nbd,server.type=inet,server.host=%s,server.port=%s,export=v/1", host, port)
	argv := []string{"qemu-io"}
	if k != nil {
		argv = append(argv, "--object", "tls-creds-x509,id=tls0,endpoint=client,verify-peer=yes,dir="+k.folder("qemu", "client", "cert.pem", "key.pem"))
		image += ",tls-creds=tls0"
	}
	argv = append(argv, "--image-opts")
	for _, c := range []string{"write -P 0x5a 0 1M", "write -f -P 0x3c 1M 64k", "read -P 0x5a 512k 512k", "write -z 64k 64k", "read -P 0 64k 64k",
		"discard 0 64k", "flush", "map", "aio_write -P 7 2M 256k", "aio_write -P 8 3M 256k", "aio_flush", "read -P 7 2M 256k", "read -P 8 3M 256k"} {
		argv = append(argv, "-c", c)
	}
	if out := tool(t, append(argv, image)...); strings.Contains(strings.ToLower(out), "fail") {
		t.Error(out)
	}
	if m.fua.Load() == 0 || m.flushes.Load() == 0 {
		t.Error("qemu-io's FUA or flush did not arrive")
	}
}

// TestServersOfOthers lets our client work with qemu-nbd.
func TestServersOfOthers(t *testing.T) {
	keys := newPKI(t)
	for _, k := range []*pki{nil, keys} {
		dir := t.TempDir()
		file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "socket")
		if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		o := nbd.ClientOptions{Export: nbd.Plain("disk")}
		argv := []string{"-f", "raw", "-t", "-e", "8", "-x", "disk"}
		if k == nil {
			argv, o.Address = append(argv, "-k", socket), "unix:"+socket
		} else {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			o.Address, o.TLS = l.Addr().String(), k.config("client")
			_, port, _ := net.SplitHostPort(o.Address)
			l.Close()
			argv = append(argv, "-b", "127.0.0.1", "-p", port, "--tls-creds", "tls0",
				"--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir="+k.folder("peer", "server", "cert.pem", "key.pem"))
		}
		server := exec.Command("qemu-nbd", append(argv, file)...)
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		c := dial(t, o)
		eventually(t, "qemu-nbd listens", func() bool { _, _, err := c.Connect(ctx); return err == nil })
		work(t, c)
		c.Close()
		server.Process.Kill()
		server.Wait()
	}
}

// work writes, reads back, unmaps.
func work(t *testing.T, c *nbd.Client) {
	t.Helper()
	want := pattern(40<<20, 5)
	got := make([]byte, len(want))
	for _, err := range []error{c.Write(ctx, want, 1<<20, true), c.Flush(ctx), c.Unmap(ctx, 2<<20, 1<<20), c.Read(ctx, got, 1<<20)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	clear(want[1<<20 : 2<<20])
	if !bytes.Equal(got, want) {
		t.Fatal("read back another content")
	}
}

var record = flag.Bool("record", false, "record sessions of real programs into testdata/sessions")

// TestRecord makes the seeds of the fuzz targets anew.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("give -record")
	}
	m := newMemory(1 << 20)
	copy(m.data[64<<10:], pattern(64<<10, 9))
	x := &marked{memory: m, names: []string{"monday"}, bitmaps: map[string][][2]int64{"monday": {{64 << 10, 64 << 10}}}}
	s := serve(t, nbd.Options{Open: x.open, List: func(context.Context, nbd.Peer) []string { return []string{"v/1"} }})
	for name, argv := range map[string][]string{
		"nbdinfo": {"nbdinfo", "URI"}, "nbdinfo-list": {"nbdinfo", "--list", "URI"}, "nbdinfo-map": {"nbdinfo", "--map", "URI"},
		"nbdinfo-bitmap": {"nbdinfo", "--map=qemu:dirty-bitmap:monday", "URI"},
		"nbdcopy":        {"nbdcopy", "--connections=1", "--request-size=65536", "URI", filepath.Join(t.TempDir(), "copy")},
		"qemu-io":        {"qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", "-c", "write -f -P 2 4k 512", "-c", "read 0 8k", "-c", "write -z 0 4k", "-c", "discard 0 4k", "-c", "flush", "-c", "map", "-c", "read -P 3 0 512", "URI"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var client, server bytes.Buffer
		done := make(chan struct{})
		go func() {
			defer close(done)
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", s.addr)
			if err != nil {
				return
			}
			back := make(chan struct{})
			go func() { io.Copy(io.MultiWriter(a, &server), b); a.Close(); close(back) }()
			io.Copy(io.MultiWriter(b, &client), a)
			b.Close()
			<-back
		}()
		cmd := slices.Clone(argv)
		for i := range cmd {
			cmd[i] = strings.ReplaceAll(cmd[i], "URI", "nbd://"+l.Addr().String()+"/v/1")
		}
		c, cancel := context.WithTimeout(ctx, 3*time.Second)
		exec.CommandContext(c, cmd[0], cmd[1:]...).Run() // some want a second connection, and do not get it
		cancel()
		l.Close()
		<-done
		os.MkdirAll("testdata/sessions", 0o755)
		os.WriteFile("testdata/sessions/"+name+".client", client.Bytes(), 0o644)
		os.WriteFile("testdata/sessions/"+name+".server", server.Bytes(), 0o644)
	}
}
