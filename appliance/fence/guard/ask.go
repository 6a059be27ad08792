package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// Times of Ask.
const (
	connectLimit = 300 * time.Millisecond // for a connection and its handshake
	askPause     = 50 * time.Millisecond  // between tries
)

// Ask has the guard of another node, at address, end an incarnation of that node: it kills the daemon, shuts its volumes
// down, and answers when none of its writes can reach a device any more; the words say what was done. It
// tries until ctx ends: a machine that is off does not answer. ErrRefused: the guard is not of that incarnation, or
// cannot prove its end. The caller has evicted the incarnation before; c knows the node by its name.
func Ask(ctx context.Context, address string, c *tls.Config, incarnation uint64, reason string) (words string, err error) {
	o := order{verbEnd, incarnation, printable(reason, maxReason)}
	for {
		a, err := call(ctx, address, c, o)
		switch {
		case err == nil && a.first <= incarnation && incarnation <= a.latest:
			return a.words, nil
		case err == nil:
			return "", fmt.Errorf("guard at %s: it tells of incarnations %d to %d, and %d was meant", address, a.first, a.latest, incarnation)
		case errors.Is(err, ErrRefused):
			return "", err
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		}
	}
}

// call is one order and its answer, on a connection of its own. ErrRefused.
func call(ctx context.Context, address string, config *tls.Config, o order) (a answer, err error) {
	limited, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{}, Config: config}).DialContext(limited, "tcp", address)
	if err != nil {
		return a, fmt.Errorf("guard at %s: %w", address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		_ = c.Close()
	}()
	if _, err := c.Write([]byte(o.line())); err != nil {
		return a, fmt.Errorf("guard at %s: %w", address, err)
	}
	line, err := readLine(c)
	if err != nil {
		return a, fmt.Errorf("guard at %s: %w", address, err)
	}
	if a, err = parseAnswer(line); err == nil && a.latest == 0 {
		err = fmt.Errorf("%w: %s", ErrRefused, a.words)
	}
	if err != nil {
		return a, fmt.Errorf("guard at %s: %w", address, err)
	}
	return a, nil
}
