// Package network says which cluster networks there are, what they cost, and which of them two
// nodes talk over. It is pure: the same values give the same answer on every node, in any order.
//
// # Grouping
//
// Group puts the interfaces of all nodes into networks. Equal subnets are one network. Subnets that
// lie on the same interfaces, such as an IPv4 and an IPv6 one, are one network too, unless some
// node has them on different interfaces. Subnets that overlap without being equal are a mistake in
// a prefix length: they are joined by the same rule, and a warning names them.
//
// Interfaces with nothing but link-local addresses cannot be told apart by subnet: fe80::/64 and
// 169.254.0.0/16 are everywhere. Such an interface is put with the interfaces of the same name on
// other nodes: first into the one network whose members all bear that name, else into a network
// of link-local interfaces alone when two nodes have one. That is a guess; heartbeats pass or they
// do not, and what no heartbeat passes is never chosen.
//
// # Names
//
// A network is named after its interfaces when they all bear one name that someone chose
// ("Cluster", "LM"), otherwise Network1, Network2 and so on. From then on a Setting holds the name
// and the subnets that it was seen with, and the name follows the subnets. The caller stores
// View.Settings, by compare and swap in the cluster's database, so that all nodes give the same
// names; it deletes a Setting only when an administrator says so.
//
// # Metrics
//
// A metric set by hand holds. The others are given in the order of the list, faster links first
// and then by name: 1000, 1100, … to networks which are enabled for the cluster and have no
// default gateway; 10000, 10100, … to those with one, and after them to networks with role none.
package network
