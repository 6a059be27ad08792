package pdu

import (
	"bytes"
	"errors"
	"fmt"
)

// Bounds of text, RFC 7143 §6.1 and §6.2.
const (
	MaxKeyLen   = 63
	MaxValueLen = 8192
	MaxText     = 16384
	MaxPairs    = 256
)

// The answers which are not values, RFC 7143 §6.2.
const (
	NotUnderstood = "NotUnderstood"
	Irrelevant    = "Irrelevant"
	Rejected      = "Reject"
	None          = "None"
)

// ErrText says that a text data segment breaks the format of RFC 7143 §6.1.
var ErrText = errors.New("pdu: malformed text")

// Pair is one key=value.
type Pair struct{ Key, Value string }

// AppendPair appends key=value and its NUL to dst.
func AppendPair(dst []byte, key, value string) []byte {
	dst = append(dst, key...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	return append(dst, 0)
}

// ParseText splits a whole text, the segments of all its PDUs joined, into pairs. Extra NULs are
// skipped, a missing last one is forgiven. The error wraps ErrText.
func ParseText(b []byte) ([]Pair, error) {
	if len(b) > MaxText {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are taken", ErrText, len(b), MaxText)
	}
	var pairs []Pair
	for len(b) > 0 {
		item, rest, _ := bytes.Cut(b, []byte{0})
		b = rest
		if len(item) == 0 {
			continue
		}
		p, err := parsePair(item)
		if err != nil {
			return nil, err
		}
		if pairs = append(pairs, p); len(pairs) > MaxPairs {
			return nil, fmt.Errorf("%w: more than %d pairs", ErrText, MaxPairs)
		}
	}
	return pairs, nil
}

func parsePair(item []byte) (Pair, error) {
	key, value, ok := bytes.Cut(item, []byte{'='})
	if !ok {
		return Pair{}, fmt.Errorf("%w: %.32q has no =", ErrText, item)
	}
	if !validKey(key) {
		return Pair{}, fmt.Errorf("%w: bad key %.70q", ErrText, key)
	}
	if len(value) > MaxValueLen {
		return Pair{}, fmt.Errorf("%w: value of %s has %d bytes", ErrText, key, len(value))
	}
	return Pair{Key: string(key), Value: string(value)}, nil
}

func validKey(key []byte) bool {
	if len(key) == 0 || len(key) > MaxKeyLen {
		return false
	}
	for _, c := range key {
		if !isKeyByte(c) {
			return false
		}
	}
	return true
}

func isKeyByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return bytes.IndexByte([]byte(".-+@_/"), c) >= 0
}

// Assembler joins the text of PDUs that the C bit continues, up to MaxText bytes.
type Assembler struct{ buf []byte }

// Add takes one PDU's text. When more is false it returns the whole, which is valid until the
// next Add. The error wraps ErrText; the Assembler is empty after it.
func (a *Assembler) Add(p []byte, more bool) (text []byte, err error) {
	if len(a.buf)+len(p) > MaxText {
		a.buf = a.buf[:0]
		return nil, fmt.Errorf("%w: more than %d bytes in continued PDUs", ErrText, MaxText)
	}
	a.buf = append(a.buf, p...)
	if more {
		return nil, nil
	}
	text, a.buf = a.buf, a.buf[:0]
	return text, nil
}

// Pending tells whether a continued text is under way.
func (a *Assembler) Pending() bool { return len(a.buf) > 0 }
