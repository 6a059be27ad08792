package datapath

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"lunar/datapath/coordinator"
	"lunar/datapath/volume"
)

var torture = flag.Int("torture", 2, "rounds of TestTorture on each file system")

// tortureEnv tells the test binary to be the process that TestTorture ends: device, round, mode.
const tortureEnv = "LUNAR_DATAPATH_TORTURE"

// Slots of the torture's image, each of tortureSlot bytes at a stride that leaves holes. A worker
// owns every nth one.
const (
	tortureSlots   = 600
	tortureSlot    = 8192
	tortureStride  = 5 * 8192
	tortureWorkers = 4
)

// tortureChild works on the image until its time is over or it is killed. Before each operation it
// says what it begins, after it what is done: "begin SLOT VERSION", "end SLOT", "durable SLOT".
// Version 0 is an unmap.
func tortureChild() {
	var path, mode string
	var round uint64
	_, err := fmt.Sscan(os.Getenv(tortureEnv), &path, &round, &mode)
	if err == nil {
		err = torment(path, round, mode)
	}
	fmt.Println("error", err)
	os.Exit(1)
}

func torment(path string, round uint64, mode string) error {
	n, im, err := openForCrash(path, 2*round+1, "t", tortureSlots*tortureStride)
	if err != nil {
		return err
	}
	if mode == "power" {
		time.AfterFunc(time.Duration(200+rand.IntN(400))*time.Millisecond, func() {
			_ = n.coord.Shutdown()
			os.Exit(0)
		})
	}
	fmt.Println("open")
	failed := make(chan error, tortureWorkers)
	for w := range tortureWorkers {
		go func() {
			v := victim{n: n, im: im, lane: w % n.engine.Rings(), w: w, rng: rand.New(rand.NewPCG(round, uint64(w))), version: round<<32 | uint64(w)<<28}
			for {
				if err := v.step(); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	err = <-failed
	if mode == "power" {
		select {} // the power is going
	}
	return err
}

// victim is one worker of the process that is ended.
type victim struct {
	n       *node
	im      *volume.Image
	lane, w int
	rng     *rand.Rand
	version uint64
	open    []int // slots with operations that no flush followed
}

// call runs an asynchronous operation on the victim's lane.
func (v *victim) call(fn func(done func(error))) error {
	result := make(chan error, 1)
	if err := v.n.engine.Ring(v.lane).Post(func() { fn(func(err error) { result <- err }) }); err != nil {
		return err
	}
	return <-result
}

func (v *victim) step() error {
	i := v.rng.IntN(tortureSlots/tortureWorkers)*tortureWorkers + v.w
	off := int64(i) * tortureStride
	kind, fua := v.rng.IntN(12), v.rng.IntN(3) == 0
	if kind == 11 {
		return v.flush()
	}
	v.version++
	p := bytes.Clone(tortureContent(i, v.version))
	if kind == 0 {
		fmt.Println("begin", i, 0)
	} else {
		fmt.Println("begin", i, v.version)
	}
	var err error
	switch kind {
	case 0:
		fua = false
		err = v.im.Discard(off, tortureSlot)
	case 1:
		err = v.swap(p, off, fua)
	default:
		buf := v.n.engine.Pool().Get(len(p))
		copy(buf, p)
		err = v.call(func(done func(error)) { v.im.Write(v.lane, buf, off, fua, done) })
		v.n.engine.Pool().Put(buf)
	}
	if err != nil {
		return err
	}
	if fua {
		fmt.Println("durable", i)
	} else {
		fmt.Println("end", i)
		v.open = append(v.open, i)
	}
	return nil
}

// swap replaces a slot by compare and write.
func (v *victim) swap(p []byte, off int64, fua bool) error {
	present := make([]byte, len(p))
	if _, err := v.im.ReadAt(present, off); err != nil {
		return err
	}
	return v.call(func(done func(error)) {
		v.im.CompareAndWrite(v.lane, present, p, off, fua, func(at int, err error) {
			if err == nil && at >= 0 {
				err = fmt.Errorf("Atomic: somebody else wrote at %d", off+int64(at))
			}
			done(err)
		})
	})
}

func (v *victim) flush() error {
	slots := v.open
	v.open = nil
	if err := v.im.Sync(); err != nil {
		return err
	}
	for _, i := range slots {
		fmt.Println("durable", i)
	}
	return nil
}

// tortureContent is a slot's content, recognisable in each sector.
func tortureContent(slot int, version uint64) []byte {
	p := make([]byte, tortureSlot)
	for s := 0; s < len(p); s += 512 {
		binary.LittleEndian.PutUint64(p[s:], uint64(slot)<<16|uint64(s))
		binary.LittleEndian.PutUint64(p[s+8:], version)
	}
	return p
}

// history is what a slot may hold: what is durable, or any version that was begun later.
type history struct {
	may   [tortureSlots][]uint64
	acked int
}

// hear takes one line of the child's report.
func (h *history) hear(line string) error {
	var i int
	var version uint64
	if n, _ := fmt.Sscanf(line, "begin %d %d", &i, &version); n == 2 && i < tortureSlots {
		h.may[i] = append(h.may[i], version)
		return nil
	}
	if n, _ := fmt.Sscanf(line, "durable %d", &i); n == 1 && i < tortureSlots {
		h.may[i] = h.may[i][len(h.may[i])-1:]
		h.acked++
		return nil
	}
	if strings.HasPrefix(line, "error") {
		return errors.New(line)
	}
	return nil
}

// check compares a slot, sector by sector, with what it may hold: a write or unmap that was under way
// may have reached some sectors only. What it does hold is what it may hold from then on.
func (h *history) check(i int, got []byte) error {
	found := map[uint64]bool{}
	for s := 0; s < len(got); s += 512 {
		version := binary.LittleEndian.Uint64(got[s+8:])
		want := make([]byte, 512)
		if version > 0 {
			want = tortureContent(i, version)[s : s+512]
		}
		if !slices.Contains(h.may[i], version) || !bytes.Equal(got[s:s+512], want) {
			return fmt.Errorf("slot %d, byte %d has %x, may have versions %x", i, s, got[s:s+16], h.may[i])
		}
		found[version] = true
	}
	h.may[i] = slices.Collect(maps.Keys(found))
	return nil
}

// TestTorture ends a process in the midst of writes, flushes, unmaps and compare-and-writes on all
// paths, by kill -9 and by taking the file system's power away, again and again: what it had
// acknowledged as durable is there, and nothing else than what it wrote.
func TestTorture(t *testing.T) {
	each(t, func(t *testing.T, fs coordinator.FSType) {
		loop := scratchDevice(t, fs, 400*mib)
		fill(t, loop.Path, 0xEE)
		formatDevice(t, loop.Path, fs)
		h := &history{}
		for i := range h.may {
			h.may[i] = []uint64{0}
		}
		for round := range *torture {
			mode := []string{"kill", "power"}[round%2]
			endChild(t, h, loop.Path, round, mode)
			checkTorture(t, h, loop.Path, round)
			if t.Failed() {
				t.Fatalf("round %d, %s", round, mode)
			}
		}
		checkFileSystem(t, loop.Path, fs)
		if h.acked == 0 {
			t.Error("nothing was durable")
		}
		t.Logf("%d operations were durable", h.acked)
	})
}

func endChild(t *testing.T, h *history, path string, round int, mode string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", tortureEnv, path, round, mode))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := 20 * time.Second // against a hang
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // a torn last line counts for nothing
		}
		if strings.HasPrefix(line, "open") && mode == "kill" {
			limit = time.Duration(200+rand.IntN(400)) * time.Millisecond
		}
		if strings.HasPrefix(line, "open") {
			defer time.AfterFunc(limit, func() { cmd.Process.Kill() }).Stop()
		}
		if err := h.hear(line); err != nil {
			t.Error(err)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	waitUnused(t, path)
}

func checkTorture(t *testing.T, h *history, path string, round int) {
	t.Helper()
	n := start(t, path, uint64(2*round+2))
	defer n.stop()
	im := n.open("t")
	for i := range h.may {
		off := int64(i) * tortureStride
		got := read(t, im, off, tortureStride)
		if !bytes.Equal(got[tortureSlot:], make([]byte, tortureStride-tortureSlot)) {
			t.Errorf("NoLeak: behind slot %d", i)
		}
		if err := h.check(i, got[:tortureSlot]); err != nil {
			t.Errorf("Durable: %v", err)
		}
	}
	if err := im.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
