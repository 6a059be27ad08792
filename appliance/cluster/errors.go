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
)
