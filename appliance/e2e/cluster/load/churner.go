package load

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// Churner keeps the coordinator busy: it writes to a hole, looks at it through another path,
// makes it a hole again by UNMAP, and looks again. Its reads are of what was just granted or taken back, so they may have to
// wait for the coordinator too.
type Churner struct {
	writer *Writer
	Rounds int
}

// chunk is what is unmapped at once; a round writes to its first block.
const chunk = 64 << 10

// NewChurner owns chunks of 64 KiB from base on, which is a multiple of that.
func NewChurner(r *Record, id uint32, home, other *Disk, base int64, chunks int) *Churner {
	return &Churner{writer: NewWriter(r, id, Redirected, home, other, base, chunks*chunk/Block)}
}

// Run goes on until stop is closed.
func (c *Churner) Run(ctx context.Context, stop <-chan struct{}) {
	per := chunk / Block
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		block := n * per % len(c.writer.versions)
		if err := c.round(ctx, block); err != nil {
			if ctx.Err() == nil {
				c.writer.record.Fail(fmt.Errorf("churner %d: %w", c.writer.ID, err))
			}
			return
		}
		c.Rounds++
	}
}

func (c *Churner) round(ctx context.Context, block int) error {
	w := c.writer
	if err := w.write(ctx, block); err != nil {
		return err
	}
	if err := w.check(ctx, w.other, block); err != nil {
		return err
	}
	cdb, list := Unmap(w.offset(block), chunk)
	asked := time.Now()
	if _, err := w.disk.Do(ctx, Redirected, cdb, list, 0); err != nil {
		return err
	}
	done := time.Now()
	data, err := w.other.Do(ctx, Redirected, Read(w.offset(block), Block), nil, Block)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, make([]byte, Block)) {
		return fmt.Errorf("block %d does not read as zeroes through %s after UNMAP through %s, asked for %v and done %v before: %s",
			block, w.other.At(), w.disk.At(), time.Since(asked), time.Since(done), describe(data))
	}
	return nil
}
