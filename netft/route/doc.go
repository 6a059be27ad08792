// Package route keeps a node's cluster address, and a host route to that of each peer through the
// network that was chosen. Connections between cluster addresses live on while routes move.
//
// The address is on network.ClusterInterface: a dummy interface, or a bridge without ports in a
// kernel that has no dummy. It has no wire, so duplicate address detection is off; packets for it
// come in by the interfaces of the networks, as Linux takes packets for any of its addresses on any
// interface (the weak host model of RFC 1122 §3.3.4.2), and nothing has to be forwarded.
//
// Routes are in the main table with the protocol number Protocol and the network's metric. A route
// is replaced in place when the metric stays, otherwise the new one is added before the old one is
// deleted: there is always a route. Foreign routes are left alone: where one has our destination
// and metric, ours takes the next metric.
//
// For an IPv4 cluster address the strict reverse path filter (rp_filter 1) of the interfaces named
// in Set is loosened to 2 while the Keeper runs: a peer may send by one network while we answer by
// another. IPv6 has no such filter.
//
// # The caller's duties
//
// Call Set with everything that is wanted each time that anything changes; the first call also takes
// away what an earlier process left. Between calls the Keeper puts back what others delete. Close it:
// otherwise address and routes stay, and connections with them, until the next Start. One Keeper runs
// in a network namespace at a time. The process needs CAP_NET_ADMIN. systemd-networkd deletes routes
// and rules that it did not make unless ManageForeignRoutes=no is set.
package route
