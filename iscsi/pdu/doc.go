// Package pdu is the codec of iSCSI protocol data units, RFC 7143 §11: typed accessors over the
// 48-byte basic header segment, additional header segments, CRC32C digests, key=value text,
// logical unit numbers and serial number arithmetic.
//
// Nothing here reads or writes a socket, keeps state or allocates on the data path. The accessors
// do not judge: a caller checks the opcode before it looks at a header through one opcode's view,
// and checks the values that it takes out.
package pdu
