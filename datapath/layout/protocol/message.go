package protocol

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"lunar/datapath/layout"
)

// ErrStale means that a message bears an epoch or generation older than what its receiver knows.
var ErrStale = errors.New("older than the current epoch or generation")

// ErrUnreachable means that the coordinator did not answer: the connection was lost, or its time ran
// out. The call may have taken effect. It is made again with the same key, and Retry set.
var ErrUnreachable = errors.New("the coordinator did not answer")

// ErrUnsent is an ErrUnreachable of a call that was not sent: it had no effect.
var ErrUnsent = fmt.Errorf("not sent: %w", ErrUnreachable)

// ErrOutcome means that a COMPARE AND WRITE may have taken effect, once, and that nobody can tell any more. It is
// over: the initiator's command ends as aborted, and the initiator looks for itself.
var ErrOutcome = fmt.Errorf("whether the compare and write took effect is unknown: read the blocks and decide: %w", unix.ECONNABORTED)

// NodeID is a node's name.
type NodeID string

// Key names one change of the name space, for as long as it is tried: a change takes effect once per key.
type Key [16]byte

// NewKey makes a random key.
func NewKey() (k Key) {
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// String is the key in hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ImageID names an image's file as long as it exists, whatever it is renamed to.
type ImageID uint64

// Call says which image an operation is for, and under which coordinator's term it was issued.
type Call struct {
	Image ImageID
	Epoch uint64
	// Retry says that an earlier try of this call may have taken effect.
	Retry bool
	// Once names a COMPARE AND WRITE, and is the same in each of its tries.
	Once Once
}

// MaxSlots bounds the slots of a node.
const MaxSlots = 4096

// Once names a COMPARE AND WRITE of a node, as the slots of NFSv4.1 do (RFC 8881 §2.10.6). A slot has one at a time:
// a greater Serial on it says that the one before has ended, and that its result is not asked for any more.
// Serial 0 is none: such a call cannot be made again.
type Once struct {
	Node   NodeID
	Slot   uint32 // below MaxSlots
	Serial uint64
}

// Meta goes with every change of the name space.
type Meta struct {
	Key   Key
	Epoch uint64 // of the coordinator's term
	// Image is the file that a Delete or Rename is about, so that a retry knows it from a newer one of
	// the same name; 0 means whichever is there.
	Image ImageID
	// Retry says that an earlier try of this call may have taken effect.
	Retry bool
}

// Grant describes a range of an image: from now on the holder may reach the extents as their states
// allow. It also ends the recall whose number it bears.
type Grant struct {
	Call
	Generation uint64 // grows with every grant of the image
	Size       int64  // of the image
	Range      layout.Range
	Extents    []layout.Extent
	Ends       uint64 // number of the Recall that this answers, or 0
	Free       int64  // bytes that the volume has left
}

// Recall takes a range back before a change. The holder starts no direct I/O there, waits until
// what is under way has ended, and returns; then it waits for the Grant that ends the recall.
type Recall struct {
	Call
	Number uint64 // grows with every recall of the image
	Range  layout.Range
}

// Holder is what the coordinator needs of a node that has an image open.
type Holder interface {
	// Recall returns nil when no direct I/O in the range is under way or will be begun. An error,
	// also ctx's, means that this is not sure: then nothing may be changed.
	Recall(ctx context.Context, r Recall) error
	// Publish hands a grant over. It does not block.
	Publish(g Grant)
}

// Stat describes an image.
type Stat struct {
	Path    string  `json:"path"` // DIR/NAME within the volume
	ID      ImageID `json:"id"`
	Size    int64   `json:"size"`     // bytes
	Used    int64   `json:"used"`     // bytes allocated on the volume
	ModTime int64   `json:"mod_time"` // seconds since 1970
	Opens   int     `json:"opens"`    // holders that have it open
	Extents int     `json:"extents"`  // 0 unless it is open
}

// Space is how a volume is filled, in bytes.
type Space struct {
	Size int64 `json:"size"`
	Free int64 `json:"free"`
}

// CreateOptions says how an image is made.
type CreateOptions struct {
	Size  int64 // bytes, a multiple of the volume's sector size
	Thick bool  // reserve all space at once
	Eager bool  // Thick, and written with zeroes, so that every write is direct from the start
	// Progress is told how many bytes were written so far, from the goroutine that writes; may be nil.
	Progress func(bytes int64)
}
