package hook

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Bounds of talk with a guest agent.
const (
	agentAgain  = 200 * time.Millisecond // between tries to thaw
	maxAnswer   = 64 << 10               // bytes of one answer
	maxStale    = 64                     // answers to others that are skipped
	delimiter   = 0xff                   // of guest-sync-delimited, which no JSON in UTF-8 has
	syncCommand = "guest-sync-delimited"
)

// agent is a connection to a QEMU guest agent, by the chardev socket that QEMU has for it: one JSON object a line.
type agent struct {
	conn net.Conn
	in   *bufio.Reader
	id   int64
}

// dialAgent connects and drops what is left of an earlier talk. It ends with ctx.
func dialAgent(ctx context.Context, socket string) (*agent, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("guest agent: %w", err)
	}
	if until, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(until)
	}
	a := &agent{conn: conn, in: bufio.NewReaderSize(conn, maxAnswer), id: time.Now().UnixNano() & (1<<53 - 1)}
	if err := a.sync(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("guest agent at %s does not answer: is it installed in the guest, and does it run? %w", socket, err)
	}
	return a, nil
}

// sync is guest-sync-delimited: both sides forget what came before.
func (a *agent) sync() error {
	if _, err := a.conn.Write([]byte{delimiter}); err != nil {
		return err
	}
	if err := a.send(syncCommand, map[string]int64{"id": a.id}); err != nil {
		return err
	}
	for range maxStale {
		if err := a.skipTo(delimiter); err != nil {
			return err
		}
		var id int64
		if err := a.receive(&id); err == nil && id == a.id {
			return nil
		}
	}
	return errors.New("it answers others")
}

// skipTo drops what comes until a byte.
func (a *agent) skipTo(mark byte) error {
	for range maxStale {
		if _, err := a.in.ReadSlice(mark); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	return bufio.ErrBufferFull
}

func (a *agent) send(command string, arguments any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	_, err = a.conn.Write(append(line, '\n'))
	return err
}

func (a *agent) receive(out any) error {
	line, err := a.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Text  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(bytes.TrimLeft(line, "\xff"), &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return fmt.Errorf("it says: %s (%s)", answer.Error.Text, answer.Error.Class)
	}
	if answer.Return == nil {
		return errors.New("its answer has no value")
	}
	return json.Unmarshal(answer.Return, out)
}

// count runs a command that answers with a number of file systems.
func (a *agent) count(command string) (n int, err error) {
	if err = a.send(command, nil); err == nil {
		err = a.receive(&n)
	}
	if err != nil {
		return 0, fmt.Errorf("guest agent: %s: %w", command, err)
	}
	return n, nil
}

// freeze freezes the guest's file systems, n of them.
func freeze(ctx context.Context, socket string) (n int, err error) {
	a, err := dialAgent(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = a.conn.Close() }()
	return a.count("guest-fsfreeze-freeze")
}

// thaw thaws them, n of them. It tries again until ctx ends: a guest that stays frozen is of no use.
func thaw(ctx context.Context, socket string) (n int, err error) {
	for {
		if n, err = thawOnce(ctx, socket); err == nil {
			return n, nil
		}
		select {
		case <-time.After(agentAgain):
		case <-ctx.Done():
			return 0, err
		}
	}
}

func thawOnce(ctx context.Context, socket string) (int, error) {
	a, err := dialAgent(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = a.conn.Close() }()
	return a.count("guest-fsfreeze-thaw")
}
