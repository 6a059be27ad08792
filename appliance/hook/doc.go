// Package hook makes an application consistent around a snapshot: a command, or the guest agent's fsfreeze, runs before
// it, and another after it.
//
// What runs after it runs whatever happens. A process of its own, the keeper, has that duty: it sees at once when the
// daemon is gone, and it does not wait for it longer than the hook's limit. A file in the daemon's state directory
// outlives both, so that Recover does it at the next start. What runs after a snapshot may therefore run twice.
//
// The caller's duties: Main is called first in the daemon's main function, End for each Start that succeeded, Recover
// when the daemon begins.
package hook
