package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// Writer owns a range of the LUN and knows what was acknowledged there. It writes through its home path, and
// reads through it and another.
type Writer struct {
	ID           uint32
	Acknowledged int

	kind     Kind
	disk     *Disk
	other    *Disk
	record   *Record
	base     int64    // bytes
	versions []uint64 // by block: the last acknowledged; 0 is nothing yet
	random   *rand.Rand
}

// NewWriter owns blocks of Block bytes from base on. Kind says what its commands are when all is well.
func NewWriter(r *Record, id uint32, kind Kind, home, other *Disk, base int64, blocks int) *Writer {
	return &Writer{ID: id, kind: kind, disk: home, other: other, record: r, base: base,
		versions: make([]uint64, blocks), random: rand.New(rand.NewPCG(uint64(id), 1))}
}

// Run writes and reads until stop is closed. What goes wrong is in the record.
func (w *Writer) Run(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		if err := w.step(ctx); err != nil {
			if ctx.Err() == nil {
				w.record.Fail(fmt.Errorf("writer %d: %w", w.ID, err))
			}
			return
		}
	}
}

func (w *Writer) step(ctx context.Context) error {
	block := w.random.IntN(len(w.versions))
	switch n := w.random.IntN(10); {
	case n < 6:
		return w.write(ctx, block)
	case n < 8:
		return w.check(ctx, w.disk, block)
	default:
		return w.check(ctx, w.other, block)
	}
}

func (w *Writer) write(ctx context.Context, block int) error {
	next := w.versions[block] + 1
	cdb := Write(w.offset(block), Block, w.random.IntN(4) == 0)
	if _, err := w.disk.Do(ctx, w.kind, cdb, w.content(block, next), 0); err != nil {
		return err
	}
	w.versions[block] = next
	w.Acknowledged++
	return nil
}

func (w *Writer) check(ctx context.Context, d *Disk, block int) error {
	data, err := d.Do(ctx, w.kind, Read(w.offset(block), Block), nil, Block)
	if err != nil {
		return err
	}
	return w.judge(d.At(), block, data)
}

// judge compares what was read with what was acknowledged last.
func (w *Writer) judge(path string, block int, data []byte) error {
	if want := w.content(block, w.versions[block]); !bytes.Equal(data, want) {
		return fmt.Errorf("LOST or torn: block %d (byte %d) through %s reads as %s, acknowledged was version %d",
			block, w.offset(block), path, describe(data), w.versions[block])
	}
	return nil
}

// Verify reads every block through a disk.
func (w *Writer) Verify(ctx context.Context, d *Disk) error {
	for block, version := range w.versions {
		if version == 0 {
			continue
		}
		if err := w.check(ctx, d, block); err != nil {
			return fmt.Errorf("writer %d: %w", w.ID, err)
		}
	}
	return nil
}

func (w *Writer) offset(block int) int64 { return w.base + int64(block)*Block }

const header = 28

// content is what a version of a block looks like: each sector says whose it is, and has a checksum.
func (w *Writer) content(block int, version uint64) []byte {
	data := make([]byte, Block)
	if version == 0 {
		return data
	}
	for at := 0; at < Block; at += Sector {
		s := data[at : at+Sector]
		copy(s, "LUNR")
		binary.LittleEndian.PutUint32(s[4:], w.ID)
		binary.LittleEndian.PutUint32(s[8:], uint32(block))
		binary.LittleEndian.PutUint64(s[12:], version)
		binary.LittleEndian.PutUint32(s[20:], uint32(at))
		for i := header; i < Sector; i++ {
			s[i] = byte(version) + byte(i)
		}
		binary.LittleEndian.PutUint32(s[24:], crc32.ChecksumIEEE(s[header:]))
	}
	return data
}

// describe says what a block holds, by its sectors.
func describe(data []byte) string {
	var out bytes.Buffer
	for at := 0; at+Sector <= len(data); at += Sector {
		s := data[at : at+Sector]
		switch {
		case bytes.Equal(s, make([]byte, Sector)):
			out.WriteString("[zeroes]")
		case string(s[:4]) != "LUNR":
			fmt.Fprintf(&out, "[%x…]", s[:8])
		default:
			fmt.Fprintf(&out, "[writer %d block %d version %d]", binary.LittleEndian.Uint32(s[4:]), binary.LittleEndian.Uint32(s[8:]), binary.LittleEndian.Uint64(s[12:]))
		}
	}
	return out.String()
}
