package cluster

import "errors"

// The reasons for which a call is refused; test with errors.Is.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrInUse       = errors.New("in use")
	ErrFull        = errors.New("limit reached")
	ErrConflict    = errors.New("changed by another writer at the same time; try again")
	ErrDamaged     = errors.New("damaged")
	ErrLocked      = errors.New("another lunard uses this state directory")
	ErrSecretKey   = errors.New("the secret does not open with this node's key")
	ErrUnavailable = errors.New("the cluster database does not answer")
	ErrToken       = errors.New("the join token is not valid")
	ErrCertificate = errors.New("the certificate is refused")
	ErrAlone       = errors.New("this node is in no cluster")
	ErrMember      = errors.New("this node is in a cluster already")
	ErrNotEmpty    = errors.New("this node has volumes or targets of its own")
	ErrAddress     = errors.New("the cluster address is missing or not usable")
)
