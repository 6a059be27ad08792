package cluster

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// A token's text is tokenPrefix and base64url of, in order: format (1 byte), hash of the cluster's id
// (8), SHA-256 of the CA's certificate (32), secret (16), length of the address (1), the member's IP
// address as text, first 4 bytes of the SHA-256 of all before.
const (
	tokenPrefix   = "lunar-"
	tokenFormat   = 1
	tokenFixed    = 1 + 8 + 32 + 16 + 1
	tokenSum      = 4
	maxTokenBytes = tokenFixed + 255 + tokenSum
)

// token lets one node into the cluster, once.
type token struct {
	cluster [8]byte     // of clusterHash
	ca      fingerprint // who the member must prove to be
	secret  [16]byte    // who the new node proves to be
	address string      // of the member that made it
}

func clusterHash(id string) (hash [8]byte) {
	sum := sha256.Sum256([]byte("lunar cluster " + id))
	return [8]byte(sum[:8])
}

func newToken(clusterID string, ca fingerprint, address string) token {
	t := token{cluster: clusterHash(clusterID), ca: ca, address: address}
	_, _ = rand.Read(t.secret[:]) // never fails
	return t
}

// id names the token in the database; the secret cannot be found from it.
func (t *token) id() string { return tokenID(t.secret[:]) }

func tokenID(secret []byte) string {
	sum := sha256.Sum256(append([]byte("lunar token "), secret...))
	return hex.EncodeToString(sum[:])
}

// String is the text for the user. It is a secret until it is used.
func (t *token) String() string {
	b := make([]byte, 0, maxTokenBytes)
	b = append(b, tokenFormat)
	b = append(b, t.cluster[:]...)
	b = append(b, t.ca[:]...)
	b = append(b, t.secret[:]...)
	b = append(b, byte(len(t.address)))
	b = append(b, t.address...)
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSum]...))
}

// parseToken reads what String wrote; white space around it is ignored. ErrToken: it is none, or was
// copied badly.
func parseToken(text string) (token, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok || len(text) > base64.RawURLEncoding.EncodedLen(maxTokenBytes) {
		return token{}, fmt.Errorf("%w: it does not begin with %q, or is too long", ErrToken, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < tokenFixed+tokenSum {
		return token{}, fmt.Errorf("%w: it was not copied whole", ErrToken)
	}
	body, sum := b[:len(b)-tokenSum], sha256.Sum256(b[:len(b)-tokenSum])
	if !bytes.Equal(sum[:tokenSum], b[len(body):]) {
		return token{}, fmt.Errorf("%w: it was not copied whole", ErrToken)
	}
	if body[0] != tokenFormat {
		return token{}, fmt.Errorf("%w: its format %d is of another release of Lunar", ErrToken, body[0])
	}
	t := token{cluster: [8]byte(body[1:]), ca: fingerprint(body[9:]), secret: [16]byte(body[41:]), address: string(body[tokenFixed:])}
	ip, err := netip.ParseAddr(t.address)
	if err != nil || int(body[57]) != len(t.address) || ip.Zone() != "" {
		return token{}, fmt.Errorf("%w: it names no address", ErrToken)
	}
	return t, nil
}
