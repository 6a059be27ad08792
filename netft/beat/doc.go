// Package beat is the wire format of a cluster heartbeat: one UDP datagram to port 3343, 72 bytes, signed
// with the cluster's key. The kernel program of bpf/heartbeat reads and writes the same bytes; the golden
// bytes under testdata hold both to one format.
//
// All integers are big-endian, except the tag, which is little-endian as SipHash defines it.
//
//	offset size field
//	     0    4 magic "LNHB"
//	     4    1 version, 1
//	     5    1 kind: 1 beat, 2 answer
//	     6    2 flags: bit 0, made by the kernel (answers only); the others are 0
//	     8    4 cluster: the low half of the tag of "lunar heartbeat cluster\x00" under the key
//	    12    2 from: the sender's node number, not 0
//	    14    2 to: the receiver's node number, not 0
//	    16    2 network
//	    18    1 family: 4 or 6, of the datagram's IP header
//	    19    1 reserved, 0
//	    20    4 age of the sender's daemon, in µs; 0xFFFFFFFF: older than can be said, or never seen
//	    24    8 incarnation of the sender's daemon, not 0
//	    32    8 sequence: of this beat, not 0; in an answer, of the beat that is answered
//	    40    8 sent: the sender's CLOCK_MONOTONIC, in ns
//	    48    8 echo: the receiver's own Sent that came last; 0, none yet. In an answer, Sent of the beat that is answered
//	    56    8 hold: ns between the receipt of what Echo names and Sent
//	    64    8 tag: SipHash-2-4 of bytes 0 to 63
//
// # Rule of the receiver
//
// A sender numbers its beats from 1 for each (receiver, network, family), and takes a higher incarnation each
// time that its daemon starts. A receiver keeps, for each (sender, network, family), the incarnation and the
// highest sequence that it accepted; a beat counts as a sign of life only if its pair (incarnation, sequence) is
// higher. A beat of the same incarnation with a lower sequence is reordered or a duplicate, one of a lower
// incarnation is replayed: each is counted, and does nothing else. So nothing that was recorded can be used
// again, on another network or family or against another node either, since the tag covers those too.
//
// A receiver that has no memory of the sender cannot tell a recording from its first beat. An answer can: it is
// accepted once, and only if sequence and echo are those of a beat of the receiver's own that is still unanswered.
// Until an answer has come with the incarnation of the beats, these are unconfirmed.
//
// The kernel answers for a daemon that may be dead. An answer shows that the node lives; only Age tells of its daemon.
package beat
