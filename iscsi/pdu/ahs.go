package pdu

import (
	"errors"
	"fmt"
)

// ErrAHS says that additional header segments do not add up.
var ErrAHS = errors.New("pdu: malformed additional header segment")

// The types of additional header segments, RFC 7143 §11.2.2.1.
const (
	AHSExtendedCDB   = 1
	AHSBidirectional = 2
)

// AHS is one additional header segment. Value aliases the input: the AHS-specific bytes, the
// reserved first byte included.
type AHS struct {
	Type  uint8
	Value []byte
}

// NextAHS takes the first segment off b, which holds TotalAHSLength bytes, and returns what
// follows it. The error wraps ErrAHS.
func NextAHS(b []byte) (seg AHS, rest []byte, err error) {
	if len(b) < 4 {
		return AHS{}, nil, fmt.Errorf("%w: %d bytes left", ErrAHS, len(b))
	}
	n := int(be.Uint16(b))
	if n < 1 || 3+n > len(b) {
		return AHS{}, nil, fmt.Errorf("%w: length %d of %d bytes", ErrAHS, n, len(b))
	}
	end := min(3+n+Pad(3+n), len(b))
	return AHS{Type: b[2], Value: b[3 : 3+n]}, b[end:], nil
}
