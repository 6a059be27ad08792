package heartbeat

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// What the ingress program says of a packet.
const (
	passed   = ^uint32(0) // TCX_NEXT
	dropped  = 2
	answered = 7 // redirected
)

// packet wraps a payload in Ethernet, IPv4 or IPv6, and UDP with its checksum, from 1 to 2.
func packet(family Family, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, port)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	b := make([]byte, 12, 200)
	b[11] = 9
	src, dst := make([]byte, 4), make([]byte, 4)
	if family == IPv6 {
		src, dst = make([]byte, 16), make([]byte, 16)
	}
	src[len(src)-1], dst[len(dst)-1] = 1, 2
	if family == IPv6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, byte(len(udp)>>8), byte(len(udp)), 17, 64)
	} else {
		b = append(b, 8, 0, 0x45, 0, byte((20+len(udp))>>8), byte(20+len(udp)), 0, 0, 0, 0, 64, 17, 0, 0)
	}
	b = append(append(b, src...), dst...)
	at := len(b)
	b = append(b, udp...)
	sum := udpSum(b, family)
	binary.BigEndian.PutUint16(b[at+6:], ^sum)
	return b
}

// udpSum is the sum over pseudo-header, header and data: 0xffff, if the checksum in it is right.
func udpSum(b []byte, family Family) uint16 {
	at, addrs := 34, b[26:34]
	if family == IPv6 {
		at, addrs = 54, b[22:54]
	}
	data := slices.Concat(addrs, b[at+4:at+6], []byte{0, 17}, b[at:])
	if len(data)%2 != 0 {
		data = append(data, 0)
	}
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// loopback is a node whose programs are run by hand, on packets that came by the loopback interface.
func loopback(t testing.TB, o Options, network uint16, paths ...Path) *Heartbeat {
	t.Helper()
	o.Incarnation, o.Keys = 55, [][KeySize]byte{testKey()}
	h, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := h.name(1, network); err != nil {
		t.Fatal(err)
	}
	if err := h.SetPaths(paths); err != nil {
		t.Fatal(err)
	}
	return h
}

func run(t testing.TB, p *ebpf.Program, b []byte) (verdict uint32, out []byte) {
	t.Helper()
	verdict, out, err := p.Test(b)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, out
}

// TestGolden holds the program in the kernel to the bytes of netft/beat, and to the same judgement of them.
func TestGolden(t *testing.T) {
	f, err := os.Open("../../netft/beat/testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		words := strings.Fields(lines.Text())
		data, err := hex.DecodeString(words[2])
		if err != nil {
			t.Fatal(err)
		}
		t.Run(words[0], func(t *testing.T) { judge(t, words[1], data) })
	}
}

func judge(t *testing.T, want string, data []byte) {
	path := Path{7, 2, IPv6}
	h := loopback(t, Options{Number: 3}, 2, path)
	verdict, out := run(t, h.objects.HbIngress, packet(IPv6, data))
	n, s := h.Node(), Stamp{}
	h.Stamp(path, &s)
	foreign, forged, malformed := b2i(n.Foreign), b2i(n.Forged), b2i(n.Malformed)
	got := [...]int{int(int32(verdict)), foreign, forged, malformed, int(s.Beats), int(s.Unsolicited)}
	isAnswer := len(data) > 5 && data[5] == 2
	expect := map[string][6]int{
		"ok": {answered, 0, 0, 0, 1, 0}, "length": {-1, 1}, "magic": {-1, 1}, "version": {-1, 1}, "foreign": {-1, 1},
		"forged": {dropped, 0, 1}, "content": {dropped, 0, 0, 1},
	}[want]
	if want == "ok" && isAnswer {
		expect = [6]int{dropped, 0, 0, 0, 0, 1}
	}
	if got != expect {
		t.Errorf("verdict, foreign, forged, malformed, beats, unsolicited: %v, want %v", got, expect)
	}
	if verdict == answered {
		checkAnswer(t, data, out)
	}
}

func b2i(n uint64) int { return int(n) }

// checkAnswer proves that out is the packet turned round, signed, and with the right checksum.
func checkAnswer(t *testing.T, beat, out []byte) {
	t.Helper()
	const at = 14 + 40 + 8
	if sum := udpSum(out, IPv6); sum != 0xffff {
		t.Errorf("the answer's UDP checksum is wrong: %#x", sum)
	}
	if out[5] != 9 || out[11] != 0 || out[14+8+15] != 2 || out[14+24+15] != 1 {
		t.Errorf("not sent back to where it came from: %x", out[:54])
	}
	a, b := parseFrame(out[at:]), parseFrame(beat)
	want := frame{kind: 2, flags: 1, from: b.to, to: b.from, network: b.network, family: b.family,
		age: 0xffffffff, inc: 55, seq: b.seq, sent: a.sent, echo: b.sent, hld: a.hld}
	if a != want || a.hld > uint64(time.Second) {
		t.Errorf("got %+v, want %+v", a, want)
	}
	if !bytes.Equal(a.bytes(testKey()), out[at:]) {
		t.Error("the answer's tag is wrong")
	}
}

// TestOtherPackets: what is no heartbeat passes, whole.
func TestOtherPackets(t *testing.T) {
	h := loopback(t, Options{Number: 3}, 2, Path{7, 2, IPv4})
	good := packet(IPv4, frame{kind: 1, from: 7, to: 3, network: 2, family: IPv4, inc: 1, seq: 1}.bytes(testKey()))
	cases := map[string]func([]byte){
		"another port": func(b []byte) { b[37] = 80 },
		"TCP":          func(b []byte) { b[23] = 6 },
		"a fragment":   func(b []byte) { b[21] = 1 },
		"more to come": func(b []byte) { b[20] = 0x20 },
		"IP options":   func(b []byte) { b[14] = 0x46 },
		"ARP":          func(b []byte) { b[12], b[13] = 8, 6 },
		"other host":   func(b []byte) { b[0] = 2 },
		"multicast":    func(b []byte) { b[0] = 1 },
	}
	for name, change := range cases {
		b := bytes.Clone(good)
		change(b)
		if verdict, out := run(t, h.objects.HbIngress, b); verdict != passed || !bytes.Equal(out, b) {
			t.Errorf("%s: verdict %d", name, verdict)
		}
	}
	if n := h.Node(); n.Foreign+n.Forged+n.Malformed != 0 {
		t.Errorf("counted: %+v", n)
	}
	if verdict, _ := run(t, h.objects.HbIngress, good); verdict != answered {
		t.Errorf("the heartbeat itself: verdict %d", verdict)
	}
}

// TestPlaces: a signed heartbeat counts only where it says that it belongs.
func TestPlaces(t *testing.T) {
	h := loopback(t, Options{Number: 3}, 2, Path{7, 2, IPv4})
	good := frame{kind: 1, from: 7, to: 3, network: 2, family: IPv4, inc: 1, seq: 1}
	cases := []struct {
		name    string
		change  func(*frame)
		verdict uint32
		count   func(Node) uint64
	}{
		{"other network", func(f *frame) { f.network = 1 }, dropped, func(n Node) uint64 { return n.Misplaced }},
		{"other family", func(f *frame) { f.family = IPv6 }, dropped, func(n Node) uint64 { return n.Misplaced }},
		{"other receiver", func(f *frame) { f.to = 4 }, passed, func(n Node) uint64 { return n.Foreign }},
		{"unknown sender", func(f *frame) { f.from = 8 }, passed, func(n Node) uint64 { return n.Unknown }},
	}
	for _, c := range cases {
		f, before := good, c.count(h.Node())
		c.change(&f)
		if verdict, _ := run(t, h.objects.HbIngress, packet(IPv4, f.bytes(testKey()))); verdict != c.verdict {
			t.Errorf("%s: verdict %d, want %d", c.name, int32(verdict), int32(c.verdict))
		}
		if c.count(h.Node()) != before+1 {
			t.Errorf("%s: not counted: %+v", c.name, h.Node())
		}
	}
	var s Stamp
	if h.Stamp(Path{7, 2, IPv4}, &s); s.LastBeat != 0 {
		t.Errorf("stamped: %+v", s)
	}
}

// TestSequences walks through what can happen to the order of beats.
func TestSequences(t *testing.T) {
	path := Path{7, 2, IPv4}
	h := loopback(t, Options{Number: 3}, 2, path)
	steps := []struct {
		inc, seq uint64
		verdict  uint32
		want     Stamp // the counters
	}{
		{5, 10, answered, Stamp{Beats: 1}},
		{5, 10, dropped, Stamp{Beats: 1, Duplicates: 1}},
		{5, 14, answered, Stamp{Beats: 2, Duplicates: 1, Gaps: 3}},
		{5, 12, dropped, Stamp{Beats: 2, Duplicates: 1, Gaps: 3, Reordered: 1}},
		{5, 12, dropped, Stamp{Beats: 2, Duplicates: 2, Gaps: 3, Reordered: 1}},
		{5, 11, dropped, Stamp{Beats: 2, Duplicates: 2, Gaps: 3, Reordered: 2}},
		{4, 99, dropped, Stamp{Beats: 2, Duplicates: 2, Gaps: 3, Reordered: 2, Replayed: 1}},
		{5, 100, answered, Stamp{Beats: 3, Duplicates: 2, Gaps: 88, Reordered: 2, Replayed: 1}},
		{5, 36, dropped, Stamp{Beats: 3, Duplicates: 2, Gaps: 88, Reordered: 2, Replayed: 2}},
		{5, 37, dropped, Stamp{Beats: 3, Duplicates: 2, Gaps: 88, Reordered: 3, Replayed: 2}},
		{6, 1, answered, Stamp{Beats: 4, Duplicates: 2, Gaps: 88, Reordered: 3, Replayed: 2, Restarts: 1}},
		{5, 101, dropped, Stamp{Beats: 4, Duplicates: 2, Gaps: 88, Reordered: 3, Replayed: 3, Restarts: 1}},
		{6, 2, answered, Stamp{Beats: 5, Duplicates: 2, Gaps: 88, Reordered: 3, Replayed: 3, Restarts: 1}},
	}
	var before Stamp
	for i, step := range steps {
		f := frame{kind: 1, from: 7, to: 3, network: 2, family: IPv4, inc: step.inc, seq: step.seq}
		verdict, _ := run(t, h.objects.HbIngress, packet(IPv4, f.bytes(testKey())))
		var s Stamp
		h.Stamp(path, &s)
		got := Stamp{Beats: s.Beats, Duplicates: s.Duplicates, Gaps: s.Gaps, Reordered: s.Reordered, Replayed: s.Replayed, Restarts: s.Restarts}
		if verdict != step.verdict || got != step.want {
			t.Errorf("step %d: verdict %d, %+v; want %d, %+v", i, verdict, got, step.verdict, step.want)
		}
		if fresh := s.LastBeat != before.LastBeat; fresh != (step.verdict == answered) {
			t.Errorf("step %d: stamped anew: %v", i, fresh)
		}
		before = s
	}
}

// TestKeys: while keys are replaced both count, and each answer bears the key of its question.
func TestKeys(t *testing.T) {
	h := loopback(t, Options{Number: 3}, 2, Path{7, 2, IPv6})
	old, young := testKey(), [KeySize]byte{1}
	seq := uint64(0)
	judge := func(key [KeySize]byte) uint32 {
		seq++
		f := frame{kind: 1, from: 7, to: 3, network: 2, family: IPv6, inc: 1, seq: seq}
		verdict, out := run(t, h.objects.HbIngress, packet(IPv6, f.bytes(key)))
		if verdict == answered && !bytes.Equal(parseFrame(out[62:]).bytes(key), out[62:]) {
			t.Error("the answer does not bear the key of its question")
		}
		return verdict
	}
	for _, step := range []struct {
		keys      [][KeySize]byte
		old, then uint32
	}{
		{[][KeySize]byte{old}, answered, passed},
		{[][KeySize]byte{young, old}, answered, answered},
		{[][KeySize]byte{young}, passed, answered},
	} {
		if err := h.SetKeys(step.keys); err != nil {
			t.Fatal(err)
		}
		if a, b := judge(old), judge(young); a != step.old || b != step.then {
			t.Errorf("old %d, new %d; want %d, %d", int32(a), int32(b), int32(step.old), int32(step.then))
		}
	}
	if err := h.SetKeys(nil); err == nil {
		t.Error("no key was accepted")
	}
}

// TestEgress: only a right and new beat of our own daemon shows that it lives.
func TestEgress(t *testing.T) {
	path := Path{7, 2, IPv4}
	h := loopback(t, Options{Number: 3}, 2, path)
	good := frame{kind: 1, from: 3, to: 7, network: 2, family: IPv4, inc: 55, seq: 9}
	bad := map[string]func(*frame){
		"another's":           func(f *frame) { f.from, f.to = 7, 3 },
		"an old incarnation":  func(f *frame) { f.inc = 54 },
		"an answer":           func(f *frame) { f.kind = 2 },
		"a replay":            func(f *frame) { f.seq = 8 },
		"a wrong network":     func(f *frame) { f.network = 1 },
		"to an unknown peer":  func(f *frame) { f.to = 9 },
		"by the other family": func(f *frame) { f.family = IPv6 },
	}
	check := func(name string, b []byte, lives bool) {
		before := h.Node().Daemon
		if verdict, _ := run(t, h.objects.HbEgress, packet(IPv4, b)); verdict != passed {
			t.Errorf("%s: verdict %d", name, verdict)
		}
		if (h.Node().Daemon != before) != lives {
			t.Errorf("%s: the daemon's time went from %v to %v", name, before, h.Node().Daemon)
		}
	}
	check("a beat", good.bytes(testKey()), true)
	for name, change := range bad {
		f := good
		f.seq = 20
		change(&f)
		check(name, f.bytes(testKey()), false)
	}
	f := good
	f.seq = 20
	forged := f.bytes(testKey())
	forged[50] ^= 1
	check("a forged one", forged, false)
	check("the next beat", f.bytes(testKey()), true)
	var s Stamp
	if h.Stamp(path, &s); s.Sent != 2 || s.LastSent != h.Node().Daemon {
		t.Errorf("stamp %+v", s)
	}
}
