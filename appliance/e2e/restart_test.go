package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
)

// TestRestartKeepsExports stops the daemon, and kills it: targets, LUNs and data are there again.
func TestRestartKeepsExports(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 256*mib)
	source := upload(ctx, t, s, 256*mib)
	before := ctl(ctx, t, s.node, "target list")
	for _, end := range []struct {
		name string
		do   func() error
	}{
		{"SIGTERM", func() error { return s.node.Stop() }},
		{"SIGKILL", func() error { s.node.Kill(); return nil }},
	} {
		check(t, end.do())
		check(t, s.node.Start(ctx))
		if after := ctl(ctx, t, s.node, "target list"); after != before {
			t.Errorf("after %s: target list\n%s\nwas\n%s", end.name, after, before)
		}
		if err := lab.Equal(ctx, source, s.url); err != nil {
			t.Errorf("after %s: %v", end.name, err)
		}
	}
}

// TestKillDuringWrites kills the daemon twice while initiators write with FUA, and with a flush after
// each write: each initiator reconnects by itself, and every write that was acknowledged is there.
func TestKillDuringWrites(t *testing.T) {
	ctx, s := serve(t, 1024*mib, 512*mib)
	const writers = 3
	done := make(chan error, writers)
	stop := make(chan struct{})
	all := make([]*writer, writers)
	for i := range all {
		all[i] = startWriter(ctx, t, s.url, int64(i)*128*mib, i%2 == 0)
		go func() { done <- all[i].run(stop) }()
	}
	for range 2 {
		time.Sleep(1500 * time.Millisecond)
		s.node.Kill()
		check(t, s.node.Start(ctx))
	}
	var before [writers]int64
	for i, w := range all {
		before[i] = w.acknowledged.Load()
	}
	check(t, lab.Poll(time.Minute, func() error {
		for i, w := range all {
			if n := w.acknowledged.Load() - before[i]; n < 20 {
				return fmt.Errorf("writer %d: only %d writes were acknowledged: it did not come back", i, n)
			}
		}
		return nil
	}))
	time.Sleep(time.Second)
	close(stop)
	for range all {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for i, w := range all {
		t.Logf("writer %d: %d acknowledged writes", i, w.acknowledged.Load())
		verify(ctx, t, s.url, w)
	}
}

const (
	writeSize  = int64(16 << 10)
	writeSlots = 512 // places of a writer; it goes round
)

// writer drives one qemu-io, a command at a time, and knows what was acknowledged.
type writer struct {
	cmd          *exec.Cmd
	in           io.WriteCloser
	out          *bufio.Reader
	base         int64
	fua          bool
	acknowledged atomic.Int64
	patterns     [writeSlots]int // by slot; 0 is nothing yet
}

func startWriter(ctx context.Context, t *testing.T, url string, base int64, fua bool) *writer {
	t.Helper()
	w := &writer{base: base, fua: fua, cmd: exec.CommandContext(ctx, "qemu-io", "-f", "raw", "-t", "none", url)}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := w.cmd.StdinPipe()
	check(t, err)
	out, err := w.cmd.StdoutPipe()
	check(t, err)
	w.in, w.out = in, bufio.NewReader(out)
	w.cmd.Stderr = w.cmd.Stdout
	check(t, w.cmd.Start())
	_, err = w.toPrompt()
	check(t, err)
	return w
}

// run writes until stop, then ends qemu-io.
func (w *writer) run(stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return w.end()
		default:
		}
		if err := w.write(n); err != nil {
			_ = w.cmd.Process.Kill()
			_ = w.cmd.Wait()
			return err
		}
	}
}

func (w *writer) end() error {
	if _, err := io.WriteString(w.in, "quit\n"); err != nil {
		return err
	}
	return w.cmd.Wait()
}

// write stores one block and makes it durable, by FUA or by a flush that must succeed too.
func (w *writer) write(n int) error {
	slot, pattern := n%writeSlots, 1+n%251
	commands := []string{fmt.Sprintf("write -P %d %d %d", pattern, w.offset(slot), writeSize), "flush"}
	if w.fua {
		commands = []string{fmt.Sprintf("write -f -P %d %d %d", pattern, w.offset(slot), writeSize)}
	}
	var answers strings.Builder
	for _, command := range commands {
		answer, err := w.command(command)
		if err != nil {
			return err
		}
		answers.WriteString(answer)
	}
	done := fmt.Sprintf("wrote %d/%d", writeSize, writeSize)
	if text := answers.String(); !strings.Contains(text, done) || strings.Contains(text, "failed") {
		return fmt.Errorf("write %d at slot %d: %s", n, slot, text)
	}
	w.patterns[slot] = pattern
	w.acknowledged.Add(1)
	return nil
}

const prompt = "qemu-io> "

// command sends one command at the prompt and returns all that is printed up to the next prompt.
// qemu-io reads a line only when its standard input has become readable, so never send two.
func (w *writer) command(line string) (string, error) {
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		return "", err
	}
	return w.toPrompt()
}

func (w *writer) toPrompt() (string, error) {
	var text []byte
	for !bytes.HasSuffix(text, []byte(prompt)) {
		b, err := w.out.ReadByte()
		if err != nil {
			return "", fmt.Errorf("qemu-io ended: %w: %s", err, text)
		}
		text = append(text, b)
	}
	return string(text), nil
}

func (w *writer) offset(slot int) int64 { return w.base + int64(slot)*3*writeSize }

// verify reads every acknowledged block by a new initiator.
func verify(ctx context.Context, t *testing.T, url string, w *writer) {
	t.Helper()
	var commands []string
	for slot, pattern := range &w.patterns {
		if pattern != 0 {
			commands = append(commands, fmt.Sprintf("read -P %d %d %d", pattern, w.offset(slot), writeSize))
		}
	}
	out, err := lab.QemuIO(ctx, url, commands...)
	if n := strings.Count(out, "Pattern verification failed"); n > 0 {
		t.Fatalf("%d acknowledged writes are lost", n)
	}
	check(t, err)
}
