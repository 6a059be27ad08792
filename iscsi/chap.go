package iscsi

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"lunar/iscsi/pdu"
)

// errCHAP says that an initiator did not prove who it is; the reason is for the log alone.
var errCHAP = errors.New("iscsi: CHAP failed")

const (
	challengeLen = 32
	maxBinary    = 1024 // bytes of a challenge that is taken, RFC 7143 §12.1.3
)

// chapHashes are the algorithms by their numbers, IANA "PPP Authentication Algorithms" as RFC 7143
// §12.1.3 uses them. SHA-1 (6) is not offered.
var chapHashes = map[string]func([]byte) []byte{
	"5": func(p []byte) []byte { s := md5.Sum(p); return s[:] },
	"7": func(p []byte) []byte { s := sha256.Sum256(p); return s[:] },
	"8": func(p []byte) []byte { s := sha3.Sum256(p); return s[:] },
}

type chapState uint8

const (
	chapStart chapState = iota
	chapChallenged
	chapDone
)

// chap is the target's side of one CHAP exchange.
type chap struct {
	state     chapState
	creds     *Credentials
	random    func([]byte)
	hash      func([]byte) []byte
	id        byte
	challenge []byte
}

// step takes the keys of one Login Request and returns those of the answer. The error wraps errCHAP.
func (x *chap) step(keys map[string]string) ([]pdu.Pair, error) {
	switch {
	case x.state == chapStart && keys["CHAP_A"] != "":
		return x.start(keys["CHAP_A"])
	case x.state == chapChallenged && keys["CHAP_R"] != "":
		return x.finish(keys)
	case x.state == chapStart && len(keys) == 0:
		return nil, nil
	}
	return nil, fmt.Errorf("%w: keys out of order", errCHAP)
}

func (x *chap) start(algorithms string) ([]pdu.Pair, error) {
	for a := range strings.SplitSeq(algorithms, ",") {
		if x.hash = chapHashes[a]; x.hash == nil {
			continue
		}
		fresh := make([]byte, 1+challengeLen)
		x.random(fresh)
		x.id, x.challenge = fresh[0], fresh[1:]
		x.state = chapChallenged
		return []pdu.Pair{
			{Key: "CHAP_A", Value: a},
			{Key: "CHAP_I", Value: strconv.Itoa(int(x.id))},
			{Key: "CHAP_C", Value: encodeBinary(x.challenge)},
		}, nil
	}
	return nil, fmt.Errorf("%w: no algorithm in common with %.64q", errCHAP, algorithms)
}

// finish checks the initiator's response in constant time, and proves the target if asked to.
func (x *chap) finish(keys map[string]string) ([]pdu.Pair, error) {
	response, err := decodeBinary(keys["CHAP_R"])
	if err != nil {
		return nil, err
	}
	right := subtle.ConstantTimeCompare(response, x.respond(x.id, x.creds.Secret, x.challenge))
	right &= subtle.ConstantTimeCompare([]byte(keys["CHAP_N"]), []byte(x.creds.User))
	if right != 1 {
		return nil, fmt.Errorf("%w: wrong user or secret", errCHAP)
	}
	x.state = chapDone
	if keys["CHAP_I"] == "" && keys["CHAP_C"] == "" {
		return nil, nil
	}
	return x.prove(keys["CHAP_I"], keys["CHAP_C"])
}

func (x *chap) prove(id, challenge string) ([]pdu.Pair, error) {
	if x.creds.MutualUser == "" {
		return nil, fmt.Errorf("%w: mutual CHAP asked for, but the target has no secret for it", errCHAP)
	}
	n, ok := parseNumber(id)
	if !ok || n > 255 {
		return nil, fmt.Errorf("%w: bad CHAP_I %.16q", errCHAP, id)
	}
	c, err := decodeBinary(challenge)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(c, x.challenge) == 1 {
		return nil, fmt.Errorf("%w: the initiator reflects the challenge", errCHAP) // §9.2.1
	}
	return []pdu.Pair{
		{Key: "CHAP_N", Value: x.creds.MutualUser},
		{Key: "CHAP_R", Value: encodeBinary(x.respond(byte(n), x.creds.MutualSecret, c))},
	}, nil
}

// respond is the response of RFC 1994 §4.1.
func (x *chap) respond(id byte, secret, challenge []byte) []byte {
	p := make([]byte, 0, 1+len(secret)+len(challenge))
	p = append(append(append(p, id), secret...), challenge...)
	return x.hash(p)
}

// encodeBinary and decodeBinary are the binary values of RFC 7143 §6.1.
func encodeBinary(p []byte) string { return "0x" + hex.EncodeToString(p) }

func decodeBinary(s string) ([]byte, error) {
	var p []byte
	var err error
	switch {
	case len(s) > 2*maxBinary+2:
		return nil, fmt.Errorf("%w: binary value of %d characters", errCHAP, len(s))
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		digits := s[2:]
		if len(digits)%2 == 1 {
			digits = "0" + digits
		}
		p, err = hex.DecodeString(digits)
	case strings.HasPrefix(s, "0b"), strings.HasPrefix(s, "0B"):
		p, err = base64.StdEncoding.DecodeString(s[2:])
	default:
		err = errors.New("neither 0x nor 0b")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: bad binary value: %w", errCHAP, err)
	}
	if len(p) == 0 || len(p) > maxBinary {
		return nil, fmt.Errorf("%w: binary value of %d bytes", errCHAP, len(p))
	}
	return p, nil
}
