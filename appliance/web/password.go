package web

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// The bounds of a password, in bytes.
const (
	MinPassword = 10
	MaxPassword = 256
)

// What a hash costs: the second choice of RFC 9106 §4, with less memory than its 64 MiB since lunard's is for I/O.
const (
	argonTime    = 3
	argonMemory  = 32 << 10 // KiB
	argonThreads = 1
	saltBytes    = 16
	hashBytes    = 32
)

// The most that a stored hash may ask for: a damaged record must not take the node's memory.
const (
	maxArgonTime   = 16
	maxArgonMemory = 256 << 10 // KiB
)

var errHash = errors.New("web: the stored password is damaged; set it anew with `lunarctl web user passwd`")

var encoding = base64.RawStdEncoding

// CheckPassword says what is wrong with a new password.
func CheckPassword(password string) error {
	switch {
	case len(password) < MinPassword:
		return fmt.Errorf("a password has at least %d characters", MinPassword)
	case len(password) > MaxPassword:
		return fmt.Errorf("a password has at most %d bytes", MaxPassword)
	}
	return nil
}

// Hash makes what is stored of a password, in the form of PHC strings: $argon2id$v=19$m=…,t=…,p=…$salt$hash.
func Hash(password string) string { return hash(password, argonTime, argonMemory) }

func hash(password string, time, memory uint32) string {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, time, memory, argonThreads, hashBytes)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, time, argonThreads,
		encoding.EncodeToString(salt), encoding.EncodeToString(key))
}

// Verify tells whether a password is the one of a hash.
func Verify(hash, password string) (bool, error) {
	var version, memory, time uint32
	var threads uint8
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return false, errHash
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, errHash
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return false, errHash
	}
	salt, errS := encoding.DecodeString(parts[4])
	want, errW := encoding.DecodeString(parts[5])
	if errS != nil || errW != nil || len(want) != hashBytes || threads == 0 || time == 0 || time > maxArgonTime || memory > maxArgonMemory {
		return false, errHash
	}
	got := argon2.IDKey([]byte(password), salt, time, memory, threads, hashBytes)
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
