// Package protocol is the layout protocol between a volume's coordinator and the nodes that hold
// layouts: its messages, and both sides' state machines as plain state, without goroutine, clock or
// I/O. The shells around them are the packages coordinator and volume; the simulation in this
// package's tests runs the same code under a seed and checks the invariants by name.
//
//   - Table is the coordinator's side of one image: it orders operations per byte range, and says
//     when a change may begin because every holder has returned what it held there.
//   - Term is the coordinator's side of the volume: which nodes and processes there are, and the
//     barrier that changes wait for until every node has left the older epochs.
//   - View is a holder's side of one image: an immutable value, read by every lane without a lock.
//   - Flights counts one lane's direct I/O under way, so that a recalled range can be drained.
//
// Callers serialise what is not said to be immutable: Term under a mutex of the volume, Table
// and the making of new Views under one of the image, Flights on its lane's thread.
package protocol
