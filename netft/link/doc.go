// Package link tells of the interfaces of the network namespace that it is started in, as values of
// package network, each time something about them changes. It subscribes to the kernel and never
// polls: what it is told only makes it read all anew, so that no lost message can leave it wrong.
//
// # The caller's duties
//
// Close the Watcher. The callback comes from one goroutine; while it runs nothing more is read, so
// it hands the list on and returns. Loss of carrier is told within some milliseconds, but the
// kernel delays it by up to a second when any link of the machine changed within the last second:
// heartbeats stay necessary.
package link
