package protocol

// Transfer is a redirected READ or WRITE on its way to a coordinator that executes it without a
// goroutine of its own.
type Transfer struct {
	Buf        []byte // begins at a multiple of 4096; the executor's until the Transfer comes back
	Off        int64
	Write, FUA bool
	// Done tells, when it comes back, that all was done. Otherwise nothing of it is under way any more,
	// and its caller makes the blocking call, which does it or says what is wrong.
	Done bool

	Caller, Executor any // what each of them keeps with it
}
