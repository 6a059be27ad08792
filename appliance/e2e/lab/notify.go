package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"
)

// listenNotify opens the socket to which a daemon of Type=notify reports, sd_notify(3).
func listenNotify(path string) (*net.UnixConn, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
}

// awaitReady waits for READY=1, the end of p or of ctx, at most startLimit.
func awaitReady(ctx context.Context, from *net.UnixConn, p *Process) error {
	limit, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	message := make([]byte, 4096)
	for {
		select {
		case <-p.Exited():
			return errors.New("ended before it was ready")
		case <-limit.Done():
			return fmt.Errorf("not ready: %w", limit.Err())
		default:
		}
		if err := from.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		n, err := from.Read(message)
		if err == nil && strings.Contains(string(message[:n]), "READY=1") {
			return nil
		}
	}
}
