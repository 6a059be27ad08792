package namespace

import (
	"bufio"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// bootSector is testdata/boot.S: a guest that writes numbered records, each in one sector, round and round.
//
//go:embed testdata/boot.bin
var bootSector []byte

const (
	recordBase   = 64 // sector of the first record
	recordSlots  = 1024
	recordAt     = 8 // bytes into its sector
	guestRecords = 400
	guestLimit   = 2 * time.Minute
)

// TestLiveMigration moves a running guest that writes between nodes that do not coordinate, with its disk in the
// namespace, there and back and on by a coordinator's move: no record is lost, and none was written twice in another order.
func TestLiveMigration(t *testing.T) {
	if os.Getenv("LUNAR_LONG") == "" {
		t.Skip("it boots guests: make namespace-test runs it")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64: apt install qemu-system-x86")
	}
	b := newBench(t)
	coordinator, others := b.roles()
	disk := make([]byte, mib)
	copy(disk, bootSector)
	check(t, os.WriteFile(b.at(others[0], "guest.img"), disk, 0o600))
	for _, n := range b.Nodes { // each opens it as a hypervisor does
		b.run("qemu-io", "-f", "raw", "-t", "none", "-c", "read -v 0 512", b.at(n, "guest.img"))
	}
	g := b.boot(others[0])
	b.awaitRecords(coordinator, guestRecords)
	for i, to := range []*lab.ClusterNode{others[1], others[0], coordinator} {
		if i == 1 {
			check(t, b.Move(b.ctx, others[1])) // from which it is moved away
		}
		before := b.records(others[1])
		began := time.Now()
		next := b.boot(to, "-incoming", "defer")
		paused := g.migrate(next)
		g.quit()
		g = next
		b.awaitRecords(others[0], before+guestRecords)
		t.Logf("to node %s within %v, it stood still for %v; record %d", to.Name, time.Since(began).Round(time.Millisecond), paused, b.records(coordinator))
	}
	g.quit()
	t.Logf("%d records, none is missing", b.judge(coordinator))
	for _, n := range others {
		b.run("cmp", b.at(coordinator, "guest.img"), b.at(n, "guest.img"))
	}
	b.clean()
}

// guest is a QEMU with its disk in a node's namespace.
type guest struct {
	b       *bench
	process *lab.Process
	conn    net.Conn
	in      *bufio.Reader
}

var guests int

func (b *bench) boot(n *lab.ClusterNode, more ...string) *guest {
	b.t.Helper()
	guests++
	socket := b.lab.Path(fmt.Sprintf("qmp-%d", guests))
	argv := append([]string{"qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-qmp", "unix:" + socket + ",server=on,wait=off",
		"-drive", "file=" + b.at(n, "guest.img") + ",format=raw,if=virtio,cache=none,aio=threads"}, more...)
	p, err := b.lab.Start(argv...)
	check(b.t, err)
	g := &guest{b: b, process: p}
	check(b.t, lab.Poll(guestLimit, func() (err error) {
		g.conn, err = (&net.Dialer{}).DialContext(b.ctx, "unix", socket)
		return err
	}))
	b.t.Cleanup(func() { _ = g.conn.Close() })
	g.in = bufio.NewReader(g.conn)
	g.do("qmp_capabilities", nil)
	return g
}

// do is a QMP command; events that come before its answer are skipped.
func (g *guest) do(command string, arguments any) map[string]any {
	g.b.t.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	check(g.b.t, err)
	_, err = g.conn.Write(append(line, '\n'))
	check(g.b.t, err)
	for {
		line, err := g.in.ReadBytes('\n')
		if err != nil {
			g.b.t.Fatalf("%s: %v\n%s", command, err, g.process.Log())
		}
		var answer struct {
			Return map[string]any  `json:"return"`
			Error  json.RawMessage `json:"error"`
		}
		check(g.b.t, json.Unmarshal(line, &answer))
		if answer.Error != nil {
			g.b.t.Fatalf("%s: %s", command, answer.Error)
		}
		if answer.Return != nil {
			return answer.Return
		}
	}
}

// migrate moves the running guest, and tells for how long it stood still.
func (g *guest) migrate(to *guest) time.Duration {
	g.b.t.Helper()
	socket := g.b.lab.Path(fmt.Sprintf("migrate-%d", guests))
	to.do("migrate-incoming", map[string]any{"uri": "unix:" + socket})
	g.do("migrate", map[string]any{"uri": "unix:" + socket})
	var last map[string]any
	check(g.b.t, lab.Poll(guestLimit, func() error {
		last = g.do("query-migrate", nil)
		switch last["status"] {
		case "completed":
			return nil
		case "failed", "cancelled":
			g.b.t.Fatalf("%v\n%s\n%s", last, g.process.Log(), to.process.Log())
		}
		return fmt.Errorf("%v", last["status"])
	}))
	check(g.b.t, lab.Poll(guestLimit, func() error {
		if s := to.do("query-status", nil); s["status"] != "running" {
			return fmt.Errorf("%v", s)
		}
		return nil
	}))
	paused, _ := last["downtime"].(float64)
	return time.Duration(paused) * time.Millisecond
}

func (g *guest) quit() {
	g.b.t.Helper()
	_, err := io.WriteString(g.conn, `{"execute": "quit"}`+"\n")
	check(g.b.t, err)
	select {
	case <-g.process.Exited():
	case <-time.After(guestLimit):
		g.b.t.Fatal("QEMU does not end")
	}
	if log := g.process.Log(); strings.Contains(log, "rror") {
		g.b.t.Error(log)
	}
}

// readRecords is the number in each slot, as a node reads it.
func (b *bench) readRecords(n *lab.ClusterNode) (all [recordSlots]int64, last int64) {
	b.t.Helper()
	f, err := os.Open(b.at(n, "guest.img"))
	check(b.t, err)
	defer func() { _ = f.Close() }()
	data := make([]byte, recordSlots*512)
	_, err = f.ReadAt(data, recordBase*512)
	check(b.t, err)
	for i := range all {
		all[i] = int64(binary.LittleEndian.Uint32(data[i*512+recordAt:]))
		last = max(last, all[i])
	}
	return all, last
}

func (b *bench) records(n *lab.ClusterNode) int64 {
	b.t.Helper()
	_, last := b.readRecords(n)
	return last
}

func (b *bench) awaitRecords(n *lab.ClusterNode, want int64) {
	b.t.Helper()
	check(b.t, lab.Poll(guestLimit, func() error {
		if last := b.records(n); last < want {
			return fmt.Errorf("the guest has written %d records, not %d", last, want)
		}
		return nil
	}))
}

// judge wants every record before the last one, as far as they are kept.
func (b *bench) judge(n *lab.ClusterNode) int64 {
	b.t.Helper()
	all, last := b.readRecords(n)
	if last == 0 {
		b.t.Fatal(errors.New("there is no record"))
	}
	for i := last; i > max(0, last-recordSlots); i-- {
		if got := all[i%recordSlots]; got != i {
			b.t.Errorf("record %d is there, and %d is not: %d", last, i, got)
		}
	}
	return last
}
