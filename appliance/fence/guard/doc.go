// Package guard is a second process that ends a node's volumes when the node's daemon cannot: it died,
// hangs, was stopped, or let its deadline pass. A kernel goes on writing a mounted file system's log
// and dirty pages long after its daemon stopped; only a shutdown of the file system ends that.
//
// The daemon calls [Main] first thing in its main function, and [Start] once; Start runs the daemon's
// own binary again as the guard. The daemon hands over each mount before it writes to it ([Guard.Add]),
// takes it back before it unmounts ([Guard.Remove]; the guard's descriptor keeps the mount alive), and
// moves the deadline on ([Guard.Renew]). The deadline lies in shared memory, so that renewing it costs
// no system call. When [Guard.Done] closes before [Guard.Close], the guard is lost: the daemon has to
// give its volumes up or start another one.
//
// The guard is locked in memory and real-time where the kernel allows it; [Guard.Report] tells. It
// covers stops, hangs, crashes, garbage collection and steps of the clock. It does not cover a machine
// that is itself paused: only reservations on the device, or a watchdog in hardware, do.
package guard
