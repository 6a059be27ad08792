package hostile

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"lunar/appliance/e2e/lab"
	"lunar/iscsi/pdu"
)

const (
	largeRead  = 128 << 10
	largeDepth = 16
	largeReads = 120 // of a session
	// stampStep is how often the image's blocks tell where they are.
	stampStep = 512
	half      = imageSize / 2
)

// acknowledgements are what initiators may make of ExpStatSN; the target's memory for large reads depends on it.
var acknowledgements = map[string]func(seen uint32) uint32{
	"honest": func(seen uint32) uint32 { return seen + 1 },
	"late":   func(seen uint32) uint32 { return seen - 40 },
	"never":  func(uint32) uint32 { return 0 },
}

// TestLargeReads: sessions that read 128 KiB, slowly and with as many commands as the window holds, get the right data,
// however they acknowledge, beside one that acknowledges what it has not read. That one may get its own later reads in
// place of earlier ones, and never what another session reads.
func TestLargeReads(t *testing.T) {
	portal := serveStamped(t)
	var all sync.WaitGroup
	run := func(name string, n int, from int64, liar bool, ack func(uint32) uint32) {
		s, err := login("127.0.0.1", portal, iqn, n, "MaxRecvDataSegmentLength", "262144")
		check(t, err)
		t.Cleanup(func() { s.conn.Close() })
		all.Go(func() {
			r := &reader{session: s, ack: ack, from: from, liar: liar, rnd: rand.New(rand.NewPCG(uint64(n), 1)), reads: map[uint32]int64{}}
			if err := r.run(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	n := 1
	for name, ack := range acknowledgements {
		run(name, n, 0, false, ack)
		n++
	}
	for ; n < 6; n++ {
		run("liar", n, half, true, func(seen uint32) uint32 { return seen + largeDepth })
	}
	all.Wait()
}

// serveStamped serves an image whose blocks hold their own offset.
func serveStamped(t *testing.T) (portal string) {
	_, portal, url, l := serveURL(t)
	image := make([]byte, imageSize)
	for at := 0; at < imageSize; at += stampStep {
		for i := 0; i < stampStep; i += 8 {
			binary.BigEndian.PutUint64(image[at+i:], uint64(at))
		}
	}
	path := l.Path("stamped.raw")
	check(t, os.WriteFile(path, image, 0o600))
	check(t, lab.Upload(t.Context(), path, url))
	return portal
}

// reader is a session with largeDepth reads of one half of the image under way.
type reader struct {
	*session
	ack   func(seen uint32) uint32
	from  int64
	liar  bool // need not get what it asked for
	rnd   *rand.Rand
	reads map[uint32]int64 // the offset, by tag
	buf   [64 << 10]byte
}

func (r *reader) run() error {
	for asked, done := 0, 0; done < largeReads; done++ {
		for ; asked < largeReads && len(r.reads) < largeDepth; asked++ {
			if err := r.ask(); err != nil {
				return err
			}
		}
		if r.rnd.IntN(8) == 0 {
			time.Sleep(time.Duration(r.rnd.IntN(3)) * time.Millisecond) // let it wait in the socket
		}
		if err := r.take(); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) ask() error {
	off := r.from + int64(r.rnd.IntN((half-largeRead)/4096))*4096
	h := pdu.SCSICommand{Header: &r.head}
	h.Reset(pdu.OpSCSICommand, pdu.FlagFinal|pdu.FlagRead|1)
	h.SetITT(r.sn)
	h.SetCmdSN(r.sn)
	h.SetExpStatSN(r.ack(r.seen))
	h.SetEDTL(largeRead)
	cdb := h.CDB()
	cdb[0] = 0x28 // READ(10)
	binary.BigEndian.PutUint32(cdb[2:], uint32(off/512))
	binary.BigEndian.PutUint16(cdb[7:], largeRead/512)
	r.reads[r.sn] = off
	r.sn++
	_, err := r.conn.Write(r.head[:])
	return err
}

// take reads up to the end of one command, a piece at a time.
func (r *reader) take() error {
	for {
		if err := r.conn.SetReadDeadline(time.Now().Add(ioLimit)); err != nil {
			return err
		}
		if _, err := io.ReadFull(r.conn, r.answer[:]); err != nil {
			return err
		}
		if r.answer.Opcode() != pdu.OpDataIn {
			return fmt.Errorf("%w: %v", errAnswer, r.answer.Opcode())
		}
		h := pdu.DataIn{Header: &r.answer}
		if err := r.compare(r.reads[h.ITT()]+int64(h.Offset()), h.DataLen()); err != nil {
			return err
		}
		if h.Flags()&pdu.FlagStatus != 0 {
			r.seen = h.StatSN()
			delete(r.reads, h.ITT())
			return nil
		}
	}
}

func (r *reader) compare(off int64, n int) error {
	for at := 0; at < n; {
		p := r.buf[:min(n-at, len(r.buf))]
		if _, err := io.ReadFull(r.conn, p); err != nil {
			return err
		}
		for i := 0; i < len(p); i += 8 {
			got, want := int64(binary.BigEndian.Uint64(p[i:])), (off+int64(at+i))&^(stampStep-1)
			if got != want && !r.liar {
				return fmt.Errorf("at %d it got the data of %d", want, got)
			}
			if got < r.from || got >= r.from+half {
				return fmt.Errorf("it reads from %d and got the data of %d", r.from, got)
			}
		}
		at += len(p)
	}
	return nil
}
