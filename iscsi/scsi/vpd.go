package scsi

import (
	"encoding/binary"
	"fmt"
)

// vpdPages are the vital product data pages in the order of page 00h, each with what follows its
// four-byte header. Page 89h (ATA Information) is absent because no ATA device stands behind a
// unit (SAT-3 §12.4.2).
var vpdPages = []struct {
	code byte
	body func(c *Command) []byte
}{
	{0x80, (*Command).vpdSerial},
	{0x83, (*Command).vpdIdentification},
	{0x86, (*Command).vpdExtended},
	{0x8F, (*Command).vpdThirdPartyCopy},
	{0xB0, (*Command).vpdBlockLimits},
	{0xB1, (*Command).vpdCharacteristics},
	{0xB2, (*Command).vpdProvisioning},
}

func inquiryPage(c *Command) {
	body, ok := c.vpdBody(c.CDB[2])
	if !ok {
		c.reject(senseInvalidField.at(2))
		return
	}
	data := make([]byte, 4, 4+len(body))
	data[0], data[1] = c.peripheral(), c.CDB[2]
	binary.BigEndian.PutUint16(data[2:], uint16(len(body)))
	c.reply(append(data, body...))
}

func (c *Command) vpdBody(page byte) (body []byte, ok bool) {
	if page == 0 {
		return c.vpdSupported(), true
	}
	for _, p := range vpdPages {
		if p.code == page && c.lu != nil {
			return p.body(c), true
		}
	}
	return nil, false
}

func (c *Command) vpdSupported() []byte {
	codes := []byte{0}
	if c.lu != nil {
		for _, p := range vpdPages {
			codes = append(codes, p.code)
		}
	}
	return codes
}

func (c *Command) vpdSerial() []byte { return []byte(c.lu.opts.Serial) }

// Fields of a designation descriptor (SPC-4 §7.8.6).
const (
	codeBinary = 1
	codeASCII  = 2
	codeUTF8   = 3
	iscsi      = 5 << 4 // PROTOCOL IDENTIFIER
	ofUnit     = 0
	ofPort     = 1<<4 | 0x80 // with PIV
	ofDevice   = 2<<4 | 0x80
	typeT10    = 1
	typeNAA    = 3
	typePort   = 4
	typeGroup  = 5
	typeSCSI   = 8
)

// vpdIdentification names the unit (NAA, T10 vendor ID), the port and its group, and the target.
func (c *Command) vpdIdentification() []byte {
	o := &c.lu.opts
	vendor := fmt.Appendf(nil, "%-8s%s", o.Vendor, o.Serial)
	page := designator(nil, codeBinary, ofUnit|typeNAA, o.NAA)
	page = designator(page, codeASCII, ofUnit|typeT10, vendor)
	page = designator(page, iscsi|codeBinary, ofPort|typePort, []byte{0, 0, byte(c.Nexus.port >> 8), byte(c.Nexus.port)})
	if group, ok := c.lu.targetPortGroup(c.Nexus.port); ok {
		page = designator(page, iscsi|codeBinary, ofPort|typeGroup, []byte{0, 0, byte(group >> 8), byte(group)})
	}
	return designator(page, iscsi|codeUTF8, ofDevice|typeSCSI, scsiName(c.target.name))
}

func designator(page []byte, codeSet, kind byte, id []byte) []byte {
	return append(append(page, codeSet, kind, 0, byte(len(id))), id...)
}

// scsiName is a SCSI name string: ended by a zero and padded to four bytes (SPC-4 §7.8.6.11).
func scsiName(name string) []byte {
	id := make([]byte, (len(name)+4)&^3)
	copy(id, name)
	return id
}

// vpdExtended is the Extended INQUIRY Data page: the task attributes, a volatile cache,
// and that unit attentions are cleared by nexus.
func (c *Command) vpdExtended() []byte {
	data := make([]byte, 60)
	data[1] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
	data[2] = 0x01 // V_SUP
	data[3] = 0x01 // LUICLR
	return data
}

// vpdBlockLimits is the Block Limits page of SBC-3 §6.6.4; offsets are those after the header.
func (c *Command) vpdBlockLimits() []byte {
	data := make([]byte, 60)
	data[0] = 0x01 // WSNZ
	data[1] = maxCompareBlocks
	binary.BigEndian.PutUint16(data[2:], optimalGranularity)
	binary.BigEndian.PutUint32(data[4:], MaxData/blockSize)
	binary.BigEndian.PutUint32(data[8:], optimalTransfer)
	if c.lu.opts.Thin {
		binary.BigEndian.PutUint32(data[16:], maxUnmapBlocks)
		binary.BigEndian.PutUint32(data[20:], maxUnmapDescriptors)
		binary.BigEndian.PutUint32(data[24:], optimalGranularity)
		data[28] = 0x80 // UGAVALID: alignment 0
	}
	binary.BigEndian.PutUint64(data[32:], maxWriteSameBlocks)
	return data
}

// The transfers that suit a volume of 4 KiB blocks, in logical blocks.
const (
	optimalGranularity = 8
	optimalTransfer    = 1024
)

// vpdCharacteristics says that the medium does not rotate and has no form factor.
func (c *Command) vpdCharacteristics() []byte {
	data := make([]byte, 60)
	data[1] = 1
	return data
}

// vpdProvisioning is the Logical Block Provisioning page of SBC-3 §6.6.6.
func (c *Command) vpdProvisioning() []byte {
	if !c.lu.opts.Thin {
		return make([]byte, 4)
	}
	// LBPU, LBPWS, LBPWS10, LBPRZ; provisioning type: thin.
	return []byte{thresholdExponent, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0}
}
