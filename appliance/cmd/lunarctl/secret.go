package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSecret bounds what is read; CHAP's own limit is 255 bytes (RFC 7143 §12.1).
const maxSecret = 4096

// readSecret reads one line from standard input, without echo if that is a terminal.
func (c *cli) readSecret(prompt string) (string, error) {
	if file, ok := c.in.(*os.File); ok {
		if restore, err := echoOff(int(file.Fd())); err == nil {
			defer restore()
			_, _ = fmt.Fprint(c.err, prompt)
			defer func() { _, _ = fmt.Fprintln(c.err) }()
		}
	}
	line, err := bufio.NewReader(io.LimitReader(c.in, maxSecret)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the secret from standard input: %w", err)
	}
	secret := strings.TrimRight(line, "\r\n")
	if secret == "" {
		return "", usagef("no secret on standard input; give it as one line")
	}
	return secret, nil
}

// echoOff fails if fd is not a terminal.
func echoOff(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}
