// Package netft is a node's cluster network: which networks it shares with which nodes, whether heartbeats pass on
// each, which node lives, and a route to each node's cluster address over the best network that works. A network
// that fails costs no connection between nodes: the route moves, the addresses stay.
//
// It joins its sub-folders: link tells of the interfaces, network groups them and gives metrics, heartbeat sends
// and stamps heartbeats (in the kernel by bpf/heartbeat, where the machine allows it), detector judges, and route
// keeps the routes.
//
// # The caller's duties
//
// Start runs in the network namespace of the calling thread, and stays in it. The caller tells who the peers are
// (SetPeers) and what the cluster has recorded of its networks (SetSettings), each time either changes; until the
// first time, peers are those of the StateFile. It publishes Interfaces for the other nodes each time that
// Options.Changed is called. The heartbeat key, the settings and the port are the same on all nodes. Close takes
// the routes and the cluster address back.
package netft
