package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds a message between daemon and guard, bytes. Each is one packet.
const maxMessage = 64 << 10

// What a daemon asks for.
const (
	opAdd    = "add" // with a mount's descriptor
	opRemove = "remove"
	opNudge  = "nudge" // the deadline was set for the first time, or again
	opDisarm = "disarm"
	opWatch  = "watch" // a device's path, and the byte of it that the daemon has locked
	opForget = "forget"
	opServe  = "serve" // with credentials
	opClose  = "close" // the daemon ends in order
)

// request goes from daemon to guard, one at a time.
type request struct {
	Op          string
	Volume      string        `json:",omitempty"`
	Path        string        `json:",omitempty"`
	Lock        int64         `json:",omitempty"`
	Seen        time.Duration `json:",omitempty"` // the deadline that is taken away
	Credentials *Credentials  `json:",omitempty"`
}

// reply answers a request; the guard's first is its report.
type reply struct {
	Error  string `json:",omitempty"`
	Report Report
}

// send sends one packet, with a descriptor unless fd is -1.
func send(sock int, message any, fd int) error {
	packet, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(packet) > maxMessage {
		return fmt.Errorf("message of %d bytes: %w", len(packet), unix.EMSGSIZE)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	return retry(func() error { return unix.Sendmsg(sock, packet, rights, nil, unix.MSG_NOSIGNAL) })
}

// receive takes one packet, and the descriptor that came with it or nil; io.EOF when the other side is gone.
func receive(sock int, message any) (*os.File, error) {
	packet, rights := make([]byte, maxMessage+1), make([]byte, unix.CmsgSpace(4))
	var n, rn int
	err := retry(func() (err error) {
		n, rn, _, _, err = unix.Recvmsg(sock, packet, rights, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	f := descriptor(rights[:rn])
	if err := json.Unmarshal(packet[:n], message); err != nil {
		return nil, errors.Join(fmt.Errorf("malformed message: %w", err), closeFile(f))
	}
	return f, nil
}

func descriptor(rights []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "mount")
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
