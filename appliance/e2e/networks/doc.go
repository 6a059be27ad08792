// Package networks tests clusters whose nodes have several networks: the cluster gives them their addresses, and the
// loss of a network costs no connection and no I/O.
package networks
