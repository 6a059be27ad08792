// Package volume is a node's view of a volume: it gives images to whoever serves them, and chooses
// per extent how an I/O goes. By the layout that the coordinator granted it goes straight to the
// device's sectors through the lane's ring (direct); what changes the file system, and everything
// while the disk path is gone, goes to the coordinator (redirected); a hole's read needs no I/O.
//
// An Image's asynchronous methods are for lanes: they are called on the lane's thread, never block,
// and call done once on that thread. Work that blocks is done by the volume's workers. A direct I/O
// takes no lock and allocates nothing.
//
// How a recall cannot miss an I/O: a lane loads the image's View and counts the I/O in within one
// callback. Recall first stores a View that lets nothing into the range, then posts to each lane,
// and so finds every I/O that was begun under an older View.
//
// Terms: Follow begins a coordinator's term. Each image gets a new attachment there while I/O goes on by
// the old view; then the view is swapped at once and, with the last image, the term acknowledged. What
// an older coordinator still says is refused from the moment that Follow begins (EpochOrder); what the
// new one recalls before the swap is kept out of the old view too. Operations that need a coordinator
// are errands: one that gets no answer is stranded, and made again, marked as a retry, once its image
// is attached, or soon after by the same coordinator. An error reaches the initiator only after
// Options.Redirected. An image that could not be attached, or was paused, is astray: all its I/O waits.
//
// The caller's duties: buffers are aligned for direct I/O and belong to the Image until done; images
// are closed before the Volume; the Volume before Engine, Coordinator and Device.
package volume
