// Package cluster tests whole clusters: real daemons in network namespaces with one LUN, initiators that write
// through all of them at once, and the faults of the real world. Tests only; package load is its initiator.
package cluster
