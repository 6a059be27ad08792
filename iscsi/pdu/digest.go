package pdu

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Digest is the CRC32C of p, RFC 7143 §13.1 and Appendix A.4.
func Digest(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// DigestUpdate goes on from crc, a former Digest, with p.
func DigestUpdate(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// PutDigest stores crc in the first DigestLen bytes of p, in the byte order of the wire.
func PutDigest(p []byte, crc uint32) { binary.LittleEndian.PutUint32(p, crc) }

// GetDigest is the digest in the first DigestLen bytes of p.
func GetDigest(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
