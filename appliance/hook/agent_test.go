package hook

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// guestAgent speaks QEMU's guest agent protocol on a unix socket, to one client at a time, as a chardev does: what an
// earlier client did not read, the next one gets.
type guestAgent struct {
	t      *testing.T
	socket string
	listen net.Listener
	ended  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	systems int        // that can be frozen
	frozen  int
	calls   []string
	deaf    map[string]bool // commands without an answer
	refuse  map[string]bool
	stale   []byte
}

func newGuestAgent(t *testing.T) *guestAgent {
	t.Helper()
	g := &guestAgent{t: t, socket: filepath.Join(t.TempDir(), "qga.sock"), systems: 2, deaf: map[string]bool{}, refuse: map[string]bool{}}
	var err error
	if g.listen, err = net.Listen("unix", g.socket); err != nil {
		t.Fatal(err)
	}
	g.ended.Go(g.serve)
	t.Cleanup(func() {
		_ = g.listen.Close()
		g.ended.Wait()
	})
	return g
}

func (g *guestAgent) serve() {
	for {
		c, err := g.listen.Accept()
		if err != nil {
			return
		}
		g.talk(c)
		_ = c.Close()
	}
}

func (g *guestAgent) talk(c net.Conn) {
	g.mu.Lock()
	_, _ = c.Write(g.stale)
	g.mu.Unlock()
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var call struct {
			Execute   string         `json:"execute"`
			Arguments map[string]any `json:"arguments"`
		}
		d := json.NewDecoder(bytes.NewReader(bytes.TrimLeft(line, "\xff")))
		d.UseNumber()
		if err := d.Decode(&call); err != nil {
			continue // the real one resets its parser, too
		}
		if answer := g.execute(call.Execute, call.Arguments); answer != nil {
			_, _ = c.Write(answer)
		}
	}
}

func (g *guestAgent) execute(command string, arguments map[string]any) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, command)
	var result any
	switch {
	case g.deaf[command]:
		return nil
	case g.refuse[command]:
		return []byte(`{"error": {"class": "GenericError", "desc": "failed to freeze /data: Device or resource busy"}}` + "\n")
	}
	switch command {
	case "guest-sync-delimited":
		id, _ := json.Marshal(arguments["id"])
		return append([]byte("\xff{\"return\": "), append(id, '}', '\n')...)
	case "guest-fsfreeze-freeze":
		g.frozen, result = g.systems, g.systems
	case "guest-fsfreeze-thaw":
		result, g.frozen = g.frozen, 0
	default:
		return []byte(`{"error": {"class": "CommandNotFound", "desc": "The command ` + command + ` has not been found"}}` + "\n")
	}
	out, _ := json.Marshal(map[string]any{"return": result})
	return append(out, '\n')
}

func (g *guestAgent) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// thawed wants that to have been the agent's last command, and nothing frozen.
func (g *guestAgent) thawed() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.calls) == 0 || g.calls[len(g.calls)-1] != "guest-fsfreeze-thaw" || g.frozen != 0 {
		g.t.Errorf("%d frozen, calls %q", g.frozen, g.calls)
	}
}

func (g *guestAgent) isFrozen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen > 0
}

func TestGuestIsFrozenMeanwhile(t *testing.T) {
	g, p := newGuestAgent(t), newPlace(t)
	g.set(func() { g.stale = []byte("{\"return\": 7}\n\xff{\"return\": 99}\n{\"ret") })
	k, err := p.start(Spec{Agent: g.socket})
	if err != nil {
		t.Fatal(err)
	}
	if !g.isFrozen() {
		t.Error("it is not frozen")
	}
	if err := k.End(t.Context(), true); err != nil {
		t.Error(err)
	}
	g.thawed()
	if want := []string{"guest-sync-delimited", "guest-fsfreeze-freeze", "guest-sync-delimited", "guest-fsfreeze-thaw"}; !slices.Equal(g.calls, want) {
		t.Errorf("%q", g.calls)
	}
	p.empty()
}

// A guest that another has thawed meanwhile has written: the snapshot is not what it is to be.
func TestGuestWasThawed(t *testing.T) {
	g, p := newGuestAgent(t), newPlace(t)
	k, err := p.start(Spec{Agent: g.socket})
	if err != nil {
		t.Fatal(err)
	}
	g.set(func() { g.frozen = 0 })
	if err := k.End(t.Context(), true); !errors.Is(err, ErrLate) || !strings.Contains(err.Error(), "of 2 file systems that the guest had frozen, 0 still were") {
		t.Error(err)
	}
	p.empty()
}

func TestGuestDoesNotFreeze(t *testing.T) {
	for name, set := range map[string]func(g *guestAgent){
		"refuses": func(g *guestAgent) { g.refuse["guest-fsfreeze-freeze"] = true },
		"is deaf": func(g *guestAgent) { g.deaf["guest-fsfreeze-freeze"] = true },
		"is older": func(g *guestAgent) {
			g.stale = bytes.Repeat([]byte("x"), 2*maxAnswer)
			g.refuse["guest-fsfreeze-freeze"] = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, p := newGuestAgent(t), newPlace(t)
			g.set(func() { set(g) })
			_, err := p.start(Spec{Agent: g.socket, Limit: MinLimit})
			if !errors.Is(err, ErrBefore) {
				t.Error(err)
			}
			g.thawed()
			p.empty()
		})
	}
}

func TestNoGuestAgent(t *testing.T) {
	p := newPlace(t)
	began := time.Now()
	_, err := p.start(Spec{Agent: filepath.Join(t.TempDir(), "none"), Limit: MinLimit})
	if !errors.Is(err, ErrBefore) || time.Since(began) > 30*time.Second {
		t.Error(time.Since(began), err)
	}
	p.empty()
	g := newGuestAgent(t)
	g.set(func() { g.deaf["guest-sync-delimited"] = true })
	if _, err := p.start(Spec{Agent: g.socket, Limit: MinLimit}); !errors.Is(err, ErrBefore) || !strings.Contains(err.Error(), "does it run?") {
		t.Error(err)
	}
	p.empty()
}

// The agent does not answer at first when it is to thaw: it is asked again.
func TestGuestIsThawedAtLast(t *testing.T) {
	g, p := newGuestAgent(t), newPlace(t)
	k, err := p.start(Spec{Agent: g.socket})
	if err != nil {
		t.Fatal(err)
	}
	g.set(func() { g.refuse["guest-fsfreeze-thaw"] = true })
	time.AfterFunc(300*time.Millisecond, func() { g.set(func() { clear(g.refuse) }) })
	if err := k.End(t.Context(), true); err != nil {
		t.Error(err)
	}
	g.thawed()
	p.empty()
}

// FuzzAgent has a peer say anything.
func FuzzAgent(f *testing.F) {
	for _, s := range []string{"", "\xff", "\xff{\"return\": 1}\n", "{\"return\":", "\xff{\"error\": {}}\n\xff\xff\n", "\xff{\"return\": {}}\n{\"return\": -1}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		var ended sync.WaitGroup
		ended.Go(func() {
			buf := make([]byte, 512)
			for {
				if _, err := theirs.Read(buf); err != nil {
					return
				}
			}
		})
		ended.Go(func() {
			_, _ = theirs.Write(said)
			_ = theirs.Close()
		})
		a := &agent{conn: ours, in: bufio.NewReaderSize(ours, maxAnswer), id: 1}
		if err := a.sync(); err == nil {
			_, _ = a.count("guest-fsfreeze-freeze")
		}
		_ = ours.Close()
		ended.Wait()
	})
}
