// Package namespace tests /ClusterStorage from end to end: a cluster of nodes, each with a mount of its own,
// used by plain system calls, qemu-img, qemu-io and fio, beside initiators of the same images.
package namespace
