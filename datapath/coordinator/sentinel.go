package coordinator

// sentinel is an error with words of its own that counts as an errno.
type sentinel struct {
	words string
	errno error
}

// Error implements error.
func (s *sentinel) Error() string { return s.words }

// Unwrap is the errno.
func (s *sentinel) Unwrap() error { return s.errno }

// Sentinels lists this package's errors, for those who carry them between nodes.
func Sentinels() []error {
	return []error{ErrNoSpace, ErrExists, ErrNotFound, ErrInUse, ErrPath, ErrSize, ErrHoldsData, ErrStaleEpoch, ErrRecall,
		ErrClosed, ErrUnsupported, ErrShrunk, ErrNoVolume, ErrForeign, ErrSuspended}
}
