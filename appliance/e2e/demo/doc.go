// Demo shows a cluster at work, for `make demo`: three nodes in network namespaces with one LUN, the same image
// exported by all of them, initiators that write and check through all at once, and then what a cluster is for:
// a move, the coordinator's death, a cut disk path, a cut network. It prints what each cost and exits non-zero
// when anything was lost, failed or took too long. With -growth it measures what many images cost at rest.
package main
