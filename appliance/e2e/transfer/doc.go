// Package transfer tests `lunarctl image import` and `image export` with files that qemu-img made, on one node
// and on nodes of a cluster.
package transfer
