// Package wire is how nodes speak about layouts: a Client stands for a volume's coordinator on another
// node (it has the methods of volume.Coordinator), a Server brings its calls to the coordinator here.
// gRPC under mutual TLS carries layouts, recalls and changes of the name space; redirected reads and
// writes go another way, which the Client is given as its DataPath.
//
// A node has one session per volume and term. Its stream carries what the coordinator tells holders;
// calls go beside it. What keeps the invariants of package protocol over a connection that breaks:
//
//   - What the coordinator says is numbered, kept until acknowledged and said again on the next
//     stream: no grant is lost, none is taken twice. A recall ends only with the node's answer.
//   - Calls belong to the turn that the stream's Welcome began. When the stream breaks they are
//     cancelled, and the node's next turn begins after the last of them has returned: no abandoned try
//     takes effect late.
//   - A Hello lists what the node holds. What it does not list is detached: an Attach whose answer was
//     lost leaves nothing behind.
//   - Grants for a node that is slow or away are merged per image: newer descriptions replace older
//     ones, so that what waits for it is bounded by the images' layouts. A grant may so be overtaken by
//     a later recall, never a recall by a later grant.
//
// The caller's duties: certificates of the cluster's own CA, whose common names are the nodes' names; to
// End a term on the Server when its coordinator has closed; to Close a Client after the images that were
// attached through it are closed, or attached elsewhere.
package wire
