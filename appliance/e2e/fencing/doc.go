// Package fencing holds tests of fencing by lease with real processes: daemons with a mounted volume and direct
// writes through io_uring, their guards, and nodes that ask those for a proof.
package fencing
