package diskfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lunar/appliance/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func find(t *testing.T) Tool {
	t.Helper()
	tool, err := Find()
	if err != nil {
		t.Skip(err)
	}
	return tool
}

// qemu runs the machine's qemu-img, which is not confined.
func qemu(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

// disk is a raw file of 4 MiB with a boot sector, and data in its second half.
func disk(t *testing.T, name string) string {
	t.Helper()
	p := make([]byte, 4<<20)
	copy(p[510:], "\x55\xaa")
	for i := 2 << 20; i < len(p); i++ {
		p[i] = byte(i>>8) | 1
	}
	return file(t, name, p)
}

func file(t *testing.T, name string, p []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func converted(t *testing.T, driver string, options ...string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "disk")
	qemu(t, append(append([]string{"convert", "-O", driver}, options...), disk(t, "d.raw"), to)...)
	return to
}

func TestContentTellsTheFormat(t *testing.T) {
	tool := find(t)
	for _, tt := range []struct {
		path string
		want Format
	}{
		{disk(t, "noname"), Raw},
		{file(t, "zeroes.img", make([]byte, 1024)), Raw},
		{converted(t, "qcow2"), QCOW2},
		{converted(t, "qcow2", "-o", "compat=0.10"), QCOW2},
		{converted(t, "vpc"), VHD},
		{converted(t, "vpc", "-o", "subformat=fixed"), VHD},
		{converted(t, "vhdx"), VHDX},
		{converted(t, "vmdk"), VMDK},
		{converted(t, "vmdk", "-o", "subformat=streamOptimized"), VMDK},
	} {
		s, err := Inspect(tt.path, "")
		if err != nil || s.Format != tt.want {
			t.Errorf("%s: %q, %v, want %s", tt.path, s.Format, err, tt.want)
			continue
		}
		size, err := tool.Measure(t.Context(), s)
		if err == nil {
			err = tool.Check(t.Context(), s)
		}
		if err != nil || size.Virtual < 1024 || size.Data > size.Virtual {
			t.Errorf("%s: %+v, %v", tt.want, size, err)
		}
		if tt.want == QCOW2 && (size.Virtual != 4<<20 || size.Data < 2<<20 || size.Data > 3<<20) {
			t.Errorf("a disk of 4 MiB, half of it written: %+v", size)
		}
	}
}

// vmdkFor is a VMDK whose header says that its description tells where the data are.
func vmdkFor(secret string) []byte {
	p := make([]byte, 64<<10)
	copy(p, "KDMV\x01\x00\x00\x00")
	binary.LittleEndian.PutUint64(p[28:], 1)
	binary.LittleEndian.PutUint64(p[36:], 20)
	copy(p[0x200:], "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \""+secret+"\" 0\n")
	return p
}

func TestRefused(t *testing.T) {
	find(t)
	secret := disk(t, "secret.raw")
	backed := filepath.Join(t.TempDir(), "b.qcow2")
	qemu(t, "create", "-f", "qcow2", "-b", secret, "-F", "raw", backed)
	outside := filepath.Join(t.TempDir(), "o.qcow2")
	qemu(t, "create", "-f", "qcow2", "-o", "data_file="+filepath.Join(t.TempDir(), "data"), outside, "1M")
	child := filepath.Join(t.TempDir(), "c.vmdk")
	qemu(t, "create", "-f", "vmdk", "-b", converted(t, "vmdk"), "-F", "vmdk", child)
	flat := filepath.Join(t.TempDir(), "f.vmdk")
	qemu(t, "create", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "1M")
	vhd, err := os.ReadFile(converted(t, "vpc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		as   Format
		code api.Code
		word string
	}{
		{backed, "", api.Refused, "backing file"},
		{backed, QCOW2, api.Refused, "backing file"},
		{outside, "", api.Refused, "another file"},
		{child, "", api.Refused, "parent"},
		{flat, "", api.Invalid, "-flat.vmdk"},
		{file(t, "hostile.vmdk", vmdkFor(secret)), "", api.Refused, "other files"},
		{file(t, "cut.vhd", vhd[:len(vhd)-4096]), "", api.Failed, "footer"},
		{file(t, "text.txt", []byte("dear all\n")), "", api.Invalid, "no image"},
		{file(t, "text.qcow2", []byte("dear all\n")), "", api.Invalid, "its name says qcow2"},
		{file(t, "odd.raw", make([]byte, 1000)), "", api.Invalid, "whole sectors"},
		{file(t, "packed.raw.gz", append([]byte("\x1f\x8b"), make([]byte, 1000)...)), "", api.Invalid, "gunzip"},
		{file(t, "empty.raw", nil), "", api.Invalid, "empty"},
		{secret, VHDX, api.Invalid, "not in the format vhdx"},
		{t.TempDir(), "", api.Invalid, "neither a file nor a disk"},
		{"/dev/null", "", api.Invalid, "neither a file nor a disk"},
		{filepath.Join(t.TempDir(), "none"), "", api.NotFound, "no such file"},
	} {
		_, err := Inspect(tt.path, tt.as)
		if api.CodeOf(err) != tt.code || !strings.Contains(fmt.Sprint(err), tt.word) {
			t.Errorf("%s: %v (%s), want %s and a word of %q", filepath.Base(tt.path), err, api.CodeOf(err), tt.code, tt.word)
		}
	}
	if s, err := Inspect(backed, Raw); err != nil || s.Format != Raw {
		t.Errorf("--format raw: %v, %v", s, err)
	}
}

// TestConfined: what Inspect would let through by mistake cannot be read either.
func TestConfined(t *testing.T) {
	tool := find(t)
	secret := disk(t, "secret.raw")
	s := Source{Path: file(t, "hostile.vmdk", vmdkFor(secret)), Format: VMDK}
	if _, err := tool.do(t.Context(), allowed{s.Path: mayRead, secret: mayRead}, "info", s.node()); err != nil {
		t.Fatalf("the attack does not work where it may: %v", err)
	}
	if _, err := tool.Measure(t.Context(), s); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("measure: %v", err)
	}
	var where net.ListenConfig
	l, err := where.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := tool.do(t.Context(), nil, "info", "nbd://"+l.Addr().String()); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("network: %v", err)
	}
}

func TestCutOffIsRefused(t *testing.T) {
	tool := find(t)
	for driver, cut := range map[string]int64{"qcow2": 1 << 20, "vmdk": 1 << 20, "vhdx": 5 << 20} { // VHDX: its last block is half empty
		path := converted(t, driver)
		info, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, info.Size()-cut)
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := Inspect(path, "")
		if err == nil {
			err = tool.Check(t.Context(), s)
		}
		if err == nil || !strings.Contains(err.Error(), "damaged "+string(s.Format)) {
			t.Errorf("%s cut off: %v", driver, err)
		}
	}
}

// serveNBD serves a raw file on a unix socket, by qemu-nbd.
func serveNBD(t *testing.T, path string) Endpoint {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	at := Endpoint{filepath.Join(dir, "a,b"), "x,y"}
	cmd := exec.Command("qemu-nbd", "-f", "raw", "-k", at.Socket, "-x", at.Name, "-t", path)
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", at.Socket); err == nil {
			_ = c.Close()
			return at
		} else if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}

func TestThereAndBack(t *testing.T) {
	tool := find(t)
	source := disk(t, "d.raw")
	want, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	for f := range formats {
		out := filepath.Join(t.TempDir(), "out, {x}."+string(f))
		from := serveNBD(t, source)
		if err := tool.Export(t.Context(), from, out, f, false); err != nil {
			t.Fatalf("export %s: %v", f, err)
		}
		if err := tool.Export(t.Context(), from, out, f, false); api.CodeOf(err) != api.Exists {
			t.Errorf("export %s over a file: %v", f, err)
		}
		s, err := Inspect(out, "")
		if err != nil || s.Format != f {
			t.Fatalf("%s: %+v %v", f, s, err)
		}
		size, err := tool.Measure(t.Context(), s)
		if err != nil || size.Virtual != int64(len(want)) {
			t.Errorf("%s: size %+v, %v", f, size, err)
		}
		back := file(t, "back.raw", make([]byte, len(want)))
		if err := tool.Import(t.Context(), s, serveNBD(t, back)); err != nil {
			t.Fatalf("import %s: %v", f, err)
		}
		if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the content differs, %v", f, err)
		}
	}
}

// TestCancelled: nothing is left of an export that is broken off.
func TestCancelled(t *testing.T) {
	tool := find(t)
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s")) // nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			cancel()
			defer c.Close()
			_, _ = c.Read(make([]byte, 1))
		}
	}()
	to := t.TempDir()
	if err := tool.Export(ctx, Endpoint{l.Addr().String(), "x"}, filepath.Join(to, "f.raw"), Raw, false); err == nil {
		t.Error("an export that was cancelled succeeded")
	}
	if left, _ := os.ReadDir(to); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(vmdkFor("/etc/shadow"), "")
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"), "qcow2")
	f.Add([]byte("conectix"), "vhd")
	f.Add(append(make([]byte, 512), "conectix"...), "raw")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, p []byte, as string) {
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Inspect(path, Format(as))
		if err == nil && s.Format == VMDK && bytes.Contains(bytes.ToLower(p[:min(len(p), 0x200+20*512)]), []byte("parentfilenamehint")) {
			t.Error("a VMDK with a parent was let through")
		}
	})
}
