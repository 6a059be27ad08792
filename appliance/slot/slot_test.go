package slot

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mib      = 1 << 20
	slotSize = 2 * mib
	append1  = `console=ttyS1 a="b\c"`
)

// disk is an image file with a GPT as the appliance's. What is written is in memory until Sync; a cut of the power leaves any
// part of it on the disk, in sectors.
type disk struct {
	t     *testing.T
	file  *os.File
	at    map[string]int64 // partitions
	size  map[string]int64
	dirty []write

	cutAfter int // of that many writes and syncs; negative: never
	chance   *rand.Rand
}

type write struct {
	at   int64
	data []byte
}

var errCut = errors.New("the power was cut")

func newDisk(t *testing.T) *disk {
	t.Helper()
	if _, err := exec.LookPath("sfdisk"); err != nil {
		t.Skip(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err)
	t.Cleanup(func() { must(t, file.Close()) })
	must(t, file.Truncate(8*mib))
	d := &disk{t: t, file: file, at: map[string]int64{}, size: map[string]int64{}, cutAfter: -1, chance: rand.New(rand.NewPCG(1, 2))}
	script := "label: gpt\n" + `start=1MiB, size=1MiB, name="lunar-env"` + "\n" + `size=2MiB, name="lunar-a"` + "\n" + `size=2MiB, name="lunar-b"` + "\n"
	sfdisk := exec.Command("sfdisk", "--quiet", file.Name())
	sfdisk.Stdin = strings.NewReader(script)
	out, err := sfdisk.CombinedOutput()
	if err != nil {
		t.Fatalf("sfdisk: %v %s", err, out)
	}
	table, err := exec.Command("sfdisk", "--dump", file.Name()).Output()
	must(t, err)
	for line := range strings.Lines(string(table)) {
		var start, size int64
		_, fields, isPart := strings.Cut(line, " : ")
		if _, err := fmt.Sscanf(strings.ReplaceAll(fields, ",", " "), "start= %d size= %d", &start, &size); !isPart || err != nil {
			continue
		}
		_, name, _ := strings.Cut(line, `name="lunar-`)
		name = strings.TrimSuffix(strings.TrimSpace(name), `"`)
		d.at[name], d.size[name] = start*sectorSize, size*sectorSize
	}
	if len(d.at) != 3 || d.size["a"] != slotSize {
		t.Fatalf("the table was not understood: %v %v\n%s", d.at, d.size, table)
	}
	return d
}

// fresh puts the disk as an installer leaves it: slot a holds image 0, slot b nothing.
func (d *disk) fresh(images [][]byte) {
	d.t.Helper()
	d.dirty, d.cutAfter = nil, -1
	e := &environment{}
	e.set(varDefault, "a")
	e.trial("", 0)
	e.setVersion("a", "v0")
	e.setVersion("b", "")
	e.set("lunar_append", append1)
	block, err := e.block()
	must(d.t, err)
	for name, data := range map[string][]byte{"env": block, "a": images[0], "b": make([]byte, slotSize)} {
		_, err := d.file.WriteAt(data, d.at[name])
		must(d.t, err)
	}
}

func (d *disk) system(booted string) *System {
	return &System{Dir: d.t.TempDir(), Cmdline: "ro lunar.slot=" + booted + " quiet", open: d.open}
}

func (d *disk) open(name string) (partition, error) { return &part{d, name}, nil }

// step counts, and cuts.
func (d *disk) step() error {
	if d.cutAfter == 0 {
		return errCut
	}
	d.cutAfter--
	return nil
}

// lose has the power go: each sector that was not synced is there or not.
func (d *disk) lose() {
	for _, w := range d.dirty {
		for i := 0; i < len(w.data); i += sectorSize {
			if d.chance.IntN(2) == 0 {
				_, err := d.file.WriteAt(w.data[i:i+sectorSize], w.at+int64(i))
				must(d.t, err)
			}
		}
	}
	d.dirty, d.cutAfter = nil, -1
}

type part struct {
	d    *disk
	name string
}

func (p *part) Close() error         { return nil }
func (p *part) Size() (int64, error) { return p.d.size[p.name], nil }

// ReadAt reads what was written, synced or not.
func (p *part) ReadAt(b []byte, at int64) (int, error) {
	from := p.d.at[p.name] + at
	n, err := p.d.file.ReadAt(b, from)
	for _, w := range p.d.dirty {
		start, end := max(w.at, from), min(w.at+int64(len(w.data)), from+int64(len(b)))
		if start < end {
			copy(b[start-from:], w.data[start-w.at:end-w.at])
		}
	}
	return n, err
}

func (p *part) WriteAt(b []byte, at int64) (int, error) {
	if err := p.d.step(); err != nil {
		return 0, err
	}
	if at+int64(len(b)) > p.d.size[p.name] || at%sectorSize != 0 || len(b)%sectorSize != 0 {
		return 0, fmt.Errorf("a write of %d at %d", len(b), at)
	}
	p.d.dirty = append(p.d.dirty, write{p.d.at[p.name] + at, bytes.Clone(b)})
	return len(b), nil
}

func (p *part) Sync() error {
	if err := p.d.step(); err != nil {
		return err
	}
	for _, s := range p.d.dirty {
		if _, err := p.d.file.WriteAt(s.data, s.at); err != nil {
			return err
		}
	}
	p.d.dirty = nil
	return nil
}

// boot is what the loader does (images/grub.cfg): it tells the slot, and counts a trial.
func (d *disk) boot() (slot, version string) {
	d.t.Helper()
	s := d.system("a")
	e, err := s.environment()
	must(d.t, err)
	if e.get("lunar_append") != append1 {
		d.t.Fatalf("lunar_append became %q", e.get("lunar_append"))
	}
	slot = e.get(varDefault)
	switch try := e.get(varTry); {
	case try != "" && e.left() > 0:
		e.trial(try, e.left()-1)
		slot = try
	case try != "":
		e.set(varFailed, try)
		e.trial("", 0)
	}
	must(d.t, s.store(e))
	if e.version(slot) == "" {
		slot = otherThan(slot)
	}
	return slot, e.version(slot)
}

// holds tells which image a slot holds whole.
func (d *disk) holds(slot string, images [][]byte) string {
	d.t.Helper()
	got := make([]byte, slotSize)
	_, err := d.file.ReadAt(got, d.at[slot])
	must(d.t, err)
	for i, image := range images {
		if bytes.HasPrefix(got, image) {
			return fmt.Sprintf("v%d", i)
		}
	}
	return ""
}

func images(n int) (all [][]byte) {
	for i := range n {
		all = append(all, bytes.Repeat(fmt.Appendf(nil, "image %d ", i), (3*mib/2+i*sectorSize)/8))
	}
	return all
}

func pack(t *testing.T, image []byte, version string, key ed25519.PrivateKey) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "root.img")
	must(t, os.WriteFile(file, image, 0o600))
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	var b bytes.Buffer
	_, err = Pack(&b, f, version, key)
	must(t, err)
	return b.Bytes()
}

func once(b []byte) Source {
	return Source{Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

func ready(context.Context) error { return nil }

// TestPowerCut cuts the power after each write and each sync of an update and of the confirmation after it. Whatever was lost,
// the machine boots a slot that is whole, and the next update works.
func TestPowerCut(t *testing.T) {
	d, all := newDisk(t), images(2)
	bundle := pack(t, all[1], "v1", nil)
	for cut, done := 0, false; !done; cut++ {
		for range 3 { // of what may be lost
			d.fresh(all)
			d.cutAfter = cut
			_, err := d.system("a").Update(t.Context(), once(bundle), nil)
			if err == nil {
				done = d.confirmed(cut)
				continue
			}
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			d.lose()
			d.bootsWhole(all)
		}
	}
}

// confirmed boots the new slot, with the power cut in Confirm; it tells whether that came to its end.
func (d *disk) confirmed(cut int) bool {
	d.t.Helper()
	d.t.Logf("the update is whole after %d steps", cut-d.cutAfter)
	all := images(2)
	for again := 0; ; again++ {
		d.cutAfter = -1
		if slot, version := d.boot(); slot != "b" || version != "v1" {
			d.t.Fatalf("booted %s %s after %d cuts", slot, version, again)
		}
		if again == Tries-1 {
			must(d.t, d.system("b").Confirm(d.t.Context(), "v1", ready))
			d.bootsWhole(all)
			return true
		}
		d.cutAfter = d.chance.IntN(2)
		if err := d.system("b").Confirm(d.t.Context(), "v1", ready); !errors.Is(err, errCut) {
			d.t.Fatal(err)
		}
		d.lose()
	}
}

// bootsWhole boots until the machine is settled: each slot that was booted holds what its version says.
func (d *disk) bootsWhole(all [][]byte) {
	d.t.Helper()
	for range Tries + 1 {
		slot, version := d.boot()
		if held := d.holds(slot, all); version == "" || held != version {
			d.t.Fatalf("slot %s is booted as %q and holds %q", slot, version, held)
		}
		s := d.system(slot)
		must(d.t, s.Confirm(d.t.Context(), version, ready))
		st, err := s.Status()
		must(d.t, err)
		if st.Trial {
			d.t.Fatalf("%+v", st)
		}
	}
}

// TestFallBack has the new slot never become ready: the loader gives it up, and the old one says so.
func TestFallBack(t *testing.T) {
	d, all := newDisk(t), images(3)
	d.fresh(all)
	s := d.system("a")
	_, err := s.Update(t.Context(), once(pack(t, all[1], "v1", nil)), nil)
	must(t, err)
	for range Tries {
		if slot, _ := d.boot(); slot != "b" {
			t.Fatalf("slot %s was booted", slot)
		}
		b := d.system("b")
		b.Cmdline += " lunar.confirm-timeout=1"
		if b.Timeout() != time.Second {
			t.Fatal(b.Timeout())
		}
		never := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if err := b.Confirm(t.Context(), "v1", never); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := b.Update(t.Context(), once(nil), nil); !errors.Is(err, ErrTrial) {
			t.Fatalf("an update during a trial: %v", err)
		}
	}
	if slot, _ := d.boot(); slot != "a" {
		t.Fatalf("slot %s was booted", slot)
	}
	must(t, s.Confirm(t.Context(), "v0", ready))
	st, err := s.Status()
	must(t, err)
	if !strings.Contains(st.Text, "given up") || !st.Slots[1].Failed || st.Slots[1].Version != "v1" {
		t.Errorf("%+v", st)
	}
	if _, err := s.Rollback(false); err == nil {
		t.Error("it went back to what was given up")
	}
	_, err = s.Rollback(true)
	must(t, err)
	_, err = s.Update(t.Context(), once(pack(t, all[2], "v2", nil)), nil)
	must(t, err)
	if slot, version := d.boot(); slot != "b" || version != "v2" {
		t.Errorf("booted %s %s", slot, version)
	}
	b := d.system("b")
	must(t, b.Confirm(t.Context(), "v2", ready))
	if _, err = b.Rollback(false); err != nil {
		t.Fatal(err)
	}
	if slot, version := d.boot(); slot != "a" || version != "v0" {
		t.Errorf("went back to %s %s", slot, version)
	}
}

// TestDamagedEnvironment has Confirm write a block anew that cannot be read.
func TestDamagedEnvironment(t *testing.T) {
	d, all := newDisk(t), images(1)
	d.fresh(all)
	_, err := d.file.WriteAt(bytes.Repeat([]byte{0xff}, blockSize), d.at["env"])
	must(t, err)
	s := d.system("a")
	if _, err := s.Status(); !errors.Is(err, ErrEnvironment) {
		t.Fatal(err)
	}
	must(t, s.Confirm(t.Context(), "v0", ready))
	st, err := s.Status()
	must(t, err)
	if st.Slots[0] != (Slot{Name: "a", Version: "v0", Booted: true, Default: true}) {
		t.Errorf("%+v", st)
	}
	if _, err := s.Rollback(true); !errors.Is(err, ErrNothing) {
		t.Error(err)
	}
}

// TestBadBundles refuses what is no good update, and changes nothing when the file can be read twice.
func TestBadBundles(t *testing.T) {
	d, all := newDisk(t), images(2)
	public, secret, err := ed25519.GenerateKey(nil)
	must(t, err)
	_, stranger, err := ed25519.GenerateKey(nil)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	key := filepath.Join(t.TempDir(), "update.pem")
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	good := pack(t, all[1], "v1", secret)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"empty": nil, "noise": []byte("noise"), "unsigned": pack(t, all[1], "v1", nil), "by a stranger": pack(t, all[1], "v1", stranger),
		"cut": good[:len(good)/2], "flipped": flipped, "other version": bytes.Replace(good, []byte(`"v1"`), []byte(`"v2"`), 1),
		"too large": pack(t, make([]byte, slotSize+sectorSize), "v1", secret),
	} {
		d.fresh(all)
		s := d.system("a")
		s.Key = key
		file := filepath.Join(t.TempDir(), "bundle")
		must(t, os.WriteFile(file, b, 0o600))
		_, err := s.Update(t.Context(), File(file), nil)
		if !errors.Is(err, ErrBundle) {
			t.Errorf("%s: %v", name, err)
		}
		if st, err := s.Status(); err != nil || st.Slots[1].Version != "" || st.Slots[1].Left != 0 || d.holds("b", all) != "" {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
		t.Logf("%s: %v", name, err)
	}
	s := d.system("a")
	s.Key = key
	_, err = s.Update(t.Context(), once(good), nil)
	must(t, err)
	if d.holds("b", all) != "v1" {
		t.Error("the good one is not there")
	}
}

func TestNoAppliance(t *testing.T) {
	for _, cmdline := range []string{"", "ro quiet", "lunar.slot=c"} {
		s := &System{Dir: t.TempDir(), Cmdline: cmdline}
		if _, err := s.Status(); !errors.Is(err, ErrNoAppliance) {
			t.Errorf("%q: %v", cmdline, err)
		}
	}
	s := &System{Dir: filepath.Join(t.TempDir(), "none"), Cmdline: "lunar.slot=a"}
	if _, err := s.Update(t.Context(), once(nil), nil); !errors.Is(err, ErrNoAppliance) {
		t.Error(err)
	}
}

func FuzzEnvironment(f *testing.F) {
	f.Add([]byte("a=b\nlunar_try=\nx=\\\\y\\\nz\n"))
	f.Add([]byte("=\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		block := append([]byte(blockHead), body...)
		if len(block) > blockSize {
			return
		}
		block = append(block, bytes.Repeat([]byte("#"), blockSize-len(block))...)
		e, err := parseEnvironment(block)
		if err != nil {
			return
		}
		again, err := e.block()
		if err != nil {
			return
		}
		back, err := parseEnvironment(again)
		if err != nil || fmt.Sprint(back) != fmt.Sprint(e) {
			t.Errorf("%q: %v, %v, %v", body, e, back, err)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte("noise"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if got, err := openBundle(bytes.NewReader(b), nil); err == nil {
			_, _ = io.CopyN(io.Discard, got.image, 1<<20)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDevices updates partitions that are block devices, and is refused one that is mounted.
func TestDevices(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for loop devices")
	}
	d, all := newDisk(t), images(2)
	d.fresh(all)
	s := &System{Dir: t.TempDir(), Cmdline: "lunar.slot=a"}
	loops := map[string]string{}
	for name, at := range d.at {
		out, err := exec.Command("losetup", "--find", "--show", "--offset", fmt.Sprint(at), "--sizelimit", fmt.Sprint(d.size[name]), d.file.Name()).Output()
		must(t, err)
		loops[name] = strings.TrimSpace(string(out))
		t.Cleanup(func() { must(t, exec.Command("losetup", "--detach", loops[name]).Run()) })
		must(t, os.Symlink(loops[name], filepath.Join(s.Dir, name)))
	}
	bundle := once(pack(t, all[1], "v1", nil))
	holder, err := os.OpenFile(loops["b"], os.O_RDONLY|unix.O_EXCL, 0) // as a mount does
	must(t, err)
	if _, err := s.Update(t.Context(), bundle, nil); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a slot in use was written: %v", err)
	}
	must(t, holder.Close())
	done := int64(0)
	m, err := s.Update(t.Context(), bundle, func(n, _ int64) { done = n })
	must(t, err)
	if done != m.Size || d.holds("b", all) != "v1" {
		t.Errorf("%d of %d bytes, %q", done, m.Size, d.holds("b", all))
	}
	if slot, version := d.boot(); slot != "b" || version != "v1" {
		t.Errorf("booted %s %s", slot, version)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := &System{Dir: s.Dir, Cmdline: "lunar.slot=b"}
	must(t, b.Confirm(t.Context(), "v1", ready))
	if _, err := b.Update(ctx, bundle, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an update went on after its end: %v", err)
	}
}
