package coordinator

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ownerAttribute is where a volume's root folder keeps whose it is: CLUSTER EPOCH. Only root sees it.
const ownerAttribute = "trusted.lunar.owner"

// maxOwner bounds the attribute.
const maxOwner = 256

// ErrForeign says that the volume belongs to another cluster.
var ErrForeign = error(&sentinel{"belongs to another cluster", unix.EPERM})

// owner is what the attribute says; the zero value is a volume of nobody.
type owner struct {
	cluster string
	epoch   uint64 // of the last term that mounted it
}

func (o owner) String() string { return o.cluster + " " + strconv.FormatUint(o.epoch, 10) }

func parseOwner(s string) (owner, error) {
	cluster, number, ok := strings.Cut(s, " ")
	epoch, err := strconv.ParseUint(number, 10, 64)
	if !ok || cluster == "" || err != nil {
		return owner{}, fmt.Errorf("the owner of the volume, %q, is not readable: %w", s, ErrForeign)
	}
	return owner{cluster, epoch}, nil
}

func (m *mount) owner() (owner, error) {
	buf := make([]byte, maxOwner)
	n, err := unix.Fgetxattr(int(m.root.Fd()), ownerAttribute, buf)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return owner{}, nil
	}
	if err != nil {
		return owner{}, fmt.Errorf("read the volume's owner: %w", err)
	}
	return parseOwner(string(buf[:n]))
}

// claim makes the volume this cluster's, for this term. ErrForeign: it is another's, which has not
// ejected it. ErrStaleEpoch: it was mounted in a later term, so the database is older than the volume.
func (c *Coordinator) claim() error {
	is, err := c.fs.owner()
	mine := owner{c.opts.Cluster, c.opts.Epoch}
	switch {
	case c.opts.TakeOver:
	case err != nil:
		return err
	case is.cluster != "" && is.cluster != mine.cluster:
		return fmt.Errorf("volume on %s: %w, %s: eject it there, or take it over by force", c.dev.Path, ErrForeign, is.cluster)
	case is.cluster != "" && is.epoch >= mine.epoch:
		return fmt.Errorf("volume on %s: it was mounted in epoch %d, and this is epoch %d: the cluster's database was put back to an older state: %w", c.dev.Path, is.epoch, mine.epoch, ErrStaleEpoch)
	}
	if mine.cluster == "" {
		return c.Disown()
	}
	if err := unix.Fsetxattr(int(c.fs.root.Fd()), ownerAttribute, []byte(mine.String()), 0); err != nil {
		return fmt.Errorf("note whose the volume is: %w", err)
	}
	return c.fs.root.Sync()
}

// Disown makes the volume nobody's, for who ejects it.
func (c *Coordinator) Disown() error {
	err := unix.Fremovexattr(int(c.fs.root.Fd()), ownerAttribute)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("note that the volume is nobody's: %w", err)
	}
	return c.fs.root.Sync()
}
