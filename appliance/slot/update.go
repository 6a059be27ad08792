package slot

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is how much is written at a time.
const chunk = 1 << 20

// Source opens an update's bundle, each time from its beginning. twice is false for one that can be read once only.
type Source struct {
	Open  func(context.Context) (io.ReadCloser, error)
	Twice bool
}

// File is a bundle in a file.
func File(path string) Source {
	return Source{Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) }, Twice: true}
}

// Update writes a bundle to the slot that is not booted, and puts that one on trial for the next boot. A file is verified whole
// before anything is written; of what can be read once the manifest is, and the slot is lost if the image then turns out to be
// damaged. progress, unless nil, is called with the bytes written.
func (s *System) Update(ctx context.Context, from Source, progress func(done, size int64)) (Manifest, error) {
	unlock, err := s.lock()
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = unlock.Close() }()
	booted, e, err := s.settled()
	if err != nil {
		return Manifest{}, err
	}
	key, err := publicKey(s.Key)
	if err != nil {
		return Manifest{}, err
	}
	target, err := s.openPartition(otherThan(booted))
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = target.Close() }()
	room, err := target.Size()
	if err != nil {
		return Manifest{}, err
	}
	u := update{system: s, env: e, booted: booted, slot: otherThan(booted), target: target, room: room, key: key, progress: progress}
	return u.run(ctx, from)
}

// update is one under way.
type update struct {
	system   *System
	env      *environment
	booted   string
	slot     string
	target   partition
	room     int64
	key      ed25519.PublicKey
	progress func(done, size int64)
}

func (u *update) run(ctx context.Context, from Source) (Manifest, error) {
	if from.Twice {
		if err := u.read(ctx, from, func(b *bundle) error { _, err := io.Copy(io.Discard, until(ctx, b.image)); return err }); err != nil {
			return Manifest{}, err
		}
	}
	var m Manifest
	err := u.read(ctx, from, func(b *bundle) error {
		m = b.Manifest
		return u.install(ctx, b)
	})
	return m, err
}

// read opens the bundle, and has it used if it fits.
func (u *update) read(ctx context.Context, from Source, use func(*bundle) error) error {
	r, err := from.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	b, err := openBundle(r, u.key)
	if err != nil {
		return err
	}
	if b.Size > u.room {
		return fmt.Errorf("%w: its image has %d bytes, slot %s has room for %d", ErrBundle, b.Size, u.slot, u.room)
	}
	return use(b)
}

// install is the three steps of the package's comment.
func (u *update) install(ctx context.Context, b *bundle) error {
	u.env.set(varDefault, u.booted)
	u.env.trial("", 0)
	u.env.set(varFailed, "")
	u.env.setVersion(u.slot, "")
	if err := u.system.store(u.env); err != nil {
		return err
	}
	if err := u.write(ctx, b); err != nil {
		return fmt.Errorf("write slot %s: %w", u.slot, err)
	}
	if err := u.verify(ctx, b); err != nil {
		return fmt.Errorf("read slot %s back: %w", u.slot, err)
	}
	u.env.setVersion(u.slot, b.Version)
	u.env.trial(u.slot, Tries)
	return u.system.store(u.env)
}

func (u *update) write(ctx context.Context, b *bundle) error {
	buf := make([]byte, chunk)
	image := until(ctx, b.image)
	for at := int64(0); ; {
		n, err := io.ReadFull(image, buf)
		if _, failed := u.target.WriteAt(buf[:n], at); failed != nil {
			return failed
		}
		at += int64(n)
		if u.progress != nil {
			u.progress(at, b.Size)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrBundle):
			return u.target.Sync()
		case err != nil:
			return err
		}
	}
}

// verify reads from the disk, not from memory, what was written.
func (u *update) verify(ctx context.Context, b *bundle) error {
	if d, ok := u.target.(device); ok {
		_ = unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, until(ctx, io.NewSectionReader(u.target, 0, b.Size))); err != nil {
		return err
	}
	want, err := hex.DecodeString(b.SHA256)
	if err != nil || !bytes.Equal(sum.Sum(nil), want) {
		return errors.New("the disk does not hold what was written: replace it")
	}
	return nil
}

// until is a reader that fails once the context has ended.
func until(ctx context.Context, r io.Reader) io.Reader {
	return reading(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

type reading func([]byte) (int, error)

// Read calls the function.
func (r reading) Read(p []byte) (int, error) { return r(p) }
