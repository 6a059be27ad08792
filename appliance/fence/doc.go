// Package fence makes sure that a node which is out cannot write to a volume any more, and proves it. A
// coordinator mounts only with the proof.
//
// A volume has one of three methods. reservations: each node registers its own key with the LUN, and
// fencing removes the victim's (PREEMPT AND ABORT), until READ KEYS shows that it is gone. agent: a command
// of the user switches the victim or its path off. lease: wait until the victim, which stops by itself at
// its deadline, must have stopped; that is the weakest, and [Fencer.Describe] says so.
//
// The caller opens one Fencer per volume and node, calls Admit before the first I/O to the device, Fence
// before it mounts, Check when the LUN reports a reservation conflict, and Sweep now and then while it is
// coordinator. An incarnation of a node that was fenced is out for good: it never registers again.
//
// proving and membership hold the rules and have no clock, no I/O and no goroutine; a seeded simulation
// runs them against LUNs that lose answers and nodes that stop at the worst moment.
package fence
