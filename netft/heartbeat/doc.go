// Package heartbeat sends this node's heartbeats over every network and family to every peer, and keeps what came
// back: per path, the time of the last sign of life, gaps, jitter and round trips, as values of bpf/heartbeat.
//
// One thread does all: every eighth of the interval it reads what the sockets hold, sends the beats that are due,
// and calls the judge. It asks for a real-time priority, so that a busy machine goes on beating. Where the kernel
// stamps (Stamps), the sockets see only what the kernel does not know. Without it the kernel's time stamps on the
// datagrams tell when each came, however late this process reads them, and the thread answers the peers' beats.
//
// A datagram without the right signature, or one that was seen before, is counted and does nothing else.
//
// # The caller's duties
//
// Start is called in the network namespace of the heartbeats. Set names the interfaces and the paths, again after
// each change. Close stops the thread and waits; it does not close the Stamps.
package heartbeat
