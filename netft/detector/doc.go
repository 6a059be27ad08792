// Package detector says which paths, networks, nodes and daemons of a cluster live, from the times at which
// their heartbeats came. It is a pure state machine: it has no clock, no goroutine and no I/O; the same calls
// give the same verdicts.
//
// A path is one way to a peer: a network and an IP family. Three things are judged apart:
//
//   - a path is Up while heartbeats pass in both directions, Suspect when some were missed, Lost after the
//     profile's threshold. One that was Suspect or Lost is Up again only when heartbeats have passed without a
//     gap for a while; each time soon after another doubles the while, so a flapping link does not carry traffic;
//   - a node is Lost when nothing came from it on any network for the threshold. Only this may evict or fence;
//   - a daemon is Stalled when its node lives and it has not beaten for the threshold itself. Answers that the
//     peer's kernel gives show that the node lives, and never that its daemon does.
//
// # Grace
//
// Silence counts only while somebody listened. When the detector's own tick came late, or the kernel's that
// stamps the heartbeats, then nothing gets worse until a full period has been observed, and the span that nobody
// observed is taken off every silence. An observer whose ticks are all late still judges, once per threshold.
//
// # The caller's duties
//
// Judge is called every Options.Tick, with all stamps as they are at that time; one goroutine calls all methods.
// All times are readings of one monotonic clock, CLOCK_MONOTONIC or CLOCK_BOOTTIME, as time since its start; 0 is
// never.
package detector
