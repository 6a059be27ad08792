package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Bounds of the conversation with a guest's shell.
const (
	greetEvery  = 2 * time.Second  // how often a silent console is spoken to
	replyGrace  = 60 * time.Second // on top of a command's own time, for a slow machine
	outputLimit = 4 << 20          // bytes of one command's output that are kept before the shell counts as broken
)

// StatusTimeout is the exit status of a command that the guest's timeout(1) ended.
const StatusTimeout = 124

// ErrOutputLimit means that a command printed more than outputLimit.
var ErrOutputLimit = errors.New("too much output on the console")

// Shell drives a root shell at the far end of a connection, one command after the other.
type Shell struct {
	conn net.Conn
	seen []byte
	turn int
}

// NewShell takes the connection over; the caller still closes it.
func NewShell(conn net.Conn) *Shell { return &Shell{conn: conn} }

// Greet waits until a shell answers at the other end.
func (s *Shell) Greet(ctx context.Context) error {
	for ctx.Err() == nil {
		s.turn++
		if err := s.send(fmt.Sprintf("printf '@@%%s%%d@@' hello %d\n", s.turn)); err != nil {
			return err
		}
		part, cancel := context.WithTimeout(ctx, greetEvery)
		_, err := s.expect(part, fmt.Appendf(nil, "@@hello%d@@", s.turn))
		cancel()
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("console: %w", err)
		}
	}
	return fmt.Errorf("no shell on the console: %w", ctx.Err())
}

// Run executes a bash script in the guest, ended there after limit, and returns its exit status and output.
func (s *Shell) Run(ctx context.Context, limit time.Duration, script string) (status int, output string, err error) {
	seconds := int(math.Ceil(limit.Seconds()))
	return s.evaluate(ctx, limit, fmt.Sprintf("timeout -k 5 %d bash -c %s", seconds, quote(script)))
}

// Export sets an environment variable for every later Run.
func (s *Shell) Export(ctx context.Context, name, value string) error {
	_, _, err := s.evaluate(ctx, time.Second, "export "+name+"="+quote(value))
	return err
}

func (s *Shell) evaluate(ctx context.Context, limit time.Duration, command string) (status int, output string, err error) {
	s.turn++
	mark := fmt.Sprintf("@@%d:", s.turn)
	ctx, cancel := context.WithTimeout(ctx, limit+replyGrace)
	defer cancel()
	err = s.send(fmt.Sprintf("%s </dev/null 2>&1; printf '@@%%d:%%d@@' %d $?\n", command, s.turn))
	if err != nil {
		return 0, "", fmt.Errorf("console: %w", err)
	}
	before, err := s.expect(ctx, []byte(mark))
	if err != nil {
		return 0, string(before), fmt.Errorf("console: waiting for a command to end: %w", err)
	}
	digits, err := s.expect(ctx, []byte("@@"))
	if err != nil {
		return 0, string(before), fmt.Errorf("console: waiting for an exit status: %w", err)
	}
	status, err = strconv.Atoi(string(digits))
	return status, string(before), err
}

func (s *Shell) send(text string) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(replyGrace)); err != nil {
		return err
	}
	_, err := s.conn.Write([]byte(text))
	return err
}

// expect returns what came before mark and forgets both; on an error it forgets nothing and returns what came.
func (s *Shell) expect(ctx context.Context, mark []byte) ([]byte, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(replyGrace)
	}
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	chunk := make([]byte, 16<<10)
	for {
		if before, after, found := bytes.Cut(s.seen, mark); found {
			s.seen = after
			return before, nil
		}
		if len(s.seen) > outputLimit {
			return s.seen, ErrOutputLimit
		}
		n, err := s.conn.Read(chunk)
		s.seen = append(s.seen, chunk[:n]...)
		if err != nil {
			return s.seen, err
		}
	}
}

// quote makes one shell word of any text.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
