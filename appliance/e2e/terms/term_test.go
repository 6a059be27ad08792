package terms

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lunar/datapath/coordinator"
	"lunar/datapath/layout"
	"lunar/datapath/layout/protocol"
	"lunar/datapath/volume"
)

// TestAcknowledgedIsThereInTheNextTerm has writes and unmaps acknowledged by a coordinator that then
// loses its power, without any flush between (Durable, ReadAfterWrite).
func TestAcknowledgedIsThereInTheNextTerm(t *testing.T) {
	for _, fs := range []coordinator.FSType{coordinator.XFS, coordinator.Ext4} {
		t.Run(string(fs), func(t *testing.T) {
			s := newSAN(t, 2, fs)
			s.begin(0)
			s.nodes[1].create("a", 64*mib)
			ims := s.openAll("a")
			far := s.nodes[1]
			s.must(far.write(ims[1], pattern(mib, 1), 0))
			s.must(far.write(ims[1], pattern(mib, 1), mib))
			s.must(ims[1].Sync())
			s.must(far.write(ims[1], pattern(8192, 2), 20*mib)) // allocates
			s.must(ims[1].Discard(mib, mib))
			s.must(far.write(ims[1], pattern(512, 3), 30*mib+512)) // less than a block
			s.must(s.nodes[0].vol.Resize(ctx, "a", 65*mib, false))
			s.kill()
			s.begin(1)
			for i, n := range s.nodes {
				s.must(ims[i].Sync())
				for _, c := range []struct {
					off  int64
					want []byte
				}{{20 * mib, pattern(8192, 2)}, {mib, make([]byte, mib)}, {30*mib + 512, pattern(512, 3)}, {0, pattern(mib, 1)}} {
					got, err := n.read(ims[i], c.off, len(c.want))
					if err != nil || !bytes.Equal(got, c.want) {
						t.Errorf("%s: Durable: wrong content at %d, %v", n.name, c.off, err)
					}
				}
				if ims[i].Size() != 65*mib {
					t.Errorf("%s: size %d", n.name, ims[i].Size())
				}
			}
		})
	}
}

// TestNothingNeedsACoordinatorAtOnce opens a volume without one: what is asked waits for it.
func TestNothingNeedsACoordinatorAtOnce(t *testing.T) {
	s := newSAN(t, 2, coordinator.XFS, func(n *node) { n.options.Redirected = time.Second })
	created := make(chan error, 1)
	go func() { created <- s.nodes[0].vol.Create(ctx, "a", protocol.CreateOptions{Size: mib}) }()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.nodes[1].vol.Stat(short, "a"); !errors.Is(err, volume.ErrWaited) {
		t.Fatal(err)
	}
	s.begin(0)
	s.must(<-created)
	ims := s.openAll("a")
	s.kill()
	if st := s.nodes[1].vol.Status(); st.State != volume.Direct || !st.Orphan || st.Epoch != 1 {
		t.Fatalf("%+v", st)
	}
	written := make(chan error, 1)
	go func() { written <- s.nodes[1].write(ims[1], pattern(4096, 1), 0) }()
	eventually(t, time.Second, "stranded", func() bool { return s.nodes[1].vol.Status().Stranded == 1 })
	s.begin(1)
	s.must(<-written)
	if got, err := s.nodes[0].read(ims[0], 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 1)) {
		t.Fatal("wrong content", err)
	}
	s.kill()
	began := time.Now()
	err := s.nodes[0].vol.Create(ctx, "b", protocol.CreateOptions{Size: mib})
	werr := s.nodes[1].write(ims[1], make([]byte, 512), mib-512)
	if took := time.Since(began); !errors.Is(err, volume.ErrWaited) || werr != nil && !errors.Is(werr, volume.ErrWaited) || took > patience {
		t.Fatalf("%v, %v after %v", err, werr, took)
	}
	if err := s.nodes[0].vol.Follow(ctx, staleCoordinator{}); !errors.Is(err, protocol.ErrStale) {
		t.Fatal("EpochOrder: went back a term:", err)
	}
	s.begin(0)
}

type staleCoordinator struct{ volume.Coordinator }

func (staleCoordinator) Epoch() uint64 { return 1 }

// refusing is a coordinator that cannot attach one image for a while.
type refusing struct {
	volume.Coordinator
	path string
	err  error
	left int
}

func (r *refusing) Attach(ctx context.Context, node protocol.NodeID, path string, h protocol.Holder) (protocol.Grant, protocol.HolderID, error) {
	if path == r.path && r.left > 0 {
		r.left--
		return protocol.Grant{}, 0, r.err
	}
	return r.Coordinator.Attach(ctx, node, path, h)
}

// TestOneImageThatCannotBeAttachedWaitsAlone: its I/O waits, direct too, and that of others goes on.
func TestOneImageThatCannotBeAttachedWaitsAlone(t *testing.T) {
	s := newSAN(t, 1, coordinator.XFS)
	n := s.nodes[0]
	s.begin(0)
	n.create("a", mib)
	n.create("b", mib)
	a, b := n.open("a"), n.open("b")
	s.must(errors.Join(n.write(a, pattern(4096, 1), 0), n.write(b, pattern(4096, 2), 0)))
	s.kill()
	s.elect(0)
	s.follow(func(c volume.Coordinator) volume.Coordinator {
		return &refusing{Coordinator: c, path: "a", err: unix.ENOMEM, left: 4}
	})
	began := time.Now()
	if got, err := n.read(b, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 2)) {
		t.Fatal("wrong content", err)
	}
	if st := n.vol.Status(); st.Astray != 1 {
		t.Fatalf("%+v", st)
	}
	if got, err := n.read(a, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 1)) {
		t.Fatal("wrong content", err)
	}
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Fatal("an image that is not attached was read after", took)
	}
	s.must(n.write(a, pattern(4096, 3), 8192))
}

// TestImageThatIsGoneFailsClearly deletes an image in a term that its node had no part in, and makes
// another one of the same name.
func TestImageThatIsGoneFailsClearly(t *testing.T) {
	s := newSAN(t, 2, coordinator.XFS)
	s.begin(0)
	near, far := s.nodes[0], s.nodes[1]
	near.create("a", mib)
	near.create("b", mib)
	a, b := far.open("a"), far.open("b")
	s.must(errors.Join(far.write(a, pattern(4096, 1), 0), far.write(b, pattern(4096, 2), 0)))
	s.kill()
	c := s.elect(0)
	s.must(near.vol.Follow(ctx, c))
	c.Expel(far.name)
	s.must(near.vol.Delete(ctx, "a"))
	near.create("a", mib)
	s.must(c.Handover(ctx))
	s.begin(0)
	if _, err := far.read(a, 0, 4096); !errors.Is(err, volume.ErrGone) {
		t.Fatal(err)
	}
	if err := errors.Join(far.write(a, make([]byte, 4096), 0)); !errors.Is(err, volume.ErrGone) {
		t.Fatal(err)
	}
	if got, err := far.read(b, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 2)) {
		t.Fatal("wrong content", err)
	}
	again := far.open("a")
	if got, err := far.read(again, 0, 4096); err != nil || !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("NoLeak: wrong content", err)
	}
}

// TestRemoteFillBecomesDirect fills a thin image in order on a node that is not the coordinator.
func TestRemoteFillBecomesDirect(t *testing.T) {
	s := newSAN(t, 2, coordinator.XFS)
	s.begin(0)
	far := s.nodes[1]
	far.create("a", 256*mib)
	im := far.open("a")
	before := far.vol.Status()
	p := pattern(64<<10, 1)
	var redirected []int64
	for off := int64(0); off < 256*mib; off += int64(len(p)) {
		was := far.vol.Status().RedirectedWrite.IOs
		s.must(far.write(im, p, off))
		if far.vol.Status().RedirectedWrite.IOs > was {
			redirected = append(redirected, off)
		}
	}
	after := far.vol.Status()
	direct := after.DirectWrite.Bytes - before.DirectWrite.Bytes
	t.Logf("%d of 4096 writes were redirected, %.1f %% of the bytes direct", len(redirected), 100*float64(direct)/(256*mib))
	if len(redirected) > 64 || redirected[0] != 0 || len(redirected) > 1 && redirected[1] < mib {
		t.Errorf("redirected at %v", redirected)
	}
	if !im.Layout().Is(layout.Range{Len: 256 * mib}, layout.State.Writable) {
		t.Error("not all is written")
	}
}
