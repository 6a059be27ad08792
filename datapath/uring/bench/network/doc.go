// Command network compares two ways to the network for a server whose disk I/O is on a ring: sockets on
// the same ring, and Go's netpoller with a reading and a writing goroutine per connection and writev.
//
// A client process keeps requests of 48 bytes under way, each of which costs the server one operation on
// the ring and is answered with 48 and 4,096 bytes, as a read of 4 KiB by iSCSI is. Both servers take turns;
// it prints medians of requests per second, p50, and the server's CPU time per request.
package main

const (
	requestLen = 48
	answerLen  = requestLen + 4096
)
