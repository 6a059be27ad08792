package uring

import "lunar/datapath/uring/internal/sys"

// fault is what the fault-injecting twin does to one operation.
type fault struct{}

func (f *fault) clip(p []byte) []byte    { return p }
func (f *fault) alter(_ *Op, _ *sys.SQE) {}
func (f *fault) result(res int32) int32  { return res }
func (f *fault) ignoresCancel() bool     { return false }
