package iscsi

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"

	"lunar/iscsi/scsi"
)

// Errors of the target table and of credentials.
var (
	ErrTargetExists  = errors.New("iscsi: a target of this name exists")
	ErrNoTarget      = errors.New("iscsi: no target of this name")
	ErrBadName       = errors.New("iscsi: not an iSCSI name")
	ErrBadCredential = errors.New("iscsi: unusable CHAP credentials")
)

// MaxNameLen bounds an iSCSI name in bytes, RFC 7143 §4.2.7.1.
const MaxNameLen = 223

// MinSecret is the length in bytes below which RFC 7143 §9.2.1 wants a CHAP secret refused where
// it is set; the server itself takes any that is not empty.
const MinSecret = 12

// Export is a target as initiators see it.
type Export struct {
	Name   string // iqn., eui. or naa. name
	Alias  string // TargetAlias, may be empty
	Target *scsi.Target
	Access Access // nil lets everyone in
}

// Access decides who may log in to a target. It is called on lanes: it answers from memory, and
// it may change its answers at any time.
type Access interface {
	// Allows tells whether the initiator may see the target and log in.
	Allows(initiator string) bool
	// Credentials are what CHAP asks of the initiator; nil asks for nothing.
	Credentials(initiator string) *Credentials
}

// Credentials are the two sides of CHAP for one initiator and one target, RFC 7143 §12.1.3.
type Credentials struct {
	User   string // the initiator's name for CHAP
	Secret []byte
	// MutualUser and MutualSecret let the target prove itself when the initiator asks for it.
	MutualUser   string
	MutualSecret []byte
}

func (c *Credentials) check() error {
	switch {
	case c == nil:
		return nil
	case c.User == "" || len(c.Secret) == 0:
		return fmt.Errorf("%w: a user and a secret are needed", ErrBadCredential)
	case (c.MutualUser == "") != (len(c.MutualSecret) == 0):
		return fmt.Errorf("%w: mutual CHAP needs a user and a secret", ErrBadCredential)
	case subtle.ConstantTimeCompare(c.Secret, c.MutualSecret) == 1:
		return fmt.Errorf("%w: the two directions need different secrets", ErrBadCredential)
	}
	return nil
}

// Policy is a fixed Access.
type Policy struct {
	// Initiators lists the names that may log in; nil lets everyone in, an empty list no one.
	Initiators []string
	CHAP       *Credentials
}

// Allows implements Access.
func (p *Policy) Allows(initiator string) bool {
	if p.Initiators == nil {
		return true
	}
	for _, name := range p.Initiators {
		if strings.EqualFold(name, initiator) {
			return true
		}
	}
	return false
}

// Credentials implements Access.
func (p *Policy) Credentials(string) *Credentials { return p.CHAP }

func (e *Export) allows(initiator string) bool {
	return e.Access == nil || e.Access.Allows(initiator)
}

func (e *Export) credentials(initiator string) *Credentials {
	if e.Access == nil {
		return nil
	}
	return e.Access.Credentials(initiator)
}

func (e *Export) validate() error {
	if err := ValidName(e.Name); err != nil {
		return err
	}
	if e.Target == nil {
		return fmt.Errorf("%w: %s has no scsi.Target", ErrOptions, e.Name)
	}
	if p, ok := e.Access.(*Policy); ok {
		return p.CHAP.check()
	}
	return nil
}

// ValidName checks the form of an iSCSI name, RFC 7143 §4.2.7; the error wraps ErrBadName.
func ValidName(name string) error {
	if len(name) > MaxNameLen {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadName, len(name), MaxNameLen)
	}
	prefix, rest, _ := strings.Cut(name, ".")
	switch strings.ToLower(prefix) {
	case "iqn", "eui", "naa":
	default:
		return fmt.Errorf("%w: %.64q does not begin with iqn, eui or naa and a dot", ErrBadName, name)
	}
	if rest == "" || strings.IndexFunc(name, badNameRune) >= 0 {
		return fmt.Errorf("%w: %.64q", ErrBadName, name)
	}
	return nil
}

// badNameRune refuses what RFC 3722 prohibits in ASCII; other scripts are taken as they come.
func badNameRune(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	case r == '-', r == '.', r == ':', r > 0x7f:
		return false
	}
	return r != '_' // prohibited too, but in common use
}
